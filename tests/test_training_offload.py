"""What a trainer lends to engines: the memory is given back, and what comes back is the same to the bit.

On CPUs, where device and host are one, nothing is gained by it; the code is the same.
"""

import pytest
import torch
from pydantic import ValidationError

from cluster.actors import StartFailed
from rl.config import GRPOConfig, OwnSamplesConfig
from rl.objective import ObjectiveConfig
from rl.trainer import PolicyTrainer
from tests.parallel_jobs import held_bytes, sequences
from training.config import LoRAConfig, OptimizerConfig
from training.offload import Offloaded
from training.stage import StageContext


def test_storages_are_empty_until_they_are_fetched():
    whole = torch.arange(12.0).view(3, 4)
    view, other = whole[1:], torch.ones(5, dtype=torch.bfloat16)
    offloaded = Offloaded()
    offloaded.take([whole, view, other])
    offloaded.take([whole])  # there is nothing left of it
    assert [tensor.untyped_storage().nbytes() for tensor in (whole, view, other)] == [0, 0, 0]
    offloaded.fetch()
    offloaded.fetch()
    assert torch.equal(whole, torch.arange(12.0).view(3, 4)) and torch.equal(view, whole[1:])
    assert other.dtype == torch.bfloat16 and (other == 1).all()
    whole[2, 3] = 7.0
    assert view[1, 3] == 7.0  # still the same memory


def test_what_cannot_come_back_yet_is_not_lost(monkeypatch):
    """A device without room raises in the middle."""
    from training import offload

    tensors, bytes_of, calls = [torch.full((3,), float(i)) for i in range(3)], offload._bytes, []
    offloaded = Offloaded()
    offloaded.take(tensors)

    def no_room(storage):
        calls.append(storage)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("none left")
        return bytes_of(storage)

    monkeypatch.setattr(offload, "_bytes", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        offloaded.fetch()
    offloaded.fetch()
    assert [tensor.tolist() for tensor in tensors] == [[float(i)] * 3 for i in range(3)]


def trainer(checkpoint, offload: str, **settings) -> PolicyTrainer:
    config = OptimizerConfig(lr=1e-3, ema_decay=0.5, offload=offload)  # pyright: ignore[reportArgumentType]
    objective = ObjectiveConfig(kl_coef=0.01).resolve()
    return PolicyTrainer(
        str(checkpoint), config, objective=objective, temperature=1.0, row_tokens=64, device="cpu", **settings
    )


def turn(of: PolicyTrainer, seed: int) -> dict[str, float]:
    """As the driver has it: room for weights, the sync, room for a cache; then the update."""
    of.offload(weights=False)
    beside = {name: size for name, size in held_bytes(of).items() if name != "weights"}
    sent = {}
    for name, weight in of.weights():
        sent[name] = weight.clone()
        assert {kind: held_bytes(of)[kind] for kind in beside} == beside  # nothing comes back for a sync
    of.score([[9, 10, 11]])
    assert {kind: held_bytes(of)[kind] for kind in beside} == beside and len(sent) == len(of.weight_shapes())
    of.offload(weights=True)
    return of.update(of.annotate(sequences(of, seed)), 1e-3, 20)


@pytest.mark.parametrize("settings", [{}, {"lora": LoRAConfig(rank=4)}, {"precision": "bfloat16"}], ids=str)
def test_turns_with_an_engine_change_nothing(llama_checkpoint, tmp_path, settings):
    resting, undisturbed = (trainer(llama_checkpoint, offload, **settings) for offload in ("all", "none"))
    for seed in (1, 2):
        assert turn(resting, seed) == turn(undisturbed, seed)
    resting.refresh_reference(), undisturbed.refresh_reference()
    assert turn(resting, 3) == turn(undisturbed, 3)
    for name, of in (("resting", resting), ("undisturbed", undisturbed)):
        of.offload(weights=True)
        of.save_average(str(tmp_path / f"{name}_average"))
        of.offload(weights=True)
        of.save_checkpoint(str(tmp_path / name))
        of.offload(weights=True)
        of.begin_save(str(tmp_path / f"{name}_state"))
        of.finish_save()
    for kind in ("", "_average"):
        one, other = (tmp_path / f"{name}{kind}" / "model.safetensors" for name in ("resting", "undisturbed"))
        assert one.read_bytes() == other.read_bytes()
    resting.offload(weights=True)
    resting.load_state(str(tmp_path / "undisturbed_state"))
    undisturbed.load_state(str(tmp_path / "resting_state"))
    assert turn(resting, 4) == turn(undisturbed, 4)


def test_what_runs_ahead_takes_no_turns():
    with pytest.raises(ValidationError, match=r"optimizer\.offload all would be ignored"):
        GRPOConfig(max_staleness=1, optimizer=OptimizerConfig(offload="all"))


def test_a_generator_that_does_not_start_leaves_nothing_running(tiny_checkpoint, tmp_path, monkeypatch):
    from rl import sampling_session

    stopped = []

    class Pool:
        def __init__(self, *args, **kwargs):
            self.close = lambda: stopped.append("generators")

        def sleep(self):
            raise StartFailed("no room")

    class Group:
        def stop(self):
            stopped.append("trainer")

    monkeypatch.setattr(sampling_session, "spawn_trainer", lambda *args, **kwargs: Group())
    monkeypatch.setattr(sampling_session, "GeneratorPool", Pool)
    context = StageContext(name="rl", inputs={"policy": tiny_checkpoint}, output=tmp_path, seed=5)
    with pytest.raises(StartFailed, match="no room"):
        sampling_session.SamplingSession(OwnSamplesConfig(), context, "a:Trainer", tiny_checkpoint)
    assert stopped == ["generators", "trainer"]


@pytest.mark.parametrize(("offload", "gone"), [("none", ()), ("moments", ("moments",)), ("all", None)])
def test_what_leaves_the_device_is_what_the_recipe_says(llama_checkpoint, offload, gone):
    of = trainer(llama_checkpoint, offload, precision="bfloat16")  # in pieces: what is mapped from a file stays
    turn(of, 1), turn(of, 2)  # in the first the policy itself is the reference
    before = held_bytes(of)
    assert min(before.values()) > 0
    of.offload(weights=False)
    without_weights = {name: size for name, size in held_bytes(of).items() if not size}
    of.offload(weights=True)
    after = {name: size for name, size in held_bytes(of).items() if not size}
    expected = {"weights", "moments", "reference"} if gone is None else set(gone)
    assert set(after) == expected and set(without_weights) == expected - {"weights"}
    turn(of, 3)
    assert held_bytes(of) == before

"""What a trainer lends to engines: the memory is given back, and what comes back is the same to the bit.

On CPUs, where device and host are one, nothing is gained by it; the code is the same.
"""

import pytest
import torch

from rl.objective import ObjectiveConfig
from rl.trainer import PolicyTrainer
from tests.parallel_jobs import held_bytes, sequences
from training.config import LoRAConfig, OptimizerConfig
from training.offload import Offloaded


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


def trainer(checkpoint, offload: str, **settings) -> PolicyTrainer:
    config = OptimizerConfig(lr=1e-3, ema_decay=0.5, offload=offload)  # pyright: ignore[reportArgumentType]
    objective = ObjectiveConfig(kl_coef=0.01).resolve()
    return PolicyTrainer(
        str(checkpoint), config, objective=objective, temperature=1.0, row_tokens=64, device="cpu", **settings
    )


def turn(of: PolicyTrainer, seed: int) -> dict[str, float]:
    """As the driver has it: room for weights, the sync, room for a cache; then the update."""
    of.offload(weights=False)
    sent = {name: weight.clone() for name, weight in of.weights()}
    assert len(sent) == len(of.weight_shapes())
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


@pytest.mark.parametrize(("offload", "gone"), [("none", ()), ("moments", ("moments",)), ("all", None)])
def test_what_leaves_the_device_is_what_the_recipe_says(llama_checkpoint, offload, gone):
    of = trainer(llama_checkpoint, offload, precision="bfloat16")  # in pieces: what is mapped from a file stays
    turn(of, 1)
    before = held_bytes(of)
    assert min(before.values()) > 0
    of.offload(weights=False)
    without_weights = {name: size for name, size in held_bytes(of).items() if not size}
    of.offload(weights=True)
    after = {name: size for name, size in held_bytes(of).items() if not size}
    expected = {"weights", "moments", "reference"} if gone is None else set(gone)
    assert set(after) == expected and set(without_weights) == expected - {"weights"}
    turn(of, 2)
    assert held_bytes(of) == before

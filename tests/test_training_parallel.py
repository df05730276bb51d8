"""Several ranks compute what one does: losses, gradients, steps, routing, checkpoints. Real processes, gloo, float32.

Sums over ranks round otherwise than sums over rows, so "the same" means within 1e-5 relative, of losses and gradients.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.architectures import make_architecture
from tests.conftest import make_checkpoint
from tests.gloo_ranks import GlooRanks

FSDP = pytest.param(2, {"data": 2}, id="fsdp2")
EP_OVER_FSDP = pytest.param(4, {"data": 4, "expert": 2}, id="ep2-over-fsdp2")
MESHES = [
    FSDP,
    EP_OVER_FSDP,
    pytest.param(4, {"data": 4}, id="fsdp4"),
    pytest.param(2, {"data": 2, "expert": 2}, id="ep2"),
    pytest.param(4, {"data": 4, "expert": 4}, id="ep4"),
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks():
    ranks = GlooRanks(4)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def alone(ranks):
    """Results of a single process, each computed once."""
    return ranks.alone


@pytest.fixture(scope="module")
def deep_checkpoint(tmp_path_factory) -> Path:
    """Layers for a pipeline of two."""
    return make_checkpoint(tmp_path_factory.mktemp("deep") / "checkpoint", num_layers=4)


def job(name: str) -> str:
    return f"tests.parallel_jobs:{name}"


def assert_same_numbers(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rel: float = 1e-5) -> None:
    """Each within `rel` of its norm."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name].double() - weight.double()).norm() <= rel * weight.double().norm(), name


def assert_same_average(found: Path, expected: Path, rel: float = 1e-5) -> None:
    assert_same_weights(*(load_file(folder / "model.safetensors") for folder in (found, expected)), rel)


@pytest.mark.parametrize(("size", "mesh"), MESHES)
def test_losses_and_every_gradient_are_those_of_one_process(ranks, alone, tiny_checkpoint, size, mesh):
    """Five rows over the ranks, so some have fewer; some rows have nothing for the MTP module to predict."""
    expected = alone(job("gradients"), str(tiny_checkpoint), {})
    for found in ranks.run(size, job("gradients"), str(tiny_checkpoint), mesh):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert found["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            error = (found["gradients"][name].double() - gradient.double()).norm()
            assert error <= 1e-5 * gradient.double().norm(), name


@pytest.mark.parametrize(
    ("checkpoint", "mesh"),
    [
        ("llama_checkpoint", {"data": 2}),
        ("tied_checkpoint", {"data": 2}),
        ("v4_checkpoint", {"data": 2}),
        ("v4_checkpoint", {"data": 2, "expert": 2}),
    ],
)
def test_gradients_of_other_models_too(ranks, alone, checkpoint, mesh, request):
    path = str(request.getfixturevalue(checkpoint))
    expected = alone(job("gradients"), path, {})
    for found in ranks.run(2, job("gradients"), path, mesh):
        assert found["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            assert (found["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_indexers_are_taught_as_by_one_process(ranks, alone, stage, tmp_path_factory):
    """Their loss does not pass through the outputs of their layers, which is where FSDP2 gathers weights again."""
    shape = {"index_topk": 12, "index_n_heads": 16, "index_head_dim": 64}
    path = make_architecture(tmp_path_factory.mktemp("v32") / "checkpoint", "deepseek_v32", **shape)
    expected = alone(job("indexer_steps"), str(path), {}, stage)
    for found in ranks.run(2, job("indexer_steps"), str(path), {"data": 2}, stage):
        for one, other in zip(found["metrics"], expected["metrics"], strict=True):
            assert_same_numbers(one, other)
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, atol=3e-5, rtol=0)  # lr is 1e-3


@pytest.mark.parametrize(("size", "mesh"), [FSDP, EP_OVER_FSDP])
def test_supervised_steps_are_those_of_one_process(ranks, alone, tiny_checkpoint, size, mesh):
    """Clipping, decay, selection biases: all as one process does them, and the same on every rank, bit for bit. So
    is the average of the weights."""
    expected = alone(job("steps"), str(tiny_checkpoint), {})
    results = ranks.run(size, job("steps"), str(tiny_checkpoint), mesh)
    for found in results:
        for one, other in zip(found["metrics"], expected["metrics"], strict=True):
            assert_same_numbers(one, other)
        assert found["metrics"] == results[0]["metrics"]
        for name, bias in expected["biases"].items():
            assert torch.equal(found["biases"][name], bias) and bias.any(), name
        for name, weight in expected["weights"].items():
            assert torch.equal(found["weights"][name], results[0]["weights"][name])
            torch.testing.assert_close(found["weights"][name], weight, atol=3e-5, rtol=0)  # lr is 1e-3
        assert_same_weights(found["average"], expected["average"])


@pytest.mark.parametrize(
    ("size", "mesh"),
    [FSDP, pytest.param(2, {"context": 2}, id="context2"), pytest.param(2, {"pipeline": 2}, id="pipeline2")],
)
def test_a_loss_that_is_made_again_is_that_of_one_process(ranks, alone, deep_checkpoint, size, mesh):
    checkpoint = str(deep_checkpoint)
    expected = alone(job("guessed_step"), checkpoint, {})
    assert expected["loss/moved_masks"] > 0 and expected["policy/entropy"] > 0
    for found in ranks.run(size, job("guessed_step"), checkpoint, mesh):
        assert_same_numbers(found, expected)


@pytest.mark.parametrize(
    ("size", "mesh", "replay"), [(*FSDP.values, "off"), (*EP_OVER_FSDP.values, "trainer")], ids=str
)
def test_policy_steps_are_those_of_one_process(ranks, alone, tiny_checkpoint, size, mesh, replay):
    expected = alone(job("policy_steps"), str(tiny_checkpoint), {}, replay)
    results = ranks.run(size, job("policy_steps"), str(tiny_checkpoint), mesh, replay)
    logprobs = {key: value for found in results for key, value in found["logprobs"].items()}
    assert logprobs.keys() == expected["logprobs"].keys()
    for key, (old, ref) in expected["logprobs"].items():
        # After a step of Adam, which magnifies the roundings of small gradients.
        np.testing.assert_allclose(logprobs[key][0], old, rtol=1e-5, atol=5e-5)
        np.testing.assert_allclose(logprobs[key][1], ref, rtol=1e-5, atol=5e-5)
    for found in results:
        for one, other in zip(found["metrics"], expected["metrics"], strict=True):
            assert_same_numbers(one, other)


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative distance of the weights that differ most."""
    assert one.keys() == other.keys()
    norms = {name: weight.double().norm() for name, weight in other.items()}
    return max(float((one[n].double() - other[n].double()).norm() / norm) for n, norm in norms.items() if norm > 0)


@pytest.mark.parametrize(("size", "mesh"), [FSDP, EP_OVER_FSDP])
def test_muon_over_ranks_differs_by_what_its_rounding_makes_of_the_order_of_rows(
    ranks, alone, deep_checkpoint, size, mesh
):
    """Muon multiplies in bfloat16 and magnifies what is small, so that 1e-5 of one process is not to be had."""
    deep = str(deep_checkpoint)
    expected, backwards = (alone(job("muon_steps"), deep, {}, order) for order in (False, True))
    rounding = furthest(backwards["weights"], expected["weights"])
    found = ranks.run(size, job("muon_steps"), deep, mesh)[0]
    assert 1e-5 < rounding < 2e-3 and furthest(found["weights"], expected["weights"]) < 3 * rounding
    assert found["losses"][:2] == pytest.approx(expected["losses"][:2], rel=1e-4)


def test_muon_goes_on_from_the_state_of_another_mesh(ranks, deep_checkpoint, tmp_path):
    deep = str(deep_checkpoint)
    four, two = {"data": 4, "expert": 2}, {"data": 2}
    expected = ranks.run(4, job("muon_steps"), deep, four, False, str(tmp_path))[0]
    same, other = (ranks.run(n, job("muon_resume"), deep, mesh, str(tmp_path))[0] for n, mesh in ((4, four), (2, two)))
    assert same["losses"][0] == expected["losses"][2] and furthest(same["weights"], expected["weights"]) == 0
    assert other["losses"][0] == pytest.approx(expected["losses"][2], rel=1e-5)
    assert furthest(other["weights"], expected["weights"]) < 1e-3


@pytest.mark.parametrize(("size", "mesh"), [FSDP, EP_OVER_FSDP])
def test_ranks_lend_their_device_and_go_on_bit_for_bit(ranks, tiny_checkpoint, size, mesh):
    kept, lent = (ranks.run(size, job("offloaded_steps"), str(tiny_checkpoint), mesh, way) for way in ("none", "all"))
    for one, other in zip(kept, lent, strict=True):
        assert one["metrics"] == other["metrics"] and one["sent"] == other["sent"]
        assert min(one["held"].values()) > 0 and not any(other["held"].values())


def test_a_mesh_repeats_itself_bit_for_bit(ranks, tiny_checkpoint):
    one, other = (ranks.run(4, job("steps"), str(tiny_checkpoint), {"data": 4, "expert": 2})[0] for _ in range(2))
    assert one["metrics"] == other["metrics"]
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_ranks_without_anything_to_train_on_take_part(ranks, alone, tiny_checkpoint, recompute):
    """In the collectives of layers that are computed again as well."""
    expected = alone(job("one_sequence"), str(tiny_checkpoint), {})
    for found in ranks.run(4, job("one_sequence"), str(tiny_checkpoint), {"data": 4, "expert": 2}, recompute):
        assert_same_numbers(found, expected)


def test_missing_routes_of_one_rank_are_an_error_on_all(ranks, tiny_checkpoint):
    first, second = ranks.run(2, job("missing_routes"), str(tiny_checkpoint), {"data": 2})
    assert first == second and first.startswith("4 of 4 completions came without routed experts")


def test_bfloat16_multiplies_coarsely_and_keeps_fine_weights(ranks, alone, tiny_checkpoint):
    fine = alone(job("steps"), str(tiny_checkpoint), {})
    coarse = alone(job("steps"), str(tiny_checkpoint), {}, "bfloat16")
    assert coarse["metrics"][0]["loss/nll"] != fine["metrics"][0]["loss/nll"]
    for one, other in zip(coarse["metrics"], fine["metrics"], strict=True):
        assert one["loss/nll"] == pytest.approx(other["loss/nll"], rel=0.01)
    (found, _) = ranks.run(2, job("steps"), str(tiny_checkpoint), {"data": 2}, "bfloat16")
    assert found["metrics"][0]["loss/nll"] == pytest.approx(coarse["metrics"][0]["loss/nll"], rel=1e-5)
    for weights in (coarse["weights"], found["weights"]):
        assert all(w.dtype == torch.float32 for w in weights.values())
        assert any((w != w.bfloat16()).any() for w in weights.values())
    assert_same_weights(found["average"], coarse["average"])


def test_experts_in_fp8_multiply_what_arrives(ranks, tiny_checkpoint):
    """FP8 scales belong to single tokens in forward, so where a token's expert lives changes nothing."""
    (expected,) = ranks.run(1, job("fp8_loss"), str(tiny_checkpoint), {})
    for found in ranks.run(4, job("fp8_loss"), str(tiny_checkpoint), {"data": 4, "expert": 4}):
        assert found == pytest.approx(expected, rel=1e-4)


def test_tokens_that_travel_in_fp8_arrive_as_their_experts_would_have_rounded_them(ranks, tiny_checkpoint):
    """With powers of two, rounding again changes nothing: the loss is the same bit for bit. Gradients of what comes
    back are rounded on the way instead of after it, and weights' gradients are of tokens rounded twice."""
    mesh = {"data": 2, "expert": 2}
    plain, *_ = ranks.run(2, job("fp8_dispatch"), str(tiny_checkpoint), mesh, False)
    found, *_ = ranks.run(2, job("fp8_dispatch"), str(tiny_checkpoint), mesh, True)
    assert found["losses"] == plain["losses"]
    assert 0.6 < found["bytes"] / plain["bytes"] < 0.7  # one direction of two: 1 + 4 / 64 bytes in place of 4
    for name, gradient in plain["gradients"].items():
        assert (found["gradients"][name] - gradient).norm() <= 0.05 * gradient.norm(), name
    assert any((found["gradients"][n] != g).any() for n, g in plain["gradients"].items())


def test_sharded_weights_in_fp8_give_the_gradients_of_one_process(ranks, alone, tiny_checkpoint):
    """Each row is multiplied by one rank, so its tiles are the same tiles."""
    expected = alone(job("gradients"), str(tiny_checkpoint), {}, "fp8")
    fine = alone(job("gradients"), str(tiny_checkpoint), {})
    assert expected["losses"] != fine["losses"]
    for found in ranks.run(2, job("gradients"), str(tiny_checkpoint), {"data": 2}, "fp8"):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        for name, gradient in expected["gradients"].items():
            assert (found["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("mesh", [{"data": 2}, {"data": 2, "expert": 2}, {"pipeline": 2}, {"context": 2}])
def test_what_fp8_rounds_away_is_told_of_all_ranks(ranks, deep_checkpoint, mesh):
    (plain,) = ranks.run(1, job("fp8_rounding"), str(deep_checkpoint), {}, 0)
    (alone,) = ranks.run(1, job("fp8_rounding"), str(deep_checkpoint), {}, 2)
    told = {name for metrics in alone for name in metrics if name.startswith("fp8/")}
    assert len(told) == 8 and told <= alone[1].keys()
    for metrics, quiet in zip(alone, plain, strict=True):  # nothing else changes by it, to the bit
        assert {name: value for name, value in metrics.items() if name not in told} == quiet
    assert [told <= metrics.keys() for metrics in alone] == [False, True, False]
    assert 0.02 < alone[1]["fp8/activations_error"] <= alone[1]["fp8/activations_error_max"] < 0.05
    assert 0 < alone[1]["fp8/gradients_zeroed"] <= alone[1]["fp8/gradients_zeroed_max"] < 0.2
    (alone,) = ranks.run(1, job("fp8_rounding"), str(deep_checkpoint), {}, 1)
    for found in ranks.run(2, job("fp8_rounding"), str(deep_checkpoint), mesh, 1):
        for name in told:  # of the same weights: those of later steps differ, by roundings
            assert found[0][name] == pytest.approx(alone[0][name], rel=2e-2), name


# --- on disk -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(ranks, tiny_checkpoint, tmp_path_factory) -> tuple[Path, dict]:
    """What four ranks have saved, and the step they took after it."""
    folder = tmp_path_factory.mktemp("saved")
    after = ranks.run(4, job("train_and_save"), str(tiny_checkpoint), {"data": 4, "expert": 2}, str(folder))
    return folder, after[0]


@pytest.mark.parametrize(("size", "mesh"), [pytest.param(1, {}, id="one"), FSDP, EP_OVER_FSDP])
def test_what_four_ranks_saved_any_number_goes_on_from(ranks, tiny_checkpoint, saved, size, mesh, tmp_path):
    """With the average of the weights, which is saved in pieces."""
    folder, expected = saved
    for found in ranks.run(size, job("resume"), str(tiny_checkpoint), mesh, str(folder), str(tmp_path)):
        assert_same_numbers(found, expected)
    assert_same_average(tmp_path, folder / "average")


def test_what_one_process_saved_four_ranks_go_on_from(ranks, tiny_checkpoint, tmp_path):
    """The reference policy of GRPO with it, and the average of the weights."""
    (expected,) = ranks.run(1, job("policy_save"), str(tiny_checkpoint), {}, str(tmp_path))
    folders = str(tmp_path), str(tmp_path / "resumed")
    for found in ranks.run(4, job("policy_resume"), str(tiny_checkpoint), {"data": 4, "expert": 2}, *folders):
        assert_same_numbers(found, expected)
    assert_same_average(tmp_path / "resumed", tmp_path / "average")


def test_a_checkpoint_of_ranks_is_the_one_that_a_single_process_writes(ranks, alone, tiny_checkpoint, saved, tmp_path):
    ranks.run(1, job("train_and_save"), str(tiny_checkpoint), {}, str(tmp_path))
    one, many = tmp_path / "hub", saved[0] / "hub"
    expected, found = load_file(one / "model.safetensors"), load_file(many / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=3e-5, rtol=0)
    assert sorted(path.name for path in many.iterdir()) == sorted(path.name for path in one.iterdir())
    assert (many / "config.json").read_bytes() == (one / "config.json").read_bytes()
    assert_same_average(saved[0] / "average", tmp_path / "average")


def test_generators_are_sent_whole_weights(ranks, alone, tiny_checkpoint, tmp_path):
    """By rank 0 alone, with names, shapes and bytes of one process; the probe is scored by all."""
    expected = alone(job("sent_weights"), str(tiny_checkpoint), {}, str(tmp_path / "one"))
    mesh = {"data": 4, "expert": 2}
    first, *others = ranks.run(4, job("sent_weights"), str(tiny_checkpoint), mesh, str(tmp_path / "many"))
    assert first["shapes"] == expected["shapes"]
    assert first["checksums"] == expected["checksums"] == first["sums_of_buckets"]
    assert not any(other["checksums"] or other["sums_of_buckets"] for other in others)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) > 1 and names == sorted(path.name for path in (tmp_path / "many").iterdir())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "many" / n).read_bytes() for n in names)
    for scores, others in zip(first["scores"], expected["scores"], strict=True):
        np.testing.assert_allclose(scores, others, atol=1e-5)

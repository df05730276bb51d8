"""A policy whose layers are cut over a pipeline of ranks computes what one process does. Real processes, gloo, float32.

"The same" means within 1e-5 relative, of losses and gradients, as in tests/test_training_parallel.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import make_checkpoint
from tests.gloo_ranks import GlooRanks
from tests.test_training_parallel import assert_same_average, assert_same_weights

PIPELINE = pytest.param(2, {"pipeline": 2}, id="pp2")
OVER_FSDP = pytest.param(4, {"pipeline": 2, "data": 2}, id="pp2-over-fsdp2")
OVER_EXPERTS = pytest.param(4, {"pipeline": 2, "data": 2, "expert": 2}, id="pp2-over-ep2")
OVER_CONTEXT = pytest.param(4, {"pipeline": 2, "context": 2}, id="pp2-over-cp2")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks():
    ranks = GlooRanks(4)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """Five layers for four chunks, so that one has two."""
    return str(make_checkpoint(tmp_path_factory.mktemp("deep") / "checkpoint", num_layers=5))


def job(name: str) -> str:
    return f"tests.parallel_jobs:{name}"


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the ranks of a pipeline hold of something, by name: each has names of its own."""
    return {name: value for part in parts for name, value in part.items()}


def assert_same_gradients(results: list[dict[str, Any]], expected: dict[str, Any], rel: float = 1e-5) -> None:
    for found in results:
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        for name, gradient in found["gradients"].items():
            error = (gradient.double() - expected["gradients"][name].double()).norm()
            assert error <= rel * expected["gradients"][name].double().norm(), name
    assert merged([found["gradients"] for found in results]).keys() == expected["gradients"].keys()
    assert len(results[0]["gradients"]) < len(expected["gradients"])


def assert_same_metrics(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Of several steps. After one of Adam, which magnifies the roundings of small gradients, a little less so."""
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, rel=2e-4 if step else 1e-5, abs=1e-6)


@pytest.mark.parametrize(("size", "mesh"), [PIPELINE, OVER_FSDP, OVER_EXPERTS, OVER_CONTEXT])
def test_losses_and_every_gradient_are_those_of_one_process(ranks, checkpoint, size, mesh):
    """With MTP and balance loss, rows of several lengths, and fewer rows per rank than chunks."""
    expected = ranks.alone(job("gradients"), checkpoint, {})
    assert_same_gradients(ranks.run(size, job("gradients"), checkpoint, mesh), expected)


def test_ranks_in_the_middle_of_a_pipeline_of_four_do_their_part(ranks, tmp_path):
    """Eight chunks and nine layers; no text or loss reaches ranks 1 and 2."""
    deep = str(make_checkpoint(tmp_path / "deep", num_layers=9))
    expected = ranks.alone(job("gradients"), deep, {})
    assert_same_gradients(ranks.run(4, job("gradients"), deep, {"pipeline": 4}), expected)


def test_a_head_that_is_the_embedding_gets_both_gradients(ranks, tmp_path):
    dense = {"architecture": "llama", "num_heads": 2, "num_layers": 4}
    tied = str(make_checkpoint(tmp_path / "tied", tie_embeddings=True, **dense))
    expected = ranks.alone(job("gradients"), tied, {})
    assert_same_gradients(ranks.run(4, job("gradients"), tied, {"pipeline": 2, "data": 2}), expected)


@pytest.mark.parametrize("precision", ["fp8", "bfloat16"])
def test_other_precisions_too(ranks, checkpoint, precision):
    """In bfloat16, gradients that two chunks send to the embedding are added up in another order."""
    expected = ranks.alone(job("gradients"), checkpoint, {}, precision)
    rel = {"fp8": 1e-5, "bfloat16": 1e-2}[precision]
    assert_same_gradients(ranks.run(2, job("gradients"), checkpoint, {"pipeline": 2}, precision), expected, rel)


@pytest.mark.parametrize(("size", "mesh"), [PIPELINE, OVER_EXPERTS])
def test_supervised_steps_are_those_of_one_process(ranks, checkpoint, size, mesh):
    """Clipping by the norm of all chunks, selection biases, load metrics; equal metrics on all ranks, bit for bit."""
    expected = ranks.alone(job("steps"), checkpoint, {})
    results = ranks.run(size, job("steps"), checkpoint, mesh)
    assert_same_metrics(results[0]["metrics"], expected["metrics"])
    assert all(found["metrics"] == results[0]["metrics"] for found in results)
    biases, weights = (merged([found[kind] for found in results]) for kind in ("biases", "weights"))
    assert biases.keys() == expected["biases"].keys() and weights.keys() == expected["weights"].keys()
    assert all(torch.equal(biases[name], bias) and bias.any() for name, bias in expected["biases"].items())
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(weights[name], weight, atol=2e-4, rtol=0)  # three steps of 1e-3
    assert_same_weights(merged([found["average"] for found in results]), expected["average"], rel=5e-5)


def test_supervised_steps_over_a_context_are_those_of_one_process(ranks, checkpoint):
    """eps: see tests/test_training_context.py."""
    settings = "float32", True, 1e-3
    expected = ranks.alone(job("steps"), checkpoint, {}, *settings)
    results = ranks.run(4, job("steps"), checkpoint, OVER_CONTEXT.values[1], *settings)
    assert all(found["metrics"] == results[0]["metrics"] for found in results)
    assert_same_metrics(results[0]["metrics"], expected["metrics"])
    weights = merged([found["weights"] for found in results])
    assert weights.keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "mesh", "replay"),
    [
        (*PIPELINE.values, "off"),
        (*PIPELINE.values, "rollout"),
        (*OVER_EXPERTS.values, "trainer"),
        (*OVER_CONTEXT.values, "trainer"),
    ],
    ids=str,
)
def test_policy_steps_are_those_of_one_process(ranks, checkpoint, size, mesh, replay):
    """Old and reference logprobs, which run forward alone, and experts that are replayed chunk by chunk."""
    expected = ranks.alone(job("policy_steps"), checkpoint, {}, replay)
    results = ranks.run(size, job("policy_steps"), checkpoint, mesh, replay)
    for found in results:
        assert_same_metrics(found["metrics"], expected["metrics"])
    logprobs = merged([found["logprobs"] for found in results])
    assert logprobs.keys() == expected["logprobs"].keys()
    for key, (old, ref) in expected["logprobs"].items():
        np.testing.assert_allclose(logprobs[key][0], old, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(logprobs[key][1], ref, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("recompute", ["none", "blocks", "norms_and_up_projections"])
def test_a_single_sequence_passes_among_empty_rows(ranks, checkpoint, recompute):
    expected = ranks.alone(job("one_sequence"), checkpoint, {})
    for found in ranks.run(
        *OVER_EXPERTS.values[:1], job("one_sequence"), checkpoint, OVER_EXPERTS.values[1], recompute
    ):
        assert_same_metrics([found], [expected])


def test_a_row_alone_is_refused_in_a_sentence(ranks, checkpoint):
    for said in ranks.run(2, job("one_row"), checkpoint, {"pipeline": 2}):
        assert said == "a single row does not go through a pipeline: use Trainer.learn or Trainer.read"


# --- on disk -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(ranks, checkpoint, tmp_path_factory) -> tuple[Path, dict]:
    """What a pipeline of two over two has saved, and the step it took after it."""
    folder = tmp_path_factory.mktemp("saved")
    after = ranks.run(4, job("train_and_save"), checkpoint, OVER_EXPERTS.values[1], str(folder))
    return folder, after[0]


@pytest.mark.parametrize(("size", "mesh"), [(1, {}), (2, {"data": 2}), PIPELINE.values, OVER_CONTEXT.values], ids=str)
def test_what_a_pipeline_saved_others_go_on_from(ranks, checkpoint, saved, size, mesh, tmp_path):
    folder, expected = saved
    for found in ranks.run(size, job("resume"), checkpoint, mesh, str(folder), str(tmp_path)):
        assert_same_metrics([found], [expected])
    assert_same_average(tmp_path, folder / "average")


def test_a_pipeline_goes_on_bit_for_bit(ranks, checkpoint, saved, tmp_path):
    folder, expected = saved
    for found in ranks.run(4, job("resume"), checkpoint, OVER_EXPERTS.values[1], str(folder), str(tmp_path)):
        assert found == expected
    assert_same_average(tmp_path, folder / "average", rel=0)


def test_a_pipeline_goes_on_from_what_one_process_saved(ranks, checkpoint, tmp_path):
    """The reference policy of GRPO with it."""
    (expected,) = ranks.run(1, job("policy_save"), checkpoint, {}, str(tmp_path))
    folders = str(tmp_path), str(tmp_path / "resumed")
    for found in ranks.run(2, job("policy_resume"), checkpoint, {"pipeline": 2}, *folders):
        assert_same_metrics([found], [expected])
    assert_same_average(tmp_path / "resumed", tmp_path / "average")


def test_a_checkpoint_of_a_pipeline_is_the_one_that_a_single_process_writes(ranks, checkpoint, saved, tmp_path):
    ranks.run(1, job("train_and_save"), checkpoint, {}, str(tmp_path))
    one, many = tmp_path / "hub", saved[0] / "hub"
    expected, found = load_file(one / "model.safetensors"), load_file(many / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=0)  # two steps of 1e-3
    assert sorted(path.name for path in many.iterdir()) == sorted(path.name for path in one.iterdir())
    assert (many / "config.json").read_bytes() == (one / "config.json").read_bytes()
    assert_same_average(saved[0] / "average", tmp_path / "average", rel=5e-5)


@pytest.mark.parametrize("mesh", [OVER_EXPERTS.values[1], OVER_CONTEXT.values[1]], ids=str)
def test_generators_are_sent_what_one_process_sends(ranks, checkpoint, mesh, tmp_path):
    """By rank 0 alone: names in their order, shapes and bytes; the probe is scored by all."""
    expected = ranks.alone(job("sent_weights"), checkpoint, {}, str(tmp_path / "one"))
    first, *others = ranks.run(4, job("sent_weights"), checkpoint, mesh, str(tmp_path / "many"))
    assert first["shapes"] == expected["shapes"]
    assert list(first["checksums"].items()) == list(expected["checksums"].items())
    assert first["sums_of_buckets"] == expected["sums_of_buckets"]
    assert not any(other["checksums"] or other["sums_of_buckets"] for other in others)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) > 1 and names == sorted(path.name for path in (tmp_path / "many").iterdir())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "many" / n).read_bytes() for n in names)
    for found, scores in zip(first["scores"], expected["scores"], strict=True):
        np.testing.assert_allclose(found, scores, atol=1e-5)

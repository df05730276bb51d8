"""Ranks that share the tokens of a row compute what one process does. Real processes, gloo, float32.

"The same" means within 1e-5 relative, of losses and gradients, as in tests/test_training_parallel.py.
"""

import numpy as np
import pytest
import torch

from sft.config import SFTConfig
from tests.architectures import make_architecture
from tests.gloo_ranks import GlooRanks
from tests.test_training_parallel import assert_same_average, assert_same_weights
from training.context import ContextGroup
from training.mesh import MeshConfig

CONTEXT = pytest.param(2, {"context": 2}, id="cp2")
OVER_DATA = pytest.param(4, {"context": 2, "data": 2}, id="cp2-over-fsdp2")
OVER_EXPERTS = pytest.param(4, {"context": 2, "data": 2, "expert": 2}, id="cp2-over-ep2")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks():
    ranks = GlooRanks(4)
    yield ranks
    ranks.close()


def job(name: str) -> str:
    return f"tests.parallel_jobs:{name}"


def assert_same_gradients(results, expected) -> None:
    for found in results:
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert found["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            error = (found["gradients"][name].double() - gradient.double()).norm()
            assert error <= 1e-5 * gradient.double().norm(), name


@pytest.mark.parametrize("ranks_and_tokens", [(2, 1), (2, 3), (3, 100), (4, 31)])
def test_every_token_of_a_row_is_on_one_rank_and_queries_are_as_many_everywhere(ranks_and_tokens):
    size, tokens = ranks_and_tokens
    groups = [ContextGroup(None, place, size) for place in range(size)]  # pyright: ignore[reportArgumentType]
    shares = [group.here(tokens) for group in groups]
    padded = tokens + groups[0].missing(tokens)
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(padded))
    assert torch.equal(torch.cat(shares)[groups[0].order(tokens)], torch.arange(padded))
    lengths = [padded // 3, padded - padded // 3]
    for group, share in zip(groups, shares, strict=True):
        asked = [share[at + i].item() for at, count, _, _ in group._queries(lengths) for i in range(count)]
        assert asked == share.tolist()
        for at, count, start, seen in group._queries(lengths):  # the last query of a run sees the last key
            assert share[at + count - 1].item() == start + seen - 1
    pairs = [int((share + 1).sum()) for share in shares]  # of query and key, in a row of one sequence
    assert max(pairs) - min(pairs) <= 2 * padded


@pytest.mark.parametrize(
    ("size", "mesh"), [CONTEXT, OVER_DATA, OVER_EXPERTS, pytest.param(4, {"context": 4}, id="cp4")]
)
def test_losses_and_every_gradient_are_those_of_one_process(ranks, tiny_checkpoint, size, mesh):
    expected = ranks.alone(job("gradients"), str(tiny_checkpoint), {})
    assert_same_gradients(ranks.run(size, job("gradients"), str(tiny_checkpoint), mesh), expected)


@pytest.mark.parametrize("checkpoint", ["llama_checkpoint", "tied_checkpoint"])
def test_gradients_of_other_models_too(ranks, checkpoint, request):
    path = str(request.getfixturevalue(checkpoint))
    expected = ranks.alone(job("gradients"), path, {})
    assert_same_gradients(ranks.run(2, job("gradients"), path, {"context": 2}), expected)


def test_what_is_computed_again_is_gathered_again(ranks, tiny_checkpoint):
    expected = ranks.alone(job("gradients"), str(tiny_checkpoint), {})
    found = ranks.run(2, job("gradients"), str(tiny_checkpoint), {"context": 2}, "float32", True, "blocks")
    assert_same_gradients(found, expected)


def test_supervised_steps_are_those_of_one_process(ranks, tiny_checkpoint):
    """Clipping, decay, selection biases, MTP, balance loss. Attention in pieces rounds otherwise where a gradient is
    zero, which AdamW would magnify."""
    settings = "float32", True, 1e-3
    expected = ranks.alone(job("steps"), str(tiny_checkpoint), {}, *settings)
    results = ranks.run(4, job("steps"), str(tiny_checkpoint), {"context": 2, "data": 2}, *settings)
    for found in results:
        assert found["metrics"] == results[0]["metrics"]
        for step, (one, other) in enumerate(zip(found["metrics"], expected["metrics"], strict=True)):
            assert one == pytest.approx(other, rel=5e-5 if step else 1e-5, abs=1e-6)
        for name, bias in expected["biases"].items():
            assert torch.equal(found["biases"][name], bias) and bias.any(), name
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, atol=1e-6, rtol=0)  # lr is 1e-3
        assert_same_weights(found["average"], expected["average"], rel=5e-5)


@pytest.mark.parametrize("replay", ["off", "rollout", "trainer"])
def test_policy_steps_are_those_of_one_process(ranks, tiny_checkpoint, replay):
    expected = ranks.alone(job("policy_steps"), str(tiny_checkpoint), {}, replay)
    for found in ranks.run(2, job("policy_steps"), str(tiny_checkpoint), {"context": 2}, replay):
        assert found["logprobs"].keys() == expected["logprobs"].keys()
        for key, (old, ref) in expected["logprobs"].items():
            np.testing.assert_allclose(found["logprobs"][key][0], old, rtol=1e-5, atol=5e-5)
            np.testing.assert_allclose(found["logprobs"][key][1], ref, rtol=1e-5, atol=5e-5)
        for one, other in zip(found["metrics"], expected["metrics"], strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_ranks_without_tokens_or_rows_take_part(ranks, tiny_checkpoint):
    expected = ranks.alone(job("one_sequence"), str(tiny_checkpoint), {})
    for found in ranks.run(4, job("one_sequence"), str(tiny_checkpoint), {"context": 2, "data": 2}, "blocks"):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_saved_state_goes_on_without_context(ranks, tiny_checkpoint, tmp_path):
    saved = ranks.run(2, job("policy_save"), str(tiny_checkpoint), {"context": 2}, str(tmp_path))[0]
    resumed = ranks.alone(job("policy_resume"), str(tiny_checkpoint), {}, str(tmp_path), str(tmp_path / "resumed"))
    assert resumed == pytest.approx(saved, rel=1e-5, abs=1e-6)
    assert_same_average(tmp_path / "resumed", tmp_path / "average")


def test_what_needs_whole_rows_is_refused(tmp_path):
    v4 = make_architecture(tmp_path / "v4", "deepseek_v4")
    with pytest.raises(ValueError, match=r"joint needs whole rows.*mesh\.context to 1"):
        SFTConfig(trainer={"mesh": {"context": 2}}, mtp_weight=0, indexer="joint")  # pyright: ignore[reportArgumentType]
    from transformers import AutoConfig

    with pytest.raises(ValueError, match="deepseek_v4's attention compresses tokens"):
        MeshConfig(context=2).check_model(AutoConfig.from_pretrained(v4))

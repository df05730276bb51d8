"""How decoder layers are cut over a pipeline, and that the parts together are the policy, for every architecture."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.checkpoint import load_model, load_mtp_module
from sft.batch import Example, pack_examples
from tests.architectures import make_architecture
from tests.conftest import make_checkpoint
from training.layers import PolicyPart, cut, rank_of_chunk, rank_of_weight
from training.policy import Policy, RowTensors


@given(ranks=st.integers(1, 16), more=st.integers(0, 100))
def test_chunks_follow_each_other_and_are_about_equal(ranks, more):
    layers = 2 * ranks + more
    chunks = cut(layers, ranks)
    assert len(chunks) == 2 * ranks and [layer for chunk in chunks for layer in chunk] == list(range(layers))
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == sizes[-1] == min(sizes) or sizes[0] == min(sizes) < max(sizes) == min(sizes[1:])


@given(ranks=st.integers(1, 16))
def test_every_rank_has_two_chunks_and_the_first_has_both_ends(ranks):
    held = [rank_of_chunk(chunk, ranks) for chunk in range(2 * ranks)]
    assert sorted(held) == sorted([*range(ranks), *range(ranks)]) and held[0] == held[-1] == 0


def test_too_few_layers_cannot_be_cut():
    with pytest.raises(ValueError, match="3 layers cannot be cut into 4 chunks"):
        cut(3, 2)


def test_a_weight_is_where_its_layer_is():
    """Seven layers over three ranks: 0 | 1 2 | 3 | 4 | 5 | 6."""
    ranks = [rank_of_weight(f"model.layers.{layer}.mlp.gate.weight", 7, 3) for layer in range(7)]
    assert ranks == [0, 1, 1, 2, 2, 1, 0]
    ends = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    assert all(rank_of_weight(name, 7, 3) == 0 for name in ends)


def row() -> RowTensors:
    rng = np.random.default_rng(0)
    examples = [Example(token_ids=rng.integers(8, 300, n), loss_mask=np.arange(n) >= 2) for n in (12, 20, 9)]
    (packed,) = pack_examples(examples, 64)
    return RowTensors.of(packed, torch.device("cpu"))


def through_parts(checkpoint, ranks: int):
    """Each part from a model of its own, as ranks have it; the row goes through all chunks in turn."""
    parts = []
    for rank in range(ranks):
        model = load_model(checkpoint)
        parts.append(PolicyPart(model, load_mtp_module(checkpoint, model.config), rank, ranks))
    hidden = None
    for chunk in range(2 * ranks):
        hidden = parts[rank_of_chunk(chunk, ranks)](row(), chunk, hidden, None, "joint")
    return hidden, parts


@pytest.mark.parametrize(
    "architecture", ["deepseek_v2", "deepseek_v3", "deepseek_v32", "qwen3_moe", "llama", "qwen2", "qwen3"]
)
def test_the_parts_of_every_architecture_are_the_policy(architecture, tmp_path):
    checkpoint = make_architecture(tmp_path / architecture, architecture, num_hidden_layers=4)
    found, _ = through_parts(checkpoint, 2)
    assert torch.equal(found.loss, Policy(load_model(checkpoint))(row(), None).loss)


def test_the_parts_hold_every_weight_once_and_the_mtp_module_is_with_the_head(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", num_layers=7)
    found, parts = through_parts(checkpoint, 3)
    model = load_model(checkpoint)
    whole = Policy(model, load_mtp_module(checkpoint, model.config))
    expected = whole(row(), None, "joint")
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.mtp_nll, expected.mtp_nll)
    names = [name for part in parts for name in part.state_dict()]
    assert len(names) == len(set(names)) and set(names) == set(whole.state_dict())
    assert [part.mtp is not None for part in parts] == [True, False, False]

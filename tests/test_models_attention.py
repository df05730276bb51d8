"""Packed attention against transformers' own, one sequence at a time."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from models.attention import NAME, PackedLayout, attend_causally
from models.checkpoint import load_model

LENGTHS = [5, 23, 1, 17, 40, 2, 19, 22]


def grouped_query_llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=128, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter *= 25 if "q_proj" in name else 5
    return model


@pytest.fixture(scope="module", params=["deepseek_v3", "llama_grouped_query"])
def models(request, tiny_checkpoint):
    """(packed model, reference with transformers' eager attention), the same weights."""
    if request.param == "deepseek_v3":
        reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attn_implementation="eager")
        return load_model(tiny_checkpoint).eval(), reference.eval()
    reference = grouped_query_llama()
    packed = copy.deepcopy(reference)
    packed.set_attn_implementation(NAME)
    return packed, reference


def sequences_of(lengths, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, 300, (n,), generator=generator) for n in lengths]


def packed_logits(model, sequences) -> torch.Tensor:
    packing = PackedLayout.from_lengths([len(s) for s in sequences])
    positions = torch.cat([torch.arange(len(s)) for s in sequences])
    return model(
        input_ids=torch.cat(sequences)[None], position_ids=positions[None], use_cache=False, layout=packing
    ).logits[0]


def test_attention_of_the_test_models_is_peaked(models):
    """Otherwise these tests would pass with attention to the wrong sequence."""
    _, reference = models
    (sequence,) = sequences_of([40])
    with torch.no_grad():
        weights = reference(sequence[None], output_attentions=True).attentions
    assert max(float(layer[0, :, -1].max()) for layer in weights) > 0.5


def test_packed_logits_equal_one_sequence_at_a_time(models):
    packed, reference = models
    sequences = sequences_of(LENGTHS)
    with torch.no_grad():
        expected = torch.cat([reference(s[None]).logits[0] for s in sequences])
        got = packed_logits(packed, sequences)
    torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_packed_gradient_equals_one_sequence_at_a_time(models):
    packed, reference = models
    sequences = sequences_of(LENGTHS)
    weight = torch.randn(sum(LENGTHS), packed.config.vocab_size, generator=torch.Generator().manual_seed(3))
    packed.zero_grad()
    reference.zero_grad()
    (packed_logits(packed, sequences) * weight).sum().backward()
    (torch.cat([reference(s[None]).logits[0] for s in sequences]) * weight).sum().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in packed.named_parameters():
        scale = float(expected[name].grad.abs().max())
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, atol=1e-4 * scale, rtol=0, msg=lambda m, n=name: n + m
        )


def test_a_sequence_does_not_see_the_others(models):
    packed, _ = models
    sequences = sequences_of(LENGTHS)
    changed = list(sequences)
    changed[3] = (sequences[3] + 7) % 300
    start, end = sum(LENGTHS[:3]), sum(LENGTHS[:4])
    with torch.no_grad():
        before, after = packed_logits(packed, sequences), packed_logits(packed, changed)
    others = torch.ones(len(before), dtype=torch.bool)
    others[start:end] = False
    # MoE kernels round by how many tokens an expert gets, so not bit for bit.
    torch.testing.assert_close(after[others], before[others], atol=1e-5 * float(before.abs().max()), rtol=0)
    assert not torch.allclose(after[start:end], before[start:end], atol=1e-2)


def test_a_token_does_not_see_later_ones(models):
    packed, _ = models
    sequences = sequences_of(LENGTHS)
    changed = [torch.cat([s[:-1], (s[-1:] + 1) % 300]) for s in sequences]
    last = np.cumsum(LENGTHS) - 1
    with torch.no_grad():
        before, after = packed_logits(packed, sequences), packed_logits(packed, changed)
    earlier = torch.ones(len(before), dtype=torch.bool)
    earlier[last] = False
    torch.testing.assert_close(after[earlier], before[earlier], atol=1e-5 * float(before.abs().max()), rtol=0)


def test_forgetting_the_packing_says_so(models):
    packed, _ = models
    with pytest.raises(ValueError, match="needs layout="):
        packed(torch.tensor([[9, 10]]))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_layout_puts_every_token_into_its_sequence_and_back(lengths):
    layout = PackedLayout.from_lengths(lengths)
    total = sum(lengths)
    sequence_of_token = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    slots = torch.cat([gather.flatten() for gather in layout.gathers])
    assert len(set(layout.restore.tolist())) == total
    assert slots[layout.restore].tolist() == list(range(total))
    rows = 0
    for gather in layout.gathers:
        for row in gather:
            rows += 1
            (owner,) = set(sequence_of_token[row].tolist())
            own = row[: lengths[owner]].tolist()
            first = sum(lengths[:owner])
            assert own == list(range(first, first + lengths[owner]))
    assert rows == len(lengths)
    assert len(slots) <= 1.25 * total  # little padding


# --- long sequences ---


def long_inputs(length: int, value_width: int, heads_of_keys: int = 2):
    made = torch.Generator().manual_seed(0)
    shapes = ((2, length, 24), (heads_of_keys, length, 24), (heads_of_keys, length, value_width))
    return [torch.randn(1, *shape, generator=made, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("value_width", [16, 24])  # as in MLA, and as wide as keys
@pytest.mark.parametrize("length", [300, 700])
def test_attention_is_that_of_whole_scores(length, value_width):
    query, key, value = long_inputs(length, value_width)
    out = PackedLayout.from_lengths([length]).attend(None, query, key, value, 0.3)
    scores = (query @ key.transpose(-1, -2) * 0.3).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for got, wanted in zip(
        torch.autograd.grad((out * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [out.numel() for out in tree_leaves(result) if isinstance(out, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_long_sequences_make_no_matrix_of_scores():
    """MLA's values are narrower than its keys, which alone would lead torch to whole scores on CPUs."""
    query, key, value = long_inputs(2048, 16)
    with _Largest() as largest:
        PackedLayout.from_lengths([2048]).attend(None, query, key, value, 0.3).sum().backward()
    assert largest.elements <= 2 * 2048 * 24


def test_the_last_queries_of_a_long_sequence_share_one_mask():
    """As a rank has them that shares a sequence with others (training.context)."""
    query, key, value = long_inputs(2048, 16)
    query, kept = query[:, :, 1024:], []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        out = attend_causally(query, key, value, 0.3)
    assert max(kept) <= 1024 * 2048
    scores = 0.3 * query.double() @ key.double().transpose(2, 3)
    late = torch.arange(2048) > torch.arange(1024, 2048)[:, None]
    expected = scores.masked_fill(late, float("-inf")).softmax(-1) @ value.double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_long_neighbour_leaves_short_sequences_as_they_are():
    """To the bit: they are in blocks of their own."""
    query, key, value = long_inputs(450 + 550, 16)
    both = PackedLayout.from_lengths([450, 550]).attend(None, query, key, value, 0.3)
    alone = PackedLayout.from_lengths([450]).attend(None, *(t[:, :, :450] for t in (query, key, value)), 0.3)
    assert torch.equal(both[:, :450], alone)

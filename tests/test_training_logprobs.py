"""Chunked token logprobs against whole float64 logits."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training import head_chunks
from training.logprobs import LossOf, summed_nll, token_logprobs, token_loss

CHUNKS = pytest.mark.parametrize("rows_per_chunk", [1, 7, 100])  # many, some with a rest, one


def inputs(tokens, width=16, vocab=50, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocab, width, generator=generator)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    return hidden, weight, targets


def reference(hidden, weight, targets, temperature):
    logprobs_TV = torch.log_softmax(hidden.double() @ weight.double().T / temperature, dim=-1)
    return logprobs_TV[torch.arange(len(targets)), targets], -(logprobs_TV.exp() * logprobs_TV).sum(-1)


def limit_chunks(monkeypatch, rows, vocab=50):
    monkeypatch.setitem(head_chunks.CHUNK_ELEMENTS, "cpu", rows * vocab)


def leaves(hidden, weight, dtype=torch.float32):
    return tuple(tensor.detach().clone().to(dtype).requires_grad_() for tensor in (hidden, weight))


def random_support(targets, vocab=50, largest=50, seed=0):
    """One set of different tokens per target, which holds it, as ids and sizes."""
    rng = np.random.default_rng(seed)
    sets = []
    for target in targets.tolist():
        others = rng.permutation([token for token in range(vocab) if token != target])
        sets.append(rng.permutation([target, *others[: rng.integers(0, largest)]]))
    return torch.from_numpy(np.concatenate(sets)), torch.tensor([len(kept) for kept in sets])


def reference_over(support, hidden, weight, targets, temperature):
    """Token by token: the softmax over its set alone."""
    values, entropies = [], []
    for h, target, kept in zip(hidden.double(), targets, support[0].split(support[1].tolist()), strict=True):
        logprobs = torch.log_softmax(weight.double()[kept] @ h / temperature, dim=0)
        values.append(logprobs[kept == target].squeeze())
        entropies.append(-(logprobs.exp() * logprobs).sum())
    return torch.stack(values), torch.stack(entropies)


@given(st.integers(1, 40), st.sampled_from([0.3, 1.0, 2.5]), st.integers(0, 100))
def test_against_float64(tokens, temperature, seed):
    case = inputs(tokens, seed=seed)
    got, entropy = token_logprobs(*case, temperature)
    expected, expected_entropy = reference(*case, temperature)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-4, rtol=1e-4)
    assert got.dtype == entropy.dtype == torch.float32


def gradients(case, temperature, support, scale, entropy_scale=0.0):
    """(of the hidden states, of the head) by float64 autograd through whole logits, of sum(scale * logprobs +
    entropy_scale * entropy)."""
    hidden, weight = leaves(*case[:2], torch.float64)
    of = reference if support is None else partial(reference_over, support)
    logprobs, entropy = of(hidden, weight, case[2], temperature)
    (logprobs * scale + entropy * entropy_scale).sum().backward()
    return hidden.grad, weight.grad


@CHUNKS
@pytest.mark.parametrize("supported", [False, True])
@pytest.mark.parametrize("way", ["values", "loss", "loss, some tokens guessed wrongly"])
def test_gradients_against_float64(monkeypatch, rows_per_chunk, supported, way):
    limit_chunks(monkeypatch, rows_per_chunk)
    case = inputs(20)
    support = random_support(case[2], largest=6) if supported else None
    assert support is None or (support[1] == 1).any()
    scale = torch.randn(20, generator=torch.Generator().manual_seed(5))
    hidden, weight = leaves(*case[:2])
    if way == "values":
        values, entropy = token_logprobs(hidden, weight, case[2], 1.3, support)
        loss = (values * scale).sum()
    else:
        moved = torch.tensor([2, 3, 11, 17, 18] if way != "loss" else [], dtype=torch.int64)
        missing = torch.zeros(20).index_copy(0, moved, scale[moved])

        def of_tokens(logprobs_C, entropy_C, tokens):
            known = scale - missing if isinstance(tokens, slice) else missing
            return (logprobs_C * known[tokens]).sum()

        loss_of = LossOf(of_tokens, moved=lambda logprobs_T: moved)
        loss, values, entropy = token_loss(hidden, weight, case[2], loss_of, 1.3, support)
        torch.testing.assert_close(loss.detach(), (values * scale).sum())
        assert not values.requires_grad and not entropy.requires_grad
    (3 * loss).backward()
    of = reference if support is None else partial(reference_over, support)
    for got, expected in zip((values.detach(), entropy.detach()), of(*case, 1.3), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-4)
    for got, expected in zip((hidden.grad, weight.grad), gradients(case, 1.3, support, 3 * scale), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=3e-5, rtol=1e-4)


@CHUNKS
@pytest.mark.parametrize("supported", [False, True])
@pytest.mark.parametrize("way", ["values", "loss", "entropy alone"])
def test_gradients_of_the_entropy_against_float64(monkeypatch, rows_per_chunk, supported, way):
    limit_chunks(monkeypatch, rows_per_chunk)
    case = inputs(20)
    support = random_support(case[2], largest=6) if supported else None
    scale, by = torch.randn(2, 20, generator=torch.Generator().manual_seed(5))
    if way == "entropy alone":
        scale = torch.zeros(20)
    hidden, weight = leaves(*case[:2])
    if way == "loss":
        loss_of = LossOf(lambda logprobs_C, entropy_C, c: (logprobs_C * scale[c] + entropy_C * by[c]).sum())
        loss, _, _ = token_loss(hidden, weight, case[2], loss_of, 1.3, support)
    else:
        values, entropy = token_logprobs(hidden, weight, case[2], 1.3, support)
        loss = (entropy * by).sum() if way == "entropy alone" else (values * scale + entropy * by).sum()
    loss.backward()
    for got, expected in zip((hidden.grad, weight.grad), gradients(case, 1.3, support, scale, by), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=3e-5, rtol=1e-4)


@CHUNKS
@pytest.mark.parametrize("supported", [False, True])
def test_float64_passes_gradcheck(monkeypatch, rows_per_chunk, supported):
    limit_chunks(monkeypatch, rows_per_chunk, vocab=11)
    hidden, weight, targets = inputs(8, width=5, vocab=11)
    support = random_support(targets, vocab=11, largest=6) if supported else None
    torch.autograd.gradcheck(
        lambda h, w: token_logprobs(h, w, targets, 0.7, support), leaves(hidden, weight, torch.float64)
    )


def test_a_peaked_distribution_has_a_finite_gradient_of_its_entropy():
    hidden, weight, targets = inputs(20, scale=1e3)  # most probabilities are 0 in float32
    hidden.requires_grad_(), weight.requires_grad_()
    token_logprobs(hidden, weight, targets)[1].sum().backward()
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()


@CHUNKS
def test_a_loss_that_bends_has_its_own_gradient(monkeypatch, rows_per_chunk):
    """A clipped surrogate, as of GRPO: what a token weighs depends on its logprob."""
    limit_chunks(monkeypatch, rows_per_chunk)
    hidden, weight, targets = inputs(33)
    old = token_logprobs(hidden, weight, targets)[0] + 0.3 * torch.randn(33, generator=torch.Generator().manual_seed(1))
    advantage = torch.randn(33, generator=torch.Generator().manual_seed(2))

    def surrogate(logprobs, chunk=slice(None)):
        ratio = torch.exp(logprobs - old[chunk])
        clipped = ratio.clamp(0.8, 1.2)
        return -torch.minimum(ratio * advantage[chunk], clipped * advantage[chunk]).sum()

    grads = []
    for way in ("loss", "values"):
        h, w = leaves(hidden, weight)
        in_chunks = LossOf(lambda logprobs_C, _, chunk: surrogate(logprobs_C, chunk))
        loss = token_loss(h, w, targets, in_chunks)[0] if way == "loss" else surrogate(token_logprobs(h, w, targets)[0])
        loss.backward()
        grads.append((loss.detach(), h.grad, w.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@CHUNKS
@pytest.mark.parametrize("head_dtype", [torch.bfloat16, torch.float32])
def test_half_precision_is_accumulated_in_float32(monkeypatch, rows_per_chunk, head_dtype):
    """Against float64 from the same rounded inputs: nothing is rounded on the way but the gradients at the end."""
    limit_chunks(monkeypatch, rows_per_chunk)
    hidden, weight, targets = inputs(64)
    hidden, weight = hidden.bfloat16(), weight.to(head_dtype)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    values, _ = token_logprobs(h, w, targets, 0.7)
    values.sum().backward()
    assert values.dtype == torch.float32 and h.grad.dtype == torch.bfloat16 and w.grad.dtype == head_dtype
    expected = gradients((hidden, weight, targets), 0.7, None, 1.0)
    torch.testing.assert_close(values.double(), reference(hidden, weight, targets, 0.7)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(h.grad.double(), expected[0], atol=1e-5, rtol=2**-8)
    torch.testing.assert_close(
        w.grad.double(), expected[1], atol=1e-5, rtol=2**-8 if head_dtype != torch.float32 else 1e-5
    )


@CHUNKS
def test_backward_twice(monkeypatch, rows_per_chunk):
    """Values may be used again; a loss has given its gradient away, and says so."""
    limit_chunks(monkeypatch, rows_per_chunk)
    hidden, weight, targets = inputs(20)
    h, w = leaves(hidden, weight)
    values, _ = token_logprobs(h, w, targets)
    first = torch.autograd.grad(values.sum(), (h, w), retain_graph=True)
    second = torch.autograd.grad(values.sum(), (h, w))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    loss = summed_nll(h, w, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gives it away once"):
        loss.backward()


@pytest.mark.parametrize("way", ["values", "loss"])
def test_frozen_parts_and_no_grad(way):
    hidden, weight, targets = inputs(9)

    def loss():
        return -token_logprobs(hidden, weight, targets)[0].sum() if way == "values" else summed_nll(*case)

    case = (hidden, weight, targets)
    expected = gradients(case, 1.0, None, -1.0)
    hidden.requires_grad_()
    loss().backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad.double(), expected[0], atol=1e-5, rtol=1e-4)
    hidden.requires_grad_(False), weight.requires_grad_()
    loss().backward()
    torch.testing.assert_close(weight.grad.double(), expected[1], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert not loss().requires_grad


class _Sizes(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [out.numel() for out in tree_leaves(result) if isinstance(out, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.mark.parametrize("supported", [False, True])
@pytest.mark.parametrize("way", ["values", "loss"])
@pytest.mark.parametrize("frozen_head", [False, True])
def test_nothing_as_large_as_the_logits_is_made(monkeypatch, supported, way, frozen_head):
    """64 tokens of 50 ids in chunks of 4: no tensor exceeds a chunk, but for hidden states and the head."""
    limit_chunks(monkeypatch, 4)
    hidden, weight, targets = inputs(64, width=2)
    support = random_support(targets, largest=3) if supported else None
    hidden.requires_grad_(), weight.requires_grad_(not frozen_head)
    with _Sizes() as sizes:
        if way == "values":
            torch.stack(token_logprobs(hidden, weight, targets, 0.7, support)).sum().backward()
        else:
            loss_of = LossOf(lambda logprobs_C, entropy_C, _: (logprobs_C + entropy_C).sum())
            token_loss(hidden, weight, targets, loss_of, 0.7, support)[0].backward()
    assert sizes.largest <= max(4 * 50, hidden.numel(), weight.numel())


# --- over a support ---


@given(st.integers(1, 40), st.sampled_from([0.3, 1.0, 2.5]), st.integers(0, 100), st.sampled_from([1, 3, 50]))
def test_over_a_support_against_float64(tokens, temperature, seed, largest):
    case = inputs(tokens, seed=seed)
    support = random_support(case[2], largest=largest, seed=seed)
    got, entropy = token_logprobs(*case, temperature, support)
    expected, expected_entropy = reference_over(support, *case, temperature)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-4, rtol=1e-4)


def test_a_token_without_alternative_has_neither_gradient_nor_entropy():
    hidden, weight, targets = inputs(9)
    hidden.requires_grad_()
    values, entropy = token_logprobs(hidden, weight, targets, 0.7, (targets, torch.ones_like(targets)))
    values.sum().backward()
    assert not values.any() and not entropy.any() and not hidden.grad.any()


def test_the_whole_vocabulary_as_support_changes_nothing():
    hidden, weight, targets = inputs(9)
    everything = torch.arange(50).repeat(9), torch.full((9,), 50)
    for masked, plain in zip(token_logprobs(hidden, weight, targets, 0.7, everything),
                             token_logprobs(hidden, weight, targets, 0.7), strict=True):  # fmt: skip
        assert torch.equal(masked, plain)


def test_a_token_outside_its_support_is_an_error():
    hidden, weight, targets = inputs(3)
    ids, sizes = torch.stack([targets, (targets + 1) % 50], 1).flatten(), torch.full((3,), 2)
    ids[2:4] = (targets[1] + 1) % 50  # twice in the second set, in place of its target
    with pytest.raises(ValueError, match="1 of 3 tokens are not in the set they were drawn from"):
        token_logprobs(hidden, weight, targets, support=(ids, sizes))
    for broken in ((ids, sizes[:2]), (ids[:5], sizes)):
        with pytest.raises(ValueError, match="do not fit 3 tokens"):
            token_logprobs(hidden, weight, targets, support=broken)


def test_extreme_logits_stay_finite():
    case = inputs(20, scale=1e4)
    for support in (None, random_support(case[2])):
        values, entropy = token_logprobs(*case, support=support)
        assert torch.isfinite(values).all()
        assert torch.isfinite(entropy).all()


def test_no_tokens():
    hidden, weight, targets = inputs(0)
    hidden.requires_grad_(), weight.requires_grad_()
    for support in (None, (targets, targets)):
        values, entropy = token_logprobs(hidden, weight, targets, support=support)
        assert values.shape == entropy.shape == (0,)
    loss = summed_nll(hidden, weight, targets)
    (loss + values.sum()).backward()
    assert loss == 0 and hidden.grad.shape == (0, 16) and not weight.grad.any()


def test_runs_of_one_kind_are_equal_bit_by_bit():
    case = inputs(40)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            h, w = leaves(*case[:2])
            loss = summed_nll(h, w, case[2])
            loss.backward()
            results.append((loss.detach(), h.grad, w.grad))
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

"""Chunked token logprobs against whole float64 logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import logprobs
from training.logprobs import token_logprobs


def inputs(tokens, width=16, vocab=50, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocab, width, generator=generator)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    return hidden, weight, targets


def reference(hidden, weight, targets, temperature):
    logprobs_TV = torch.log_softmax(hidden.double() @ weight.double().T / temperature, dim=-1)
    return logprobs_TV[torch.arange(len(targets)), targets], -(logprobs_TV.exp() * logprobs_TV).sum(-1)


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


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([0.3, 1.0, 2.5]), st.integers(0, 100))
def test_against_float64(tokens, temperature, seed):
    case = inputs(tokens, seed=seed)
    got, entropy = token_logprobs(*case, temperature)
    expected, expected_entropy = reference(*case, temperature)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-4, rtol=1e-4)
    assert got.dtype == entropy.dtype == torch.float32


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 32])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, rows_per_chunk):
    hidden, weight, targets = inputs(33)
    scale = torch.randn(33, generator=torch.Generator().manual_seed(5))
    results = []
    for elements in (1 << 24, rows_per_chunk * len(weight)):
        monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", elements)
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        values, entropy = token_logprobs(h, w, targets, 0.7)
        (values * scale).sum().backward()
        assert not entropy.requires_grad
        results.append((values.detach(), entropy, h.grad, w.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-4)


def test_gradient_against_float64():
    hidden, weight, targets = inputs(20)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    token_logprobs(h, w, targets, 1.3)[0].sum().backward()
    hd, wd = hidden.double().requires_grad_(), weight.double().requires_grad_()
    reference(hd, wd, targets, 1.3)[0].sum().backward()
    torch.testing.assert_close(h.grad.double(), hd.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(w.grad.double(), wd.grad, atol=1e-5, rtol=1e-4)


# --- over a support ---


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([0.3, 1.0, 2.5]), st.integers(0, 100), st.sampled_from([1, 3, 50]))
def test_over_a_support_against_float64(tokens, temperature, seed, largest):
    case = inputs(tokens, seed=seed)
    support = random_support(case[2], largest=largest, seed=seed)
    got, entropy = token_logprobs(*case, temperature, support)
    expected, expected_entropy = reference_over(support, *case, temperature)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 100])
def test_gradient_over_a_support_against_float64(monkeypatch, rows_per_chunk):
    hidden, weight, targets = inputs(20)
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", rows_per_chunk * len(weight))
    support = random_support(targets, largest=6)
    assert (support[1] == 1).any()
    scale = torch.randn(20, generator=torch.Generator().manual_seed(5))
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    values, entropy = token_logprobs(h, w, targets, 1.3, support)
    (values * scale).sum().backward()
    hd, wd = hidden.double().requires_grad_(), weight.double().requires_grad_()
    expected, expected_entropy = reference_over(support, hd, wd, targets, 1.3)
    (expected * scale).sum().backward()
    torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(h.grad.double(), hd.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(w.grad.double(), wd.grad, atol=1e-5, rtol=1e-4)


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
    for support in (None, (targets, targets)):
        values, entropy = token_logprobs(hidden, weight, targets, support=support)
        assert values.shape == entropy.shape == (0,)

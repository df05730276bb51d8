"""Chunked token logprobs against whole float64 logits."""

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


def test_extreme_logits_stay_finite():
    values, entropy = token_logprobs(*inputs(20, scale=1e4))
    assert torch.isfinite(values).all()
    assert torch.isfinite(entropy).all()


def test_no_tokens():
    hidden, weight, targets = inputs(0)
    values, entropy = token_logprobs(hidden, weight, targets)
    assert values.shape == entropy.shape == (0,)

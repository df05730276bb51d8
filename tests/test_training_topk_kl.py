"""KL to a teacher's top-k tokens, with the rest as one outcome, against whole float64 distributions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import head_chunks
from training.topk_kl import topk_kl

VOCAB, WIDTH = 40, 12
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "reverse"])


def case(tokens, k, seed=0, temperature=1.0):
    """(student's hidden states, its head, teacher's ids, their logprobs, all of the teacher's logprobs in float64)."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(tokens, WIDTH, generator=generator), torch.randn(VOCAB, WIDTH, generator=generator)
    logits = torch.randn(tokens, VOCAB, generator=generator, dtype=torch.float64)
    logprobs = torch.log_softmax(logits / temperature, -1)
    top = logprobs.topk(k, dim=-1)
    return hidden, weight, top.indices, top.values.float(), logprobs


def merged(logprobs_TV, ids_TK):
    """Probabilities [T, K + 1] in float64: the chosen ids, and the sum of all others one by one."""
    others = torch.ones_like(logprobs_TV, dtype=torch.bool).scatter(1, ids_TK, False)
    tail = (logprobs_TV.exp() * others).sum(-1, keepdim=True)
    return torch.cat([logprobs_TV.exp().gather(1, ids_TK), tail], dim=-1)


def expected_kl(hidden, weight, ids, teacher_TV, direction, temperature):
    student_TV = torch.log_softmax(hidden @ weight.T / temperature, -1)
    a, b = merged(teacher_TV, ids), merged(student_TV, ids)
    if direction == "reverse":
        a, b = b, a
    return (a * (a / b).log()).sum(-1)


@DIRECTIONS
@pytest.mark.parametrize("rows_per_chunk", [1, 4, 100])
def test_values_and_gradients_against_float64(monkeypatch, direction, rows_per_chunk):
    monkeypatch.setitem(head_chunks.CHUNK_ELEMENTS, "cpu", rows_per_chunk * VOCAB)
    hidden, weight, ids, logprobs, teacher = case(17, k=5, temperature=1.7)
    weights = torch.rand(17, generator=torch.Generator().manual_seed(9))
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, kl = topk_kl(h, w, ids, logprobs, direction, 1.7, weights)
    loss.backward()
    hd, wd = hidden.double().requires_grad_(), weight.double().requires_grad_()
    expected = expected_kl(hd, wd, ids, teacher, direction, 1.7)
    (weights * expected).sum().backward()
    torch.testing.assert_close(kl.double(), expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss.detach().double(), (weights * expected).sum().detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(h.grad.double(), hd.grad, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(w.grad.double(), wd.grad, atol=1e-5, rtol=1e-3)
    assert not kl.requires_grad


@DIRECTIONS
@settings(max_examples=30)
@given(seed=st.integers(0, 1000), k=st.integers(1, VOCAB))
def test_never_more_than_the_whole_kl_and_equal_when_nothing_is_left_out(direction, seed, k):
    hidden, weight, ids, logprobs, teacher = case(6, k, seed)
    _, kl = topk_kl(hidden, weight, ids, logprobs, direction)
    student = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    a, b = (teacher, student) if direction == "forward" else (student, teacher)
    whole = (a.exp() * (a - b)).sum(-1)
    assert (kl.double() <= whole + 1e-4 * (1 + whole)).all()
    assert (kl > -1e-5).all()
    if k == VOCAB:
        torch.testing.assert_close(kl.double(), whole, atol=1e-4, rtol=1e-4)


@DIRECTIONS
def test_a_student_equal_to_its_teacher_has_neither_loss_nor_gradient(direction):
    hidden, weight, *_ = case(8, k=3)
    teacher = torch.log_softmax(hidden @ weight.T, -1)
    values, ids = teacher.topk(3, dim=-1)
    hidden.requires_grad_()
    loss, _ = topk_kl(hidden, weight, ids, values, direction)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-5
    assert hidden.grad.abs().max() < 1e-5


@DIRECTIONS
def test_certain_teachers_and_students_stay_finite(direction):
    hidden, weight, ids, _, _ = case(5, k=2)
    hidden = (1e4 * hidden).requires_grad_()
    logprobs = torch.tensor([[0.0, -torch.inf]]).expand(5, 2).clamp(min=-1e4)
    loss, kl = topk_kl(hidden, weight, ids, logprobs, direction)
    loss.backward()
    assert torch.isfinite(kl).all() and torch.isfinite(hidden.grad).all()


def test_what_does_not_fit_is_refused():
    hidden, weight, ids, logprobs, _ = case(4, k=3)
    with pytest.raises(ValueError, match=r"must both be \[T, K\] for the 4 tokens"):
        topk_kl(hidden, weight, ids[:3], logprobs[:3])
    twice = ids.clone()
    twice[1, 0] = twice[1, 2]
    with pytest.raises(ValueError, match="of 1 tokens are not all different"):
        topk_kl(hidden, weight, twice, logprobs)
    with pytest.raises(ValueError, match="sum to 3"):
        topk_kl(hidden, weight, ids, torch.zeros_like(logprobs))


def test_no_tokens():
    hidden, weight, ids, logprobs, _ = case(0, k=3)
    loss, kl = topk_kl(hidden, weight, ids, logprobs)
    assert loss == 0 and kl.shape == (0,)

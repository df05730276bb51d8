"""KL to a teacher's whole vocabulary by its hidden states, against autograd in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import head_chunks
from training.topk_kl import topk_kl
from training.vocabulary_kl import vocabulary_kl

VOCAB, STUDENT, TEACHER = 40, 12, 7
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "reverse"])


def case(tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (tokens, STUDENT), (VOCAB, STUDENT), (tokens, TEACHER), (VOCAB, TEACHER)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def expected_kl(hidden, weight, teacher_hidden, teacher_weight, direction, temperature):
    q = torch.log_softmax(hidden @ weight.T / temperature, -1)
    p = torch.log_softmax(teacher_hidden @ teacher_weight.T / temperature, -1)
    a, b = (p, q) if direction == "forward" else (q, p)
    return (a.exp() * (a - b)).sum(-1)


@DIRECTIONS
@pytest.mark.parametrize("rows_per_chunk", [1, 5, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients_against_float64(monkeypatch, direction, rows_per_chunk, weighted):
    monkeypatch.setitem(head_chunks.CHUNK_ELEMENTS, "cpu", 4 * rows_per_chunk * VOCAB)
    hidden, weight, *teacher = case(17)
    weights = torch.rand(17, generator=torch.Generator().manual_seed(9)) if weighted else None
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = vocabulary_kl(h, w, *teacher, direction, 1.7, weights)
    (3 * loss).backward()
    hd, wd = hidden.double().requires_grad_(), weight.double().requires_grad_()
    kl = expected_kl(hd, wd, *(t.double() for t in teacher), direction, 1.7)
    expected = kl.sum() if weights is None else (weights * kl).sum()
    (3 * expected).backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(h.grad.double(), hd.grad, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(w.grad.double(), wd.grad, atol=2e-5, rtol=1e-4)


@DIRECTIONS
@settings(max_examples=30)
@given(tokens=st.integers(1, 9), k=st.integers(1, VOCAB), seed=st.integers(0, 99))
def test_top_k_never_says_more_and_all_of_it_says_the_same(direction, tokens, k, seed):
    hidden, weight, teacher_hidden, teacher_weight = case(tokens, seed)
    whole = vocabulary_kl(hidden, weight, teacher_hidden, teacher_weight, direction)
    logprobs = torch.log_softmax((teacher_hidden @ teacher_weight.T).double(), -1)
    some, every = (
        topk_kl(hidden, weight, top.indices, top.values.float(), direction)[0]
        for top in (logprobs.topk(k), logprobs.topk(VOCAB))
    )
    assert some <= whole + 1e-3
    assert every == pytest.approx(float(whole), abs=1e-3, rel=1e-3)


@DIRECTIONS
def test_a_student_that_is_the_teacher_learns_nothing(direction):
    hidden, weight, *_ = case(6)
    h = hidden.clone().requires_grad_()
    loss = vocabulary_kl(h, weight, hidden, weight, direction)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert float(h.grad.abs().max()) < 1e-5


def test_no_tokens_is_no_loss_and_no_gradient():
    hidden, weight, *teacher = case(0)
    w = weight.clone().requires_grad_()
    loss = vocabulary_kl(hidden, w, *teacher)
    loss.backward()
    assert loss.item() == 0
    assert not w.grad.any()


def test_heads_of_different_sizes_are_refused():
    hidden, weight, teacher_hidden, teacher_weight = case(3)
    with pytest.raises(ValueError, match=r"3 tokens and 39 logits of each, the student 3 and 40; .* by top_k"):
        vocabulary_kl(hidden, weight, teacher_hidden, teacher_weight[:-1])


def test_backward_runs_once():
    hidden, weight, *teacher = case(3)
    loss = vocabulary_kl(hidden.requires_grad_(), weight, *teacher)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it again"):
        loss.backward()

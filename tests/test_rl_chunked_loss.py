"""The policy loss made chunk by chunk against the same loss of whole rows, both in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.chunked_loss import loss_in_chunks
from rl.correction import off_policy_kept
from rl.loss import policy_loss
from rl.objective import Denominators, ObjectiveConfig
from training import head_chunks
from training.logprobs import token_logprobs, token_loss

VOCAB, WIDTH = 30, 8
OBJECTIVES = [
    {"preset": "r1"}, {"preset": "dapo", "entropy_coef": 0.2}, {"preset": "dr_grpo"}, {"preset": "v3_2"},
    {"preset": "v3_2", "correction": "tis_sequence"}, {"correction": "mis_token"}, {"correction": "mis_sequence"},
]  # fmt: skip


def mini_batch(lengths, drift, seed):
    """Hidden states, head and targets; and what `loss_in_chunks` takes, logprobs `drift` beside the policy's."""
    made = torch.Generator().manual_seed(seed)
    tokens, sequences = sum(lengths), len(lengths)
    hidden, weight = (torch.randn(rows, WIDTH, generator=made, dtype=torch.float64) for rows in (tokens, VOCAB))
    targets = torch.randint(0, VOCAB, (tokens,), generator=made)
    owner = torch.repeat_interleave(torch.arange(sequences), torch.tensor(lengths))
    policy = token_logprobs(hidden, weight, targets)[0]
    apart = drift * torch.randn(2, sequences, generator=made, dtype=torch.float64)
    old, sampling = policy + apart[0, owner], policy + apart[1, owner]
    ref = policy + 0.1 * torch.randn(tokens, generator=made, dtype=torch.float64)
    advantages = torch.randn(sequences, generator=made, dtype=torch.float64)
    return (hidden, weight, targets), (old, ref, sampling, advantages, owner)


def leaves(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    settings=st.sampled_from(OBJECTIVES),
    drift=st.sampled_from([1e-3, 1.0]),
    rows=st.sampled_from([1, 3, 100]),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_are_those_of_whole_rows(lengths, settings, drift, rows, seed):
    (*parts, targets), given_ = mini_batch(lengths, drift, seed)
    objective, denominators = ObjectiveConfig(**settings).resolve(), Denominators.of(lengths, 9)
    hidden, weight = leaves(parts)
    values, entropies = token_logprobs(hidden, weight, targets)
    whole, _ = policy_loss(values, *given_, objective, denominators, entropies)
    expected = [whole.detach(), *torch.autograd.grad(whole, (hidden, weight))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head_chunks.CHUNK_ELEMENTS, "cpu", rows * VOCAB)
        hidden, weight = leaves(parts)
        loss, *_ = token_loss(hidden, weight, targets, loss_in_chunks(*given_, objective, denominators))
    for got, wanted in zip([loss.detach(), *torch.autograd.grad(loss, (hidden, weight))], expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("far", [3.0, 10.0, 20.0])
def test_a_large_share_that_is_taken_back_leaves_no_rounding(far):
    """In float32: one token far more likely by now, the others of its sequence less, so that this is to be dropped."""
    lengths = [6, 6, 6]
    (hidden, weight, targets), _ = mini_batch(lengths, 0.0, seed=3)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    policy = token_logprobs(hidden, weight, targets)[0]
    old = policy.clone()
    old[:6] += torch.tensor([-far, *[far / 5 + 1] * 5])  # on average 0.83 above the policy, which is beyond 0.5
    sampling, advantages = old.clone(), torch.tensor([-1.0, 1.0, -0.5], dtype=torch.float64)
    objective, denominators = ObjectiveConfig(preset="v3_2", kl_coef=0.0).resolve(), Denominators.of(lengths, 9)

    def gradients(dtype):
        states, head = leaves(tensor.to(dtype) for tensor in (hidden, weight))
        given_ = [value.to(dtype) for value in (old, sampling, advantages)]
        loss_of = loss_in_chunks(given_[0], None, *given_[1:], owner, objective, denominators)
        loss, *_ = token_loss(states, head, targets, loss_of)
        return loss.detach(), *torch.autograd.grad(loss, (states, head))

    for got, wanted in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert (got.double() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("wrong", [False, True])
def test_only_a_sequence_whose_mask_was_guessed_wrongly_costs_a_second_pass(wrong):
    lengths = [4, 5]
    (hidden, weight, targets), (old, ref, _, _, owner) = mini_batch(lengths, 0.0, seed=1)
    advantages = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    sampling = old + torch.tensor([1.0, 0.0], dtype=torch.float64)[owner]  # the first is dropped: beyond 0.5
    guess = old + 2.0 * wrong  # by which it would be kept
    objective = ObjectiveConfig(preset="v3_2").resolve()
    assert off_policy_kept(old, sampling, advantages, owner, 0.5).tolist() == [False, True]
    loss_of = loss_in_chunks(guess, ref, sampling, advantages, owner, objective, Denominators.of(lengths, 9))
    asked = []

    def noted(logprobs, entropies, tokens):
        asked.append(tokens)
        return loss_of.tokens(logprobs, entropies, tokens)

    token_loss(hidden, weight.requires_grad_(), targets, replace(loss_of, tokens=noted))
    assert asked[0] == slice(0, 9) and len(asked) == 1 + wrong
    assert not wrong or asked[1].tolist() == [0, 1, 2, 3]

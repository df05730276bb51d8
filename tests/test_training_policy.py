"""The policy as one module: rows in, logprobs out, and rows of nothing that still pass through everything."""

import copy

import numpy as np
import pytest
import torch

from models.checkpoint import load_model, load_mtp_module
from rl.batch import empty_row
from sft.batch import Example, pack_examples
from training.policy import Policy, RowTensors

CPU = torch.device("cpu")
LENGTHS = [7, 1, 12, 3, 2]


@pytest.fixture(scope="module")
def policy(tiny_checkpoint) -> Policy:
    model = load_model(tiny_checkpoint)
    return Policy(model, load_mtp_module(tiny_checkpoint, model.config))


def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(8, 300, length) for length in LENGTHS]


def test_logprobs_of_a_packed_row_are_those_of_each_sequence_alone(policy, tiny_checkpoint):
    """Against transformers' own attention and experts in float64."""
    (row,) = pack_examples([Example(token_ids=s, loss_mask=np.ones(len(s), bool)) for s in sequences()], 64)
    with torch.no_grad():
        logprobs, entropies, loss, deeper = policy(RowTensors.of(row, CPU), temperature=0.7)
        summed = policy(RowTensors.of(row, CPU), temperature=None, mtp="joint")
    assert loss is None and deeper is None
    assert summed.logprobs_C is None and summed.mtp_nll > 0
    plain = load_model(tiny_checkpoint, attention="eager").double()
    plain.set_experts_implementation("eager")
    expected, spread = [], []
    for ids in sorted(sequences(), key=len, reverse=True):  # the order in which they are packed
        with torch.no_grad():
            all_logprobs = torch.log_softmax(plain(torch.from_numpy(ids)[None]).logits[0, :-1] / 0.7, -1)
        expected.append(all_logprobs.gather(1, torch.from_numpy(ids[1:])[:, None])[:, 0])
        spread.append(-(all_logprobs.exp() * all_logprobs).sum(-1))
    torch.testing.assert_close(logprobs.double(), torch.cat(expected), atol=2e-5, rtol=0)
    torch.testing.assert_close(entropies.double(), torch.cat(spread), atol=2e-5, rtol=0)
    at_1 = policy(RowTensors.of(row, CPU)).logprobs_C
    torch.testing.assert_close(summed.loss, -at_1.sum(), rtol=1e-5, atol=0)


def test_a_row_without_sequences_reaches_every_weight_with_zeros(policy):
    """Ranks that share collectives all run the same passes; who has nothing left to train on adds nothing."""
    empty = empty_row()
    once = copy.deepcopy(policy)
    logprobs, entropies, _, deeper = once(RowTensors.of(empty, CPU), mtp="joint")
    assert logprobs.shape == entropies.shape == (0,) and deeper == 0
    (logprobs.sum() + deeper).backward()
    assert_zeros(once)
    once.zero_grad()
    losses = once(RowTensors.of(empty, CPU), None, mtp="joint")
    assert losses.loss == 0
    (losses.loss + losses.mtp_nll).backward()
    assert_zeros(once)


def assert_zeros(policy: Policy) -> None:
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name

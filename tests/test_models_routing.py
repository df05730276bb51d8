"""Load balance: the selection bias follows the load, the sequence-wise loss acts on the scores."""

import numpy as np
import pytest
import torch

from models.checkpoint import load_model
from models.routing import LoadCounter, SequenceBalance, load_metrics, routers, sequence_balance
from sft.batch import Example, pack_examples
from sft.trainer import SupervisedTrainer
from training.config import OptimizerConfig
from training.trainer import Trainer

SPEED = 0.01


@pytest.fixture
def router(tiny_checkpoint):
    """(counter, the first router) of a fresh model."""
    model = load_model(tiny_checkpoint).train()
    counter = LoadCounter(model)
    return counter, next(routers(model))[1]


def max_violation(counter: LoadCounter) -> float:
    """The largest load over the mean load, minus 1, of all routers; 0 is perfect balance."""
    return max((load.violation for load in counter.loads().values()), default=0.0)


def send(router, hidden):
    with torch.no_grad():
        return router(hidden)[2]


def test_counts_every_choice_once(router):
    counter, gate = router
    hidden = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    chosen = send(gate, hidden[:20]), send(gate, hidden[20:])
    name = next(iter(counter.counts))
    expected = torch.bincount(torch.cat([c.flatten() for c in chosen]), minlength=8)
    assert counter.counts[name].tolist() == expected.tolist()
    assert counter.counts[name].sum() == 50 * 2
    assert max_violation(counter) == pytest.approx(float(expected.max()) / (100 / 8) - 1)


def test_evaluation_is_not_counted(router):
    counter, gate = router
    gate.eval()
    send(gate, torch.randn(5, 64))
    assert all(counts.sum() == 0 for counts in counter.counts.values())


def test_bias_moves_by_the_speed_against_the_load(router):
    counter, gate = router
    name = next(iter(counter.counts))
    counter.counts[name] = torch.tensor([9, 1, 4, 4, 0, 4, 6, 4])  # mean 4
    before = gate.e_score_correction_bias.clone()
    counter.update_bias(SPEED)
    expected = SPEED * torch.tensor([-1.0, 1, 0, 0, 1, 0, -1, 0])
    torch.testing.assert_close(gate.e_score_correction_bias - before, expected)
    assert counter.counts[name].sum() == 0


def test_no_speed_no_movement(router):
    counter, gate = router
    send(gate, torch.randn(50, 64))
    before = gate.e_score_correction_bias.clone()
    counter.update_bias(0.0)
    assert torch.equal(gate.e_score_correction_bias, before)


def test_a_skewed_stream_is_balanced_and_stays_so(router):
    """New tokens at every step, whose common direction the router has a preference for."""
    counter, gate = router
    rng = torch.Generator().manual_seed(1)
    common = torch.randn(64, generator=rng)
    violations = []
    for _ in range(400):
        send(gate, torch.randn(8192, 64, generator=rng) + common)
        violations.append(max_violation(counter))
        counter.update_bias(0.001)
    reached = next(step for step, violation in enumerate(violations) if violation < 0.1)
    assert violations[0] > 2 and reached < 320
    assert max(violations[reached:]) < 0.1


def test_metrics_by_hand(router):
    counter, gate = router
    first, second = counter.counts
    counter.counts[first] = torch.tensor([9, 1, 4, 4, 0, 4, 6, 4])
    counter.counts[second] = torch.tensor([0, 0, 0, 12, 8, 4, 4, 4])
    gate.e_score_correction_bias.copy_(torch.tensor([0.5, -0.25, 0, 0, 0, 0, 0, 0]))
    assert load_metrics(counter.loads()) == {
        "moe/max_violation": 2.0, "moe/max_violation/layer_1": 1.25, "moe/max_violation/layer_2": 2.0,
        "moe/dead_experts": 4.0, "moe/bias_range": 0.75,
    }  # fmt: skip


def test_a_router_that_saw_nothing_is_left_alone(router):
    counter, gate = router
    before = gate.e_score_correction_bias.clone()
    assert load_metrics(counter.loads()) == {}
    counter.update_bias(SPEED)
    assert torch.equal(gate.e_score_correction_bias, before)


# --- the sequence-wise loss ---


def reference_balance(scores, top_k, lengths):
    """Eq. 17-20 of V3 in float64, one sequence, expert and token at a time; times the tokens of each sequence."""
    total = scores.new_zeros(())
    for part in scores.split(lengths):
        tokens, experts = part.shape
        for i in range(experts):
            chosen = sum(int(i in row.topk(top_k).indices.tolist()) for row in part)
            share = experts / (top_k * tokens) * chosen
            total = total + tokens * share * sum(row[i] / row.sum() for row in part) / tokens
    return total


def test_sequence_loss_and_gradient_against_the_formula():
    lengths, top_k = [7, 1, 12], 2
    scores = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.01
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    loss, expected = sequence_balance(ours, top_k, lengths), reference_balance(theirs, top_k, lengths)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_perfect_balance_is_the_least():
    """All experts alike: 1 per token. One expert that takes all: more."""
    rows = torch.eye(4, dtype=torch.float64).repeat(3, 1) + 0.1
    assert float(sequence_balance(rows, 1, [12])) == pytest.approx(12)
    assert float(sequence_balance(rows[:1].repeat(12, 1), 1, [12])) > 12 * 2


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="lengths sum to 5, and 6 tokens were routed"):
        sequence_balance(torch.rand(6, 4), 2, [2, 3])


def test_the_loss_reaches_the_router_and_not_the_bias(tiny_checkpoint):
    model = load_model(tiny_checkpoint).train()
    balance, gate = SequenceBalance(model), next(routers(model))[1]
    hidden = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    with balance.watch([20]) as losses:
        gate(hidden)
    losses[0].backward()
    assert gate.weight.grad.abs().sum() > 0
    assert gate.e_score_correction_bias.grad is None and not gate.e_score_correction_bias.requires_grad
    with balance.watch([20], wanted=False) as losses:
        gate(hidden)
    assert losses == []


def test_descending_the_loss_balances_a_router(tiny_checkpoint):
    model = load_model(tiny_checkpoint).train()
    counter, balance, gate = LoadCounter(model), SequenceBalance(model), next(routers(model))[1]
    rng = torch.Generator().manual_seed(1)
    hidden = torch.randn(400, 64, generator=rng) + 0.5 * torch.randn(64, generator=rng)
    optimizer, violations = torch.optim.SGD([gate.weight], lr=1.0), []
    for _ in range(60):
        counter.reset()
        with balance.watch([400]) as losses:
            gate(hidden)
        violations.append(max_violation(counter))
        (losses[0] / 400).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert violations[-1] < 0.7 * violations[0]


# --- in training ---


def example_rows():
    rng = np.random.default_rng(0)
    examples = [Example(token_ids=rng.integers(8, 300, n), loss_mask=np.ones(n, bool)) for n in (30, 20, 12)]
    return pack_examples(examples, 64)


def test_a_supervised_step_counts_and_moves_all_routers_the_mtp_block_included(tiny_checkpoint):
    trainer = SupervisedTrainer(str(tiny_checkpoint), OptimizerConfig(), mtp=True, device="cpu")
    biases = {name: gate.e_score_correction_bias for name, gate in routers(trainer.model, trainer.mtp)}
    before = {name: bias.clone() for name, bias in biases.items()}
    metrics = trainer.step(example_rows(), 1e-4, mtp_weight=0.1, bias_speed=0.25, balance_weight=1e-4)
    assert len(biases) == 3
    for name, bias in biases.items():
        assert (bias - before[name]).abs().max() == 0.25, name
    assert {"moe/max_violation/layer_1", "moe/max_violation/layer_2", "moe/max_violation/mtp"} < metrics.keys()
    assert metrics["moe/bias_speed"] == 0.25
    assert metrics["loss/balance"] > 3 * 0.9  # about 1 per router where the load is even, more where it is not


def test_the_balance_loss_changes_what_is_learned(tiny_checkpoint):
    """Of the routers alone in the first step of plain descent: nothing else depends on it."""
    gradients = []
    for weight in (0.0, 10.0):
        trainer = SupervisedTrainer(str(tiny_checkpoint), OptimizerConfig(), mtp=True, device="cpu")
        trainer.optimizer.step = lambda lr: 0.0
        trainer.step(example_rows(), 1e-4, 0.1, 0.0, balance_weight=weight)
        gradients.append({name: p.grad.clone() for name, p in trainer.optimizer.parameters.items()})
    gates = [name for name in gradients[0] if "gate.weight" in name]
    assert len(gates) == 3
    assert not any(torch.allclose(gradients[0][name], gradients[1][name]) for name in gates)
    assert torch.equal(gradients[0]["model.lm_head.weight"], gradients[1]["model.lm_head.weight"])


def test_the_bias_is_no_parameter(tiny_checkpoint):
    """Neither gradient nor weight decay nor the optimizer's moments reach it; the weights of the sum ignore it."""
    trainer = Trainer(str(tiny_checkpoint), OptimizerConfig(lr=1e-2, weight_decay=0.1), device="cpu")
    biases = {name: gate.e_score_correction_bias for name, gate in routers(trainer.model)}
    assert len(biases) == 2
    before = {name: bias.clone() for name, bias in biases.items()}
    assert not any("e_score_correction_bias" in name for name in trainer.optimizer.parameters)
    (row,) = pack_examples(
        [Example(token_ids=torch.arange(8, 60).numpy(), loss_mask=torch.ones(52).bool().numpy())], 64
    )
    trainer.next_token_losses(row)[0].backward()
    trainer.optimizer.step(1e-2)
    for name, gate in routers(trainer.model):
        assert gate.e_score_correction_bias.grad is None
        assert torch.equal(gate.e_score_correction_bias, before[name])


def test_a_common_shift_of_the_bias_changes_nothing(router):
    _, gate = router
    hidden = torch.randn(50, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, weights, chosen = gate(hidden)
        gate.e_score_correction_bias += 0.5
        _, shifted_weights, shifted = gate(hidden)
    assert torch.equal(chosen, shifted)
    assert torch.equal(weights, shifted_weights)


def test_a_dense_model_has_no_routers(llama_checkpoint):
    counter = LoadCounter(load_model(llama_checkpoint))
    assert counter.counts == {}
    assert max_violation(counter) == 0.0
    counter.update_bias(SPEED)

"""Load balance without an auxiliary loss: the selection bias follows the load."""

import pytest
import torch

from models.checkpoint import load_model
from models.routing import LoadCounter, routers
from sft.batch import Example, pack_examples
from training.config import OptimizerConfig
from training.trainer import Trainer

SPEED = 0.01


@pytest.fixture
def router(tiny_checkpoint):
    """(counter, the first router) of a fresh model."""
    model = load_model(tiny_checkpoint).train()
    counter = LoadCounter(model)
    return counter, next(routers(model))[1]


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
    assert counter.max_violation() == pytest.approx(float(expected.max()) / (100 / 8) - 1)


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


def test_a_skewed_stream_is_balanced(router):
    counter, gate = router
    skewed = torch.randn(400, 64, generator=torch.Generator().manual_seed(1)) + 2 * torch.randn(
        64, generator=torch.Generator().manual_seed(2)
    )
    violations = []
    for _ in range(150):
        send(gate, skewed)
        violations.append(counter.max_violation())
        counter.update_bias(SPEED)
    assert violations[0] > 1.5
    assert violations[-1] < 0.3 * violations[0]


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
    assert counter.max_violation() == 0.0
    counter.update_bias(SPEED)

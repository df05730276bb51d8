"""AdamW by name: a resumed one goes on bit for bit, and garbage never reaches the weights."""

import math

import pytest
import torch
from torch import nn

from training.config import OptimizerConfig
from training.optimizer import Optimizer
from training.state import load_tensors, save_tensors, stored_names


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def set_gradients(module: nn.Module, step: int, scale=1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def take_steps(module, optimizer, steps) -> None:
    for step in steps:
        set_gradients(module, step)
        optimizer.step(1e-2)


def load(optimizer: Optimizer, folder) -> None:
    load_tensors(folder, optimizer.state(stored_names(folder)))
    optimizer.loaded()


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_resumed_equals_undisturbed(tmp_path):
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    whole, first = network(), network()
    optimizer = Optimizer(whole.named_parameters(), config)
    take_steps(whole, optimizer, range(8))
    before = Optimizer(first.named_parameters(), config)
    take_steps(first, before, range(5))
    save_tensors(tmp_path / "o", before.state())
    second = network()
    second.load_state_dict(first.state_dict())
    after = Optimizer(second.named_parameters(), config)
    load(after, tmp_path / "o")
    assert after.steps == 5
    take_steps(second, after, range(5, 8))
    assert_equal(second, whole)
    one, other = after.state(), optimizer.state()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_fresh_optimizer_can_be_saved_and_loaded(tmp_path):
    one, two = network(), network()
    save_tensors(tmp_path, Optimizer(one.named_parameters(), OptimizerConfig()).state())
    optimizer = Optimizer(two.named_parameters(), OptimizerConfig())
    load(optimizer, tmp_path)
    expected = Optimizer(one.named_parameters(), OptimizerConfig())
    take_steps(one, expected, range(2))
    take_steps(two, optimizer, range(2))
    assert_equal(one, two)


def test_a_state_of_another_kind_is_refused_with_what_to_remove(tmp_path):
    (tmp_path / "step_00000003").mkdir()
    with pytest.raises(ValueError, match=f"remove {tmp_path} to start the stage again"):
        stored_names(tmp_path / "step_00000003")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_leaves_everything_as_it_was(bad):
    module = network()
    optimizer = Optimizer(module.named_parameters(), OptimizerConfig(weight_decay=0.1))
    take_steps(module, optimizer, range(3))
    twin = network()
    twin.load_state_dict(module.state_dict())
    moments = [state["exp_avg"].clone() for state in optimizer.adamw.state.values()]
    set_gradients(module, 3)
    module[0].weight.grad[1, 2] = bad
    with pytest.raises(FloatingPointError, match="optimizer step 3"):
        optimizer.step(1e-2)
    assert_equal(module, twin)
    assert optimizer.steps == 3
    after = [state["exp_avg"] for state in optimizer.adamw.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))


def test_first_step_by_hand():
    """m = 0.1 g, v = 0.05 g^2, both divided by their bias corrections: lr * sign(g), plus decay of matrices."""
    module = network()
    before = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    optimizer = Optimizer(module.named_parameters(), OptimizerConfig(weight_decay=0.1, clip_norm=1e9))
    set_gradients(module, 0)
    gradients = {name: p.grad.double() for name, p in module.named_parameters()}
    norm = optimizer.step(1e-2)
    assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients.values())), rel=1e-5)
    for name, parameter in module.named_parameters():
        decay = 0.1 if parameter.ndim > 1 else 0.0
        g = gradients[name]
        expected = before[name] * (1 - 1e-2 * decay) - 1e-2 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach().double(), expected, atol=1e-6, rtol=1e-5)
        assert parameter.grad is None


def test_clipping_is_global_and_the_norm_is_from_before():
    module = network()
    optimizer = Optimizer(module.named_parameters(), OptimizerConfig(clip_norm=0.5))
    set_gradients(module, 0, scale=100)
    total = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in module.parameters()))
    gradient = module[0].weight.grad.clone()
    assert optimizer.step(1e-2) == pytest.approx(total, rel=1e-5)
    moment = optimizer.adamw.state[module[0].weight]["exp_avg"]  # (1 - beta1) times the clipped gradient
    torch.testing.assert_close(moment, 0.1 * gradient * (0.5 / total), rtol=1e-4, atol=1e-8)


def test_frozen_parameters_have_no_state():
    module = network()
    module[0].requires_grad_(False)
    assert set(Optimizer(module.named_parameters(), OptimizerConfig()).parameters) == {
        "2.weight", "2.bias", "3.weight", "3.bias",
    }  # fmt: skip


def test_schedules():
    constant = OptimizerConfig(lr=1.0, warmup_steps=4)
    assert [constant.lr_at(s, 100) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = OptimizerConfig(lr=1.0, schedule="cosine", final_lr_share=0.1, warmup_steps=2)
    values = [cosine.lr_at(s, 12) for s in range(13)]
    assert values[:3] == [0.5, 1.0, 1.0]
    assert values[7] == pytest.approx(0.55)  # half way
    assert values[12] == pytest.approx(0.1)
    assert values[2:] == sorted(values[2:], reverse=True)
    assert all(0.1 <= cosine.lr_at(s, 12) <= 1 for s in range(40))
    assert OptimizerConfig(lr=1.0, schedule="cosine", warmup_steps=5).lr_at(3, 3) == 0.8  # shorter than its warm-up

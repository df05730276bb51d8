"""AdamW by name: a resumed one goes on bit for bit, and garbage never reaches the weights."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from training.config import OptimizerConfig
from training.optimizer import Optimizer
from training.state import StateWriter, load_tensors, stored_names


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


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    writer = StateWriter()
    writer.begin(folder, tensors)
    writer.finish()


@pytest.mark.parametrize(
    "settings", [{}, {"moments": "bfloat16"}, {"algorithm": "muon"}, {"ema_decay": 0.9, "offload": "moments"}], ids=str
)
def test_resumed_equals_undisturbed(tmp_path, settings):
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1, **settings)
    whole, first = network(), network()
    optimizer = Optimizer(whole.named_parameters(), config)
    take_steps(whole, optimizer, range(8))
    before = Optimizer(first.named_parameters(), config)
    take_steps(first, before, range(5))
    save(tmp_path / "o", before.state())
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
    save(tmp_path, Optimizer(one.named_parameters(), OptimizerConfig()).state())
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
    moments = [optimizer.state_of(p)["exp_avg"].clone() for p in module.parameters()]
    set_gradients(module, 3)
    module[0].weight.grad[1, 2] = bad
    with pytest.raises(FloatingPointError, match="optimizer step 3"):
        optimizer.step(1e-2)
    assert_equal(module, twin)
    assert optimizer.steps == 3
    after = [optimizer.state_of(p)["exp_avg"] for p in module.parameters()]
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
    moment = optimizer.state_of(module[0].weight)["exp_avg"]  # (1 - beta1) times the clipped gradient
    torch.testing.assert_close(moment, 0.1 * gradient * (0.5 / total), rtol=1e-4, atol=1e-8)


def test_float32_is_torch_adamw_to_the_bit():
    ours, theirs = network(), network()
    optimizer = Optimizer(ours.named_parameters(), OptimizerConfig(weight_decay=0.1, clip_norm=1e9))
    matrices, vectors = [p for p in theirs.parameters() if p.ndim > 1], [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for step in range(5):
        set_gradients(theirs, step)
        adamw.step()
    take_steps(ours, optimizer, range(5))
    assert_equal(ours, theirs)


def test_half_moments_against_float64_with_rounded_moments():
    module = network()
    optimizer = Optimizer(
        module.named_parameters(), OptimizerConfig(moments="bfloat16", weight_decay=0.1, clip_norm=1e9)
    )
    weights = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    mean = {name: torch.zeros_like(w) for name, w in weights.items()}
    square = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(1, 30):
        set_gradients(module, step)
        for name, parameter in module.named_parameters():
            g = parameter.grad.double()
            m, v = 0.9 * mean[name] + 0.1 * g, 0.95 * square[name] + 0.05 * g * g
            decay = 0.1 if g.ndim > 1 else 0.0
            update = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
            weights[name] = weights[name] * (1 - 1e-2 * decay) - 1e-2 * update
            mean[name], square[name] = m.bfloat16().double(), v.bfloat16().double()
        optimizer.step(1e-2)
    for name, parameter in module.named_parameters():
        state = optimizer.state_of(parameter)
        assert (
            state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16 and parameter.dtype == torch.float32
        )
        # A moment that lies on the edge between two bfloat16 values may fall either way: half a percent of one step.
        torch.testing.assert_close(parameter.detach().double(), weights[name], atol=2e-4, rtol=1e-4)
    float32 = network()
    take_steps(
        float32, Optimizer(float32.named_parameters(), OptimizerConfig(weight_decay=0.1, clip_norm=1e9)), range(1, 30)
    )
    gaps = [(a - b).abs().max() for a, b in zip(module.parameters(), float32.parameters(), strict=True)]
    assert 1e-6 < max(gaps) < 1e-2


def test_half_moments_that_could_not_move_are_refused():
    with pytest.raises(ValueError, match=r"beta above 0\.996"):
        OptimizerConfig(moments="bfloat16", beta2=0.999)


def newton_schulz(gradient):
    """Muon's direction in float64: the quintic iteration on singular values, five times (kellerjordan.github.io)."""
    left, values, right = torch.linalg.svd(gradient.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


def test_muon_against_its_iteration_on_singular_values():
    torch.manual_seed(0)
    module = nn.ModuleDict({"embed_tokens": nn.Embedding(9, 6), "q_proj": nn.Linear(6, 10), "norm": nn.LayerNorm(6)})
    config = OptimizerConfig(algorithm="muon", weight_decay=0.1, clip_norm=1e9, muon_lr_factor=3.0)
    optimizer = Optimizer(module.named_parameters(), config)
    weight, before = module["q_proj"].weight, module["q_proj"].weight.detach().double().clone()
    momentum = torch.zeros_like(before)
    for step in range(3):
        set_gradients(module, step)
        # torch keeps momentum as a running mean: only its direction matters
        momentum = 0.95 * momentum + 0.05 * weight.grad.double()
        direction = newton_schulz(0.05 * weight.grad.double() + 0.95 * momentum)
        before = before * (1 - 3e-2 * 0.1) - 3e-2 * 0.2 * math.sqrt(10) * direction
        optimizer.step(1e-2)
    step_size = 3e-2 * 0.2 * math.sqrt(10)
    torch.testing.assert_close(weight.detach().double(), before, atol=0.06 * step_size, rtol=0)  # bfloat16 inside
    muon = [name for name, p in module.named_parameters() if "momentum_buffer" in optimizer.state_of(p)]
    assert muon == ["q_proj.weight"]
    assert all("exp_avg" in optimizer.state_of(p) for name, p in module.named_parameters() if name not in muon)


def test_the_average_has_its_closed_form_and_is_saved(tmp_path):
    module = network()
    optimizer = Optimizer(module.named_parameters(), OptimizerConfig(ema_decay=0.8))
    seen = [[p.detach().double().clone() for p in module.parameters()]]
    for step in range(6):
        take_steps(module, optimizer, [step])
        seen.append([p.detach().double().clone() for p in module.parameters()])
    shares = [0.8**6] + [0.2 * 0.8 ** (6 - k) for k in range(1, 7)]
    expected = [sum(share * w for share, w in zip(shares, weights, strict=True)) for weights in zip(*seen, strict=True)]
    for average, value in zip(optimizer.average.tensors().values(), expected, strict=True):
        torch.testing.assert_close(average.double(), value, atol=1e-6, rtol=1e-6)
    trained = [p.detach().clone() for p in module.parameters()]
    with optimizer.average.in_place_of_weights():
        for parameter, value in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.detach().double(), value, atol=1e-6, rtol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), trained, strict=True))
    save(tmp_path, optimizer.state())
    with pytest.raises(ValueError, match=r"another optimizer\.ema_decay"):
        load(Optimizer(network().named_parameters(), OptimizerConfig()), tmp_path)


def test_a_failed_average_is_reported():
    module = network()
    optimizer = Optimizer(module.named_parameters(), OptimizerConfig(ema_decay=0.8))
    optimizer.average._average["0.weight"] = torch.zeros(1, 2, 3)
    take_steps(module, optimizer, [0])
    with pytest.raises(RuntimeError, match="average of the weights could not be updated"):
        optimizer.average.tensors()


def test_offloaded_moments_come_back():
    one, other = network(), network()
    config = OptimizerConfig(lr=1e-2)
    optimizer, undisturbed = Optimizer(one.named_parameters(), config), Optimizer(other.named_parameters(), config)
    for step in range(4):
        take_steps(one, optimizer, [step])
        take_steps(other, undisturbed, [step])
        optimizer.offload()
        assert not any(optimizer.state_of(p)["exp_avg"].untyped_storage().nbytes() for p in one.parameters())
    assert_equal(one, other)


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

"""Routed experts in FP8 against float64 autograd, and the layers that convert picks."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM, DeepseekV3MoE

import models.experts
from fp8.config import Fp8Config
from fp8.convert import convert, quantised_names
from fp8.experts import grouped_mlp
from fp8.weights import WeightBlocks
from models.weight_names import hub_views
from rollouts.buckets import on_wire

CONFIG = Fp8Config(backend="reference")
BLOCKS = WeightBlocks(CONFIG)


def exact_mlp(x, counts, gate_up, down):
    """Expert by expert, in the dtype of its arguments."""
    parts = []
    for rows, both, last in zip(x.split(counts), gate_up, down, strict=True):
        gate, up = (rows @ both.T).chunk(2, dim=-1)
        parts.append((F.silu(gate) * up) @ last.T)
    return torch.cat(parts)


def error(got, expected) -> float:
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("counts", [[128, 256, 0, 5], [0, 0, 0, 1], [300, 41, 7, 200]])
@pytest.mark.parametrize(("width", "inner"), [(256, 128), (160, 96)])  # 96: gate and up do not end where blocks do
def test_against_float64(counts, width, inner):
    torch.manual_seed(0)
    x = torch.randn(sum(counts), width)
    gate_up, down = torch.randn(4, 2 * inner, width) / width**0.5, torch.randn(4, width, inner) / inner**0.5
    gradient = torch.randn(sum(counts), width) * 1e-6
    leaves = [t.double().requires_grad_() for t in (x, gate_up, down)]
    expected = exact_mlp(leaves[0], counts, leaves[1], leaves[2])
    expected_grads = torch.autograd.grad(expected, leaves, gradient.double())
    leaves = [t.clone().requires_grad_() for t in (x, gate_up, down)]
    got = grouped_mlp(leaves[0], torch.tensor(counts), leaves[1], leaves[2], BLOCKS)
    got_grads = torch.autograd.grad(got, leaves, gradient)
    assert error(got.detach(), expected.detach()) < 0.08  # three roundings in a row: x, weights, h
    for one, other in zip(got_grads, expected_grads, strict=True):
        assert error(one, other) < 0.12
    for expert, count in enumerate(counts):  # an expert without rows gets no gradient
        assert bool((got_grads[1][expert] != 0).any()) == (count > 0)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 0))
@settings(max_examples=20)
def test_experts_do_not_see_each_others_rows(counts):
    torch.manual_seed(1)
    experts = len(counts)
    x = torch.randn(sum(counts), 64)
    gate_up, down = torch.randn(experts, 64, 64), torch.randn(experts, 64, 32)
    together = grouped_mlp(x, torch.tensor(counts), gate_up, down, BLOCKS)
    alone = [
        grouped_mlp(rows, torch.tensor([len(rows)]), gate_up[e : e + 1], down[e : e + 1], BLOCKS)
        for e, rows in enumerate(x.split(counts))
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def tiny(**settings) -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 32, "kv_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    }  # fmt: skip
    return DeepseekV3ForCausalLM(DeepseekV3Config(**(sizes | settings))).eval()


def test_the_moe_layer_weighs_and_adds_up_as_transformers_does():
    model = tiny()
    moe = next(m for m in model.modules() if isinstance(m, DeepseekV3MoE))
    hidden = torch.randn(2, 9, 64)
    expected = moe(hidden)
    model.set_experts_implementation(models.experts.NAME)
    assert torch.equal(moe(hidden), expected)  # nothing is plugged in: transformers' own product
    moe.experts.grouped_mlp = lambda x, counts, gate_up, down: exact_mlp(x, counts.tolist(), gate_up, down)
    assert torch.allclose(moe(hidden), expected, atol=1e-6)
    moe.experts.grouped_mlp = partial(grouped_mlp, blocks=BLOCKS)
    assert 1e-4 < error(moe(hidden), expected.double()) < 0.1


def test_the_audit_names_every_weight_and_what_it_computes_in():
    model = tiny()
    lines = {line.module: line for line in convert(model, CONFIG)}
    assert sum(line.parameters for line in lines.values()) == sum(p.numel() for p in model.parameters())
    fp8 = {name for name, line in lines.items() if line.computes_in == "fp8"}
    attention = {
        f"model.layers.{layer}.self_attn.{kind}_proj" for layer in (0, 1) for kind in ("q_a", "q_b", "kv_b", "o")
    }
    attention |= {f"model.layers.{layer}.self_attn.kv_a_proj_with_mqa" for layer in (0, 1)}
    dense = {f"model.layers.0.mlp.{kind}_proj" for kind in ("gate", "up", "down")}
    shared = {f"model.layers.1.mlp.shared_experts.{kind}_proj" for kind in ("gate", "up", "down")}
    assert fp8 == attention | dense | shared | {"model.layers.1.mlp.experts"}
    assert {lines[name].computes_in for name in lines if name not in fp8} == {"float32"}
    for kept in ("lm_head", "model.embed_tokens", "model.layers.1.mlp.gate", "model.norm"):
        assert kept in lines


def test_training_and_engines_quantise_the_same_weights():
    model = tiny()
    convert(model, CONFIG)
    sent = {name for key, view in hub_views(model).items() for name, tensor in on_wire(key, view, "fp8")
            if tensor.dtype == torch.float8_e4m3fn}  # fmt: skip
    assert quantised_names(model) == sent and len(sent) == 2 * 5 + 3 + 3 + 4 * 3


def test_a_converted_model_trains():
    model = tiny()
    convert(model, CONFIG)
    model.set_experts_implementation(models.experts.NAME)
    ids = torch.randint(0, 64, (1, 40))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_what_cannot_run_in_fp8_is_refused_before_anything_is_changed():
    model = tiny(hidden_act="gelu")
    with pytest.raises(ValueError, match=r"mlp.experts cannot run in FP8: its activation is GELUActivation, not SiLU"):
        convert(model, CONFIG)
    assert quantised_names(model) == set()


def test_kept_blocks_follow_every_change_of_the_weights():
    kept, made_anew = tiny(), tiny()
    for model, keep in ((kept, True), (made_anew, False)):
        convert(model, CONFIG, keep_blocks=keep)
        model.set_experts_implementation(models.experts.NAME)
    ids = torch.randint(0, 64, (1, 20))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True) for model in (kept, made_anew)]
    other = {name: torch.randn_like(tensor) / 10 for name, tensor in made_anew.state_dict().items()}
    for step in range(4):
        if step == 2:
            for model in (kept, made_anew):
                model.load_state_dict(other)
        losses = [model(input_ids=ids, labels=ids).loss for model in (kept, made_anew)]
        assert torch.equal(*losses)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

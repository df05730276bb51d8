"""Routing replay: what is recorded is what computed a token, and what is forced is what computes it."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models.attention import PackedLayout
from models.checkpoint import load_model
from models.routing import LoadCounter, routers
from models.routing_replay import RoutingReplay, gates

LENGTHS = (9, 1, 17, 4)  # of the sequences in a row
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 48, "moe_intermediate_size": 16, "max_position_embeddings": 64, "num_experts_per_tok": 2,
}  # fmt: skip
DEEPSEEK = SHAPE | {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 4, "topk_group": 2,
}  # fmt: skip
V4_LAYERS = {"mlp_layer_types": ["hash_moe", "moe", "moe"]}
# name: (model type, config, MoE layers, those of them with a selection bias)
MODELS = {
    "v2_greedy": ("deepseek_v2", DEEPSEEK | {"topk_method": "greedy"}, 2, 0),
    "v2_groups": ("deepseek_v2", DEEPSEEK | {"topk_method": "group_limited_greedy"}, 2, 0),
    "v3": ("deepseek_v3", DEEPSEEK, 2, 2),
    "v3_not_normalised": ("deepseek_v3", DEEPSEEK | {"norm_topk_prob": False}, 2, 2),
    "v32": ("deepseek_v32", DEEPSEEK | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}, 2, 2),
    "v4": ("deepseek_v4", SHAPE | V4_LAYERS | {"head_dim": 16, "qk_rope_head_dim": 8, "n_routed_experts": 8}, 3, 2),
    "qwen3": ("qwen3_moe", SHAPE | {"head_dim": 16, "num_experts": 8, "norm_topk_prob": True}, 3, 0),
    "qwen3_not_normalised": ("qwen3_moe", SHAPE | {"head_dim": 16, "num_experts": 8, "norm_topk_prob": False}, 3, 0),
}


def build(name: str):
    kind, shape, layers, biased = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))
    with torch.no_grad():
        for module_name, module in model.named_modules():
            if module_name.endswith("gate"):
                torch.nn.init.normal_(module.weight)
            if hasattr(module, "tid2eid"):
                module.tid2eid[:] = torch.rand(64, 8).argsort(-1)[:, :2]
    return model, layers, biased


def row(lengths=LENGTHS, seed=0):
    """Arguments of a model call on a packed row of random tokens."""
    ids = torch.randint(8, 300, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    layout = PackedLayout.from_lengths(lengths)
    return {"input_ids": ids, "position_ids": positions, "layout": layout, "use_cache": False}


def others(replay: RoutingReplay, tokens: int, seed=1) -> torch.Tensor:
    """Random experts [T, L, K], different within a token and layer."""
    noise = torch.rand(tokens, replay.layers, replay.num_experts, generator=torch.Generator().manual_seed(seed))
    return noise.argsort(-1)[..., : replay.top_k]


def outcome(model, given=None, force=True, lengths=LENGTHS):
    """(logits, gradients by name, Routes) of one pass over a row and backward, under `watch`."""
    model.zero_grad()
    with RoutingReplay(model).watch(given, force=force) as routes:
        logits = model(**row(lengths)).logits
        (logits.sin() * torch.linspace(0, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, routes


@pytest.fixture
def model(tiny_checkpoint):
    return load_model(tiny_checkpoint).train()


# --- the routers of transformers ---


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_are_the_routers_own(name, dtype):
    """For its own choice bit for bit: the form of every router is that of its forward."""
    model, layers, _ = build(name)
    replay = RoutingReplay(model)
    replay.check()
    assert replay.layers == layers
    assert (replay.num_experts, replay.top_k) == (8, 2)
    hidden, ids = torch.randn(1, 20, 32).to(dtype), torch.arange(20)[None]
    for router, _ in replay._blocks:
        router.to(dtype)
        logits, weights, chosen = router(hidden, ids) if "Hash" in type(router).__name__ else router(hidden)
        again = gates(router, logits, chosen)
        assert again.dtype == weights.dtype
        assert torch.equal(again, weights)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_moe_layer_is_found_and_forced(name):
    """The load is balanced by routers with a selection bias alone; replay needs all of them."""
    model, layers, biased = build(name)
    found = [router for _, router in routers(model)]
    assert len(found) == layers
    assert sum(hasattr(router, "e_score_correction_bias") for router in found) == biased
    replay, ids = RoutingReplay(model), torch.arange(20)[None]
    given = others(replay, 20)
    with torch.no_grad(), replay.watch() as free:
        expected = model(ids).logits
    with torch.no_grad(), replay.watch(given, force=True) as routes:
        logits = model(ids).logits
    with torch.no_grad(), replay.watch(free.experts(), force=True):
        assert torch.equal(model(ids).logits, expected)
    assert routes.experts().tolist() == given.tolist()
    assert free.experts().shape == (20, layers, 2)
    assert not torch.allclose(logits, expected)


def test_routers_of_another_form_are_refused():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SHAPE, num_local_experts=8))
    with pytest.raises(ValueError, match="does not know how MixtralTopKRouter weighs its experts"):
        RoutingReplay(model).check()
    with pytest.raises(ValueError, match="MixtralTopKRouter"), RoutingReplay(model).watch():
        pass


# --- values and gradients ---


def test_its_own_choice_forced_changes_no_bit(model):
    logits, gradients, _ = outcome(model)
    with torch.no_grad(), RoutingReplay(model).watch() as routes:
        model(**row())
    forced_logits, forced_gradients, forced = outcome(model, routes.experts())
    assert torch.equal(forced_logits, logits)
    assert forced_gradients.keys() == gradients.keys()
    assert any(name.endswith("gate.weight") and (g != 0).any() for name, g in gradients.items())
    for name, gradient in gradients.items():
        assert torch.equal(forced_gradients[name], gradient), name
    pairs = sum(LENGTHS) * 2
    assert forced.agreement(forced.own) == forced.agreement(forced.used) == (pairs, pairs)


@pytest.mark.parametrize("normalised", [True, False])
def test_forced_experts_of_one_layer_against_the_formulas(normalised):
    """Value and gradients (router, experts, input) of a MoE layer, against loops over tokens and experts in float64."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = AutoConfig.for_model("deepseek_v3", **DEEPSEEK | {"norm_topk_prob": normalised})
    torch.manual_seed(3)
    layer = DeepseekV3MoE(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer.gate.e_score_correction_bias.normal_()  # has no part in it
    hidden = torch.randn(1, 13, 32, requires_grad=True)
    direction = torch.randn(13, 32)
    replay = RoutingReplay(layer)
    given = others(replay, 13)
    with replay.watch(given, force=True) as routes:
        out = layer(hidden)
        (out[0] * direction).sum().backward()

    weights = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    x_TD = hidden.detach()[0].double().requires_grad_()
    rows = []
    for x, chosen in zip(x_TD, given[:, 0].tolist(), strict=True):
        scores = [1 / (1 + torch.exp(-(weights["gate.weight"][e] @ x))) for e in chosen]
        total = sum(scores) if normalised else 1.0
        y = mlp(x, *(weights[f"shared_experts.{part}_proj.weight"] for part in ("gate", "up", "down")))
        for expert, score in zip(chosen, scores, strict=True):
            gate, up = weights["experts.gate_up_proj"][expert].chunk(2)
            y = y + config.routed_scaling_factor * score / total * mlp(
                x, gate, up, weights["experts.down_proj"][expert]
            )
        rows.append(y)
    (torch.stack(rows) * direction.double()).sum().backward()

    close(out[0], torch.stack(rows))
    close(hidden.grad[0], x_TD.grad)
    for name, parameter in layer.named_parameters():
        close(parameter.grad, weights[name].grad)
    assert (layer.gate.weight.grad.abs().sum(-1) > 0).sum() == len(set(given.flatten().tolist()))
    equal, pairs = routes.agreement(routes.own)
    assert pairs == 13 and equal < 13
    assert routes.agreement(routes.used) == (13, 13)


def mlp(x, gate, up, down):
    a = gate @ x
    return down @ (a / (1 + torch.exp(-a)) * (up @ x))


def close(ours, reference):
    scale = float(reference.detach().abs().max())
    torch.testing.assert_close(ours.double(), reference, rtol=2e-5, atol=2e-5 * scale)


# --- rows of several sequences ---


def test_recorded_on_a_row_and_forced_sequence_by_sequence(model):
    """What a packed row records is what each sequence alone records, and steers a model of other weights."""
    with torch.no_grad(), RoutingReplay(model).watch() as packed:
        model(**row())
    moved = deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name.endswith("gate.weight"):
                parameter += parameter.roll(1, 0)
    start, different = 0, 0
    for length in LENGTHS:
        alone = row()
        alone = {k: v[:, start : start + length] for k, v in alone.items() if k.endswith("_ids")}
        alone |= {"layout": PackedLayout.from_lengths([length]), "use_cache": False}
        expected = packed.experts()[start : start + length]
        with torch.no_grad(), RoutingReplay(model).watch() as routes:
            model(**alone)
        assert torch.equal(routes.experts().sort(-1).values, expected.sort(-1).values)
        with torch.no_grad(), RoutingReplay(moved).watch(expected, force=True) as forced:
            moved(**alone)
        assert torch.equal(forced.experts(), expected)
        different += int((forced.own[0] != expected[:, 0]).sum())
        start += length
    assert different > 0


def test_agreement_is_of_sets_and_leaves_out_what_was_not_given(model):
    with torch.no_grad(), RoutingReplay(model).watch() as routes:
        model(**row())
    given = routes.experts().to(torch.int16).flip(-1)  # another order, the same sets
    given[3:8, 1] = others(RoutingReplay(model), 5)[:, 0].to(torch.int16)
    given[[0, 10]] = -1
    expected = sum(
        set(given[t, layer].tolist()) == set(routes.experts()[t, layer].tolist())
        for t in range(sum(LENGTHS))
        for layer in range(2)
        if t not in (0, 10)
    )
    _, _, compared = outcome(model, given, force=False)
    assert compared.agreement(compared.own) == compared.agreement(compared.used) == (expected, 2 * (sum(LENGTHS) - 2))
    assert expected < 2 * (sum(LENGTHS) - 2)


def test_tokens_without_a_choice_route_themselves(model):
    replay = RoutingReplay(model)
    free_logits, free_gradients, free = outcome(model)
    given = torch.full((sum(LENGTHS), 2, 2), -1)
    logits, gradients, routes = outcome(model, given)
    assert torch.equal(logits, free_logits)
    assert all(torch.equal(gradients[name], g) for name, g in free_gradients.items())
    assert routes.agreement(routes.used) == (0, 0)
    given[-LENGTHS[-1] :] = others(replay, LENGTHS[-1])
    logits, _, routes = outcome(model, given)
    assert torch.equal(routes.experts()[: -LENGTHS[-1]], free.experts()[: -LENGTHS[-1]])
    assert torch.equal(routes.experts()[-LENGTHS[-1] :].long(), given[-LENGTHS[-1] :])
    torch.testing.assert_close(logits[:, : -LENGTHS[-1]], free_logits[:, : -LENGTHS[-1]])
    assert not torch.allclose(logits[:, -LENGTHS[-1] :], free_logits[:, -LENGTHS[-1] :])


# --- what it must not disturb ---


def test_recomputed_activations_follow_the_same_experts(model):
    given = others(RoutingReplay(model), sum(LENGTHS))
    logits, gradients, routes = outcome(model, given)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again_logits, again_gradients, again = outcome(model, given)
    assert torch.equal(again_logits, logits)
    assert all(torch.equal(again_gradients[name], g) for name, g in gradients.items())
    assert again.agreement(again.own) == routes.agreement(routes.own)
    assert again.agreement(again.used) == (2 * sum(LENGTHS),) * 2


def test_closing_before_backward_is_an_error_when_activations_are_recomputed(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    replay = RoutingReplay(model)
    with replay.watch(others(replay, sum(LENGTHS)), force=True):
        logits = model(**row()).logits
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        logits.sum().backward()


def test_the_load_is_that_of_the_experts_used(model):
    counter = LoadCounter(model)
    given = others(RoutingReplay(model), sum(LENGTHS))
    outcome(model, given)
    for layer, counts in enumerate(counter.counts.values()):
        assert counts.tolist() == torch.bincount(given[:, layer].flatten(), minlength=8).tolist()


def test_nothing_is_left_behind(model):
    replay = RoutingReplay(model)
    logits, _, _ = outcome(model)
    with pytest.raises(KeyError), replay.watch(others(replay, sum(LENGTHS)), force=True):
        raise KeyError
    assert torch.equal(outcome(model)[0], logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_dense_model_has_nothing_to_replay(llama_checkpoint):
    model = load_model(llama_checkpoint)
    replay = RoutingReplay(model)
    replay.check()
    assert replay.layers == 0
    with torch.no_grad(), replay.watch(np.zeros((sum(LENGTHS), 2, 2)), force=True) as routes:
        model(**row())
    assert routes.agreement(routes.own) == (0, 0)


# --- what does not fit ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g[:, :1], r"shape \(31, 1, 2\); this model has 2 MoE layers with 2 experts per token"),
        (lambda g: g[:-1], "routed experts of 30 tokens were given for a pass over 31"),
        (lambda g: put(g, [3, 3]), r"token 5 in MoE layer 1 are \[3, 3\]: not 2 different ones out of 8"),
        (lambda g: put(g, [3, 8]), r"\[3, 8\]"),
        (lambda g: put(g, [-1, 2]), r"\[-1, 2\]"),
        (lambda g: put(g, [-2, -2]), r"\[-2, -2\]"),
    ],
    ids=["layers", "tokens", "twice", "beyond", "half", "negative"],
)
def test_experts_that_do_not_fit_are_refused(model, change, message):
    replay = RoutingReplay(model)
    given = change(others(replay, sum(LENGTHS)).numpy())
    with pytest.raises(ValueError, match=message), replay.watch(given, force=True):
        model(**row())
    assert not any(m._forward_hooks for m in model.modules())


def put(given, experts):
    given[5, 1] = experts
    return given


@pytest.mark.parametrize(("experts", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_stored_experts_are_small(experts, dtype):
    config = DEEPSEEK | {"n_routed_experts": experts, "n_group": 1, "topk_group": 1}
    replay = RoutingReplay(AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", **config)))
    noted = torch.tensor([[[0, experts - 1]]]).to(replay.dtype)
    stored = replay.compact(noted)
    assert stored.dtype == dtype
    assert stored.tolist() == [[[0, experts - 1]]]
    noted.zero_()
    assert stored[0, 0, 1] == experts - 1

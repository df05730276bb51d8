"""Recomputed activations: the same gradients to the bit, counted once, with less kept."""

from unittest import mock

import numpy as np
import pytest
import torch

from fp8 import gemm
from fp8.config import Fp8Config
from fp8.convert import convert
from models.attention import PackedLayout
from models.checkpoint import load_model
from models.recompute import set_recompute
from models.routing import LoadCounter, SequenceBalance
from models.routing_replay import RoutingReplay
from sft.batch import Example, pack_examples
from sft.trainer import SupervisedTrainer
from tests.architectures import make_architecture
from training.config import OptimizerConfig


def stacked(counter) -> torch.Tensor:
    """[R, E] of a LoadCounter."""
    return torch.stack(list(counter.counts.values())) if counter.counts else torch.zeros(0, 0)


POLICIES = ("norms_and_up_projections", "blocks")
LENGTHS = [15, 25, 8]
RNG = np.random.default_rng(0)
IDS = torch.from_numpy(RNG.integers(8, 300, (1, sum(LENGTHS))))
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])[None]


@pytest.fixture(scope="module", params=["deepseek_v2", "deepseek_v3", "deepseek_v32", "llama", "qwen3_moe"])
def checkpoint(request, tmp_path_factory):
    return make_architecture(tmp_path_factory.mktemp("architecture") / request.param, request.param)


def hidden_states(model):
    return model.model(
        input_ids=IDS, position_ids=POSITIONS, use_cache=False, layout=PackedLayout.from_lengths(LENGTHS)
    ).last_hidden_state


def outcome(checkpoint, policy):
    """(loss, gradients, expert loads) of one pass with a balance loss."""
    model = load_model(checkpoint).train()
    set_recompute(model, policy)
    counter, balance = LoadCounter(model), SequenceBalance(model)
    with balance.watch(LENGTHS) as losses:
        hidden = hidden_states(model)
    loss = (hidden**2).sum() + sum(losses, torch.zeros(()))
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, stacked(counter)


@pytest.fixture(scope="module")
def kept(checkpoint):
    return outcome(checkpoint, "none")


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_and_loads_are_equal_to_the_bit(checkpoint, kept, policy):
    loss, gradients, loads = outcome(checkpoint, policy)
    assert torch.equal(loss, kept[0])
    assert gradients.keys() == kept[1].keys()
    assert all(torch.equal(gradients[name], kept[1][name]) for name in gradients)
    assert torch.equal(loads, kept[2])


def bytes_of_saved_tensors(model) -> int:
    """Of distinct storages that autograd keeps between the passes, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden_states(model).sum()
    return sum(storages.values())


def test_fp8_products_are_kept_but_for_up_projections(tiny_checkpoint):
    counts = {}
    for policy in ("none", *POLICIES):
        model = load_model(tiny_checkpoint).train()
        convert(model, Fp8Config())
        set_recompute(model, policy)
        product = mock.Mock(wraps=gemm._reference)
        with mock.patch.dict(gemm._PROGRAMS, reference=product):
            (hidden_states(model) ** 2).sum().backward()
        counts[policy] = product.call_count
    up_projections = 2 * 3  # q_b_proj and kv_b_proj of three layers
    assert counts["norms_and_up_projections"] == counts["none"] + up_projections
    assert counts["blocks"] > counts["norms_and_up_projections"]


def test_blocks_keep_the_least(tiny_checkpoint):
    model = load_model(tiny_checkpoint).train()
    everything = bytes_of_saved_tensors(model)
    set_recompute(model, "blocks")
    assert bytes_of_saved_tensors(model) < 0.1 * everything


@pytest.mark.parametrize("policy", POLICIES)
def test_replayed_routes_are_followed_when_layers_run_again(tiny_checkpoint, policy):
    results = []
    for name in ("none", policy):
        model = load_model(tiny_checkpoint).train()
        set_recompute(model, name)
        counter, replay = LoadCounter(model), RoutingReplay(model)
        given = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i))[:2] for i in range(96)])
        with replay.watch(given.view(48, 2, 2), force=True) as routes:
            (hidden_states(model) ** 2).sum().backward()
        assert torch.equal(routes.experts().long(), given.view(48, 2, 2))
        results.append(({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, stacked(counter)))
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in results[0][0])
    assert torch.equal(results[0][1], results[1][1])


def test_only_training_recomputes(tiny_checkpoint):
    model = load_model(tiny_checkpoint).eval()
    before = bytes_of_saved_tensors(model)
    set_recompute(model, "blocks")
    assert bytes_of_saved_tensors(model) > 0.9 * before


@pytest.mark.parametrize("policy", POLICIES)
def test_a_supervised_step_with_mtp_is_the_same(tiny_checkpoint, policy):
    examples = [Example(token_ids=RNG.integers(8, 300, n), loss_mask=np.ones(n, bool)) for n in (20, 30)]
    rows, outcomes = pack_examples(examples, 64), []
    for name in ("none", policy):
        trainer = SupervisedTrainer(str(tiny_checkpoint), OptimizerConfig(), mtp=True, device="cpu", recompute=name)
        metrics = [trainer.step(rows, 1e-3, 0.1, 0.01, 1e-2) for _ in range(2)]
        outcomes.append((metrics, {n: p.detach() for n, p in trainer.optimizer.parameters.items()}))
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(outcomes[0][1][name], outcomes[1][1][name]) for name in outcomes[0][1])

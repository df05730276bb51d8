"""Training in FP8 against FP32 with the same weights and batches: the comparison that would show a bug.

Separate runs drift apart by more than FP8 costs (benchmarks/fp8_training.py measures both), so they prove little.
"""

import copy
import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fp8.config import Fp8Config
from fp8.convert import audit, convert
from fp8.weights import WeightBlocks
from models.attention import PackedLayout
from models.checkpoint import load_model, load_tokenizer
from models.routing_replay import RoutingReplay
from sft.config import PretrainConfig
from sft.pretrain import corpus_batch
from sft.trainer import SupervisedTrainer
from training.config import OptimizerConfig, TrainerConfig
from training.logprobs import token_logprobs

BASE = Path(__file__).parents[1] / "recipes" / "tiny" / "base"


@pytest.fixture(scope="module")
def batches():
    config = PretrainConfig(documents_per_step=64, trainer=TrainerConfig(row_tokens=4096))
    tokenizer = load_tokenizer(BASE)
    return [corpus_batch(config, tokenizer, 10**6 + step)[0] for step in range(4)]


def mean_loss(model, row) -> torch.Tensor:
    hidden = model.model(
        input_ids=torch.from_numpy(row.input_ids)[None],
        position_ids=torch.from_numpy(row.position_ids)[None],
        use_cache=False,
        layout=PackedLayout.from_lengths(np.diff(row.cu_seqlens).tolist()),
    ).last_hidden_state
    predicting = hidden[0, torch.from_numpy(row.predicting_positions)]
    return -token_logprobs(predicting, model.lm_head.weight, torch.from_numpy(row.target_ids))[0].mean()


def gradient(model, row, routes=None):
    with RoutingReplay(model).watch(routes, force=routes is not None) as seen:
        loss = mean_loss(model, row)
        loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.zero_grad()
    return loss.item(), gradients, seen.experts()


def cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(torch.dot(one, two) / (one.norm() * two.norm()))


# Powers of two waste up to a binade of E4M3, which a batch with a small gradient shows.
@pytest.mark.parametrize(("scales", "least_cosine"), [("float32", 0.99), ("power_of_two", 0.98)])
def test_loss_and_gradient_stay_close_along_a_run(batches, scales, least_cosine):
    model = load_model(BASE).train()
    twin = copy.deepcopy(model)
    convert(twin, Fp8Config(backend="reference", scales=scales), keep_blocks=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    gaps, flips = [], []
    for row in batches:
        twin.load_state_dict(model.state_dict())
        loss, exact, experts = gradient(model, row)
        fp8_loss, rounded, fp8_experts = gradient(twin, row)
        _, replayed, forced = gradient(twin, row, routes=experts)
        gaps.append((fp8_loss - loss) / loss)
        flips.append(1 - (experts.sort(-1).values == fp8_experts.sort(-1).values).all(-1).float().mean().item())
        assert cosine(exact, rounded) > least_cosine
        assert torch.equal(forced, experts) and cosine(exact, replayed) > least_cosine
        mean_loss(model, row).backward()
        optimizer.step()
        optimizer.zero_grad()
    # What DeepSeek-V3 reports (appendix B.1). Over fewer tokens than these 10,000, rounding noise alone may be more.
    assert 0 < abs(np.mean(gaps)) < 0.0025
    assert 0 < np.mean(flips) < 0.1  # it does compute in FP8


def test_a_copy_computes_with_its_own_weights(batches):
    """The reference of RL is a copy of the policy: blocks that were kept for one must not serve the other."""
    policy = load_model(BASE)
    convert(policy, Fp8Config(), keep_blocks=True)
    before = mean_loss(policy, batches[0]).item()
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 0.9
    assert mean_loss(reference, batches[0]).item() == before
    assert mean_loss(policy, batches[0]).item() != before


def test_what_is_computed_again_is_computed_alike(batches):
    steps = []
    for recompute in ("none", "norms_and_up_projections", "blocks"):
        trainer = SupervisedTrainer(
            str(BASE), OptimizerConfig(), mtp=True, device="cpu", precision="fp8", recompute=recompute
        )
        steps.append([trainer.step(batches[:1], 1e-4, mtp_weight=0.1, bias_speed=0.0) for _ in range(2)])
        kept = [blocks for blocks in gc.get_objects() if isinstance(blocks, WeightBlocks)]
        assert kept and all(len(blocks._kept) <= 2 for blocks in kept)  # of the weights themselves, not of views
    assert steps[0] == steps[1] == steps[2]


def test_a_checkpoint_says_what_its_layers_were_computed_in(tmp_path):
    trainer = SupervisedTrainer(str(BASE), OptimizerConfig(), device="cpu", precision="fp8")
    trainer.save_checkpoint(str(tmp_path))
    lines = {line["module"]: line for line in json.loads((tmp_path / "precision.json").read_text())}
    assert lines["model.model.layers.1.mlp.experts"]["computes_in"] == "fp8"
    assert lines["model.lm_head"]["computes_in"] == "float32"
    load_model(tmp_path)


def test_the_audit_of_rounded_weights_is_what_layers_are_handed(batches):
    """As on GPUs, where all that is not FP8 gets bfloat16 weights; routers multiply these in float32."""
    trainer = SupervisedTrainer(str(BASE), OptimizerConfig(), device="cpu", precision="bfloat16")
    seen: dict[str, str] = {}

    def note(name: str, module: torch.nn.Module, output: object) -> None:
        product = output[0] if isinstance(output, tuple) else output
        if isinstance(product, torch.Tensor) and next(module.parameters(recurse=False), None) is not None:
            seen[name] = str(product.dtype).removeprefix("torch.")

    for name, module in trainer.policy.named_modules():
        module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
    trainer.next_token_losses(batches[0])
    said = {line.module: line.computes_in for line in audit(trainer.policy, rounded=True)}
    assert len(seen) > 20 and {name: said[name] for name in seen} == seen
    assert {said[name] for name in said if name.endswith(".gate")} == {"float32"}
    assert set(said.values()) == {"float32", "bfloat16"}

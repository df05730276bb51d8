"""Every architecture that r1 trains goes through a supervised step and a GRPO update, and learns from both."""

import numpy as np
import pytest

from rl.batch import TrainingSequence
from rl.objective import ObjectiveConfig
from rl.trainer import PolicyTrainer
from sft.batch import Example, pack_examples
from sft.trainer import SupervisedTrainer
from tests.architectures import make_architecture
from training.config import OptimizerConfig

RNG = np.random.default_rng(0)
EXAMPLES = [Example(token_ids=RNG.integers(8, 300, n), loss_mask=np.arange(n) >= 3) for n in (12, 20, 9)]
EXPERTS = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "qwen3_moe")


@pytest.fixture(scope="module", params=[*EXPERTS, "llama", "qwen2", "qwen3"])
def checkpoint(request, tmp_path_factory):
    return make_architecture(tmp_path_factory.mktemp("architecture") / request.param, request.param)


def sequences():
    """Two completions of one prompt, one better than the other."""
    prompt = RNG.integers(8, 300, 5)
    return [
        TrainingSequence(
            prompt_ids=prompt, completion_ids=RNG.integers(8, 300, n), advantage=advantage,
            sampling_logprobs=np.full(n, -5.8, dtype=np.float32),
        )
        for n, advantage in ((8, 1.0), (11, -1.0))
    ]  # fmt: skip


def test_supervised_steps_lower_the_loss(checkpoint):
    trainer = SupervisedTrainer(str(checkpoint), OptimizerConfig(lr=2e-3), device="cpu")
    rows = pack_examples(EXAMPLES, 32)
    steps = [trainer.step(rows, 2e-3, mtp_weight=0.0, bias_speed=0.001, balance_weight=1e-4) for _ in range(4)]
    losses = [metrics["loss/nll"] for metrics in steps]
    assert np.isfinite(losses).all() and losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05
    assert ("moe/max_violation" in steps[0]) == ("loss/balance" in steps[0]) == (checkpoint.name in EXPERTS)


def test_grpo_updates_prefer_the_better_completion(checkpoint):
    trainer = PolicyTrainer(
        str(checkpoint), OptimizerConfig(lr=1e-3), objective=ObjectiveConfig().resolve(), temperature=1.0,
        row_tokens=64, bias_speed=0.001, balance_weight=1e-4, device="cpu",
    )  # fmt: skip
    batch = trainer.annotate(sequences())
    losses = [trainer.update(batch, lr=1e-3, max_new_tokens=16)["loss/policy"] for _ in range(4)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    better, worse = trainer.annotate(batch)
    assert better.old_logprobs.sum() > batch[0].old_logprobs.sum()
    assert worse.old_logprobs.sum() < batch[1].old_logprobs.sum()


def test_grpo_trains_the_mtp_module_beside_the_policy(tiny_checkpoint):
    """The policy's step is the same with and without it."""
    weights, metrics = [], []
    for weight in (0.0, 0.5):
        trainer = PolicyTrainer(
            str(tiny_checkpoint), OptimizerConfig(lr=1e-3, clip_norm=1e9), objective=ObjectiveConfig().resolve(),
            temperature=1.0, row_tokens=64, mtp_weight=weight, device="cpu",
        )  # fmt: skip
        RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
        batch = trainer.annotate(sequences())
        metrics.append(trainer.update(batch, lr=1e-3, max_new_tokens=16))
        weights.append({name: p.detach().clone() for name, p in trainer.policy.named_parameters()})
    same = {name for name in weights[0] if np.array_equal(weights[0][name], weights[1][name])}
    moved = {name for name in weights[0] if name.startswith("mtp.") and name not in same}
    assert {name for name in weights[0] if not name.startswith("mtp.")} <= same
    assert "mtp.eh_proj.weight" in moved
    assert "loss/mtp" not in metrics[0] and metrics[1]["loss/mtp"] > 0


def test_a_saved_state_goes_on_bit_for_bit(checkpoint, tmp_path):
    """Also where parameters never get a gradient, as V3.2's resting indexers."""
    rows = pack_examples(EXAMPLES, 32)

    def trainer():
        return SupervisedTrainer(str(checkpoint), OptimizerConfig(lr=1e-3), device="cpu")

    one, other = trainer(), trainer()
    one.step(rows, 1e-3, mtp_weight=0.0, bias_speed=0.001)
    one.begin_save(str(tmp_path))
    one.finish_save()
    other.load_state(str(tmp_path))
    again = [t.step(rows, 1e-3, mtp_weight=0.0, bias_speed=0.001) for t in (one, other)]
    assert again[0] == again[1]

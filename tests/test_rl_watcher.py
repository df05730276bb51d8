"""GRPO with a learned reward and its watch, with real processes on a very small model."""

from pathlib import Path

import pytest

from data.problem_pool import ProblemsConfig
from models.reward_head import RewardDescription, RewardHead, save_description, save_head
from rewards.config import RewardSpec
from rl import train
from rl.config import GRPOConfig, RewardWatchConfig
from rl.reward_watch import Comparison, RewardWatch
from rollouts.config import GeneratorConfig, RolloutConfig
from training.config import OptimizerConfig, TrainerConfig
from training.run_log import read_log
from training.stage import StageContext, StageError

HELPFUL = RewardSpec(use="rewards.preference:HelpfulReward", domains=["general"], from_share=0.5)
CONFIG = GRPOConfig(
    problems=ProblemsConfig(families=("chain_sum",), levels=(1,), instruction_share=0.5),
    rewards=(RewardSpec(use="toy_rewards:Digits"), HELPFUL),
    steps=8,
    questions_per_step=2,
    group_size=4,
    mini_batches=2,
    general_from_share=0.5,
    watch=RewardWatchConfig(every=1, problems=8, second=RewardSpec(use="rewards.utility:TrueUtility")),
    rollout=RolloutConfig(template="plain", max_new_tokens=8),
    generator=GeneratorConfig(max_slots=64),
    sample_in_trainer=True,
    optimizer=OptimizerConfig(lr=5e-3),
    trainer=TrainerConfig(device="cpu", threads=1, row_tokens=512, checkpoint_every=2),
)


@pytest.fixture(scope="module")
def helpful_rm(tmp_path_factory, tiny_checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("reward_model")
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    save_head(folder, RewardHead(64, seed=1).weight_D)
    save_description(folder, RewardDescription(objective="helpful", mean=0.0, std=1.0))
    return folder


def context(policy: Path, helpful_rm: Path, output: Path, **kwargs) -> StageContext:
    output.mkdir(exist_ok=True)
    return StageContext(name="rl", inputs={"policy": policy, "helpful_rm": helpful_rm}, output=output, seed=5, **kwargs)


@pytest.mark.slow
def test_general_problems_are_judged_late_and_watched_also_across_a_kill(
    ray_session, tiny_checkpoint, helpful_rm, tmp_path
):
    train.run(CONFIG, context(tiny_checkpoint, helpful_rm, tmp_path / "whole"))
    rows = read_log(tmp_path / "whole" / "metrics.jsonl")
    rollouts = [row for row in rows if "reward/mean" in row]
    assert ["reward/helpful" in row for row in rollouts] == [False, False, True, True]
    assert ["watch/reward" in row for row in rollouts] == [False, False, True, True]
    assert all(0 <= row["reward/helpful"] <= 1 and row["reward/helpful_errors"] == 0 for row in rollouts[2:])
    assert {"watch/accuracy", "watch/second", "watch/length", "watch/parted"} <= set(rollouts[2])
    assert rows[-1]["step"] == 8 and "watch/reward" in rows[-1]  # the policy that the stage leaves

    def kill(event):
        if event["step"] == 6 and event.get("phase") == "sampling":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(CONFIG, context(tiny_checkpoint, helpful_rm, tmp_path / "cut", report=kill))
    train.run(CONFIG, context(tiny_checkpoint, helpful_rm, tmp_path / "cut"))
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_an_alert_can_end_the_stage_with_the_policy_of_then(
    ray_session, tiny_checkpoint, helpful_rm, tmp_path, monkeypatch, caplog
):
    def compare(self, check):
        self.first, is_first = {"seen": {}}, not self.first
        metrics = {"watch/parted": float(not is_first)}
        return Comparison(metrics=metrics, alert="" if is_first else "they have parted")

    monkeypatch.setattr(RewardWatch, "compare", compare)
    stopping = CONFIG.model_copy(update={"watch": CONFIG.watch.model_copy(update={"on_alert": "stop"})})
    train.run(stopping, context(tiny_checkpoint, helpful_rm, tmp_path))
    rows = read_log(tmp_path / "metrics.jsonl")
    assert max(row["step"] for row in rows) == 6 and rows[-1] == {"step": 6, "watch/parted": 1.0}
    assert (tmp_path / "model.safetensors").exists() and "step 6: they have parted" in caplog.text


@pytest.mark.slow
def test_a_watched_reward_that_is_not_there_is_named(ray_session, tiny_checkpoint, helpful_rm, tmp_path):
    watch = CONFIG.watch.model_copy(update={"reward": "kindness"})
    with pytest.raises(StageError, match=r"watch.reward is 'kindness', the stage's rewards are digits, helpful"):
        train.run(CONFIG.model_copy(update={"watch": watch}), context(tiny_checkpoint, helpful_rm, tmp_path))

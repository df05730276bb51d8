"""Rule-based RL of a judge, and judges that score a policy's completions, with their real processes."""

from pathlib import Path

import pytest

from data.problem_pool import ProblemsConfig
from pipeline.config import load
from pipeline.errors import RecipeError
from rewards.config import RewardSpec
from rewards.judges import RemoteJudge
from rl.config import GRPOConfig
from rl.objective import ObjectiveConfig
from rollouts.config import GeneratorConfig, JudgeServiceConfig, RolloutConfig
from rollouts.judge import start_judges, stop_judges
from tests.taught_judge import SEED, make_judge
from training.config import OptimizerConfig, TrainerConfig
from training.run_log import read_log
from training.stage import StageContext, StageError

SERVICE = JudgeServiceConfig(
    generator=GeneratorConfig(replicas=1, max_slots=8), rollout=RolloutConfig(max_new_tokens=30, temperature=1.0)
)


@pytest.fixture(scope="module")
def taught(llama_checkpoint, tmp_path_factory) -> tuple[Path, ProblemsConfig]:
    return make_judge(llama_checkpoint, tmp_path_factory.mktemp("judge"))


def grpo(**settings) -> GRPOConfig:
    return GRPOConfig(
        **{
            "objective": ObjectiveConfig(kl_coef=0.02),
            "steps": 1,
            "questions_per_step": 3,
            "group_size": 8,
            "mini_batches": 1,
            "rollout": RolloutConfig(max_new_tokens=24),
            "sample_in_trainer": True,
            "optimizer": OptimizerConfig(lr=1e-3),
            "trainer": TrainerConfig(device="cpu", threads=1, row_tokens=512, checkpoint_every=100),
            "rewards": (RewardSpec(use="rewards.grm_rule:GRMRule"),),
            "judges": SERVICE,
        }
        | settings
    )


def run_stage(config: GRPOConfig, output: Path, **inputs: Path) -> list[dict]:
    from rl.train import run

    run(config, StageContext(name="judge_rl", inputs=inputs, output=output, seed=SEED))
    return read_log(output / "metrics.jsonl")


def test_a_judge_is_trained_by_the_rule_reward(ray_session, taught, tmp_path):
    policy, problems = taught
    rows = run_stage(grpo(problems=problems, steps=2), tmp_path, policy=policy)
    for row in rows:
        assert 0 < row["reward/pass_rate"] < 1 and row["experience/trained"] > 0
        assert row["reward/mean"] == pytest.approx(2 * row["reward/pass_rate"] - 1)
        assert row["reward/grm_rule_errors"] == 0
    trained, before = (path / "model.safetensors" for path in (tmp_path, policy))
    assert trained.read_bytes() != before.read_bytes()


def test_a_judge_that_writes_nonsense_stops_its_rl(ray_session, llama_checkpoint, taught, tmp_path):
    _, problems = taught
    with pytest.raises(
        StageError, match=r"judge_rl: the reward grm_rule could read none of 24 completions: .*no_scores"
    ):
        run_stage(grpo(problems=problems), tmp_path, policy=llama_checkpoint)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_policy_scored_by_nonsense_is_not_trained(ray_session, llama_checkpoint, tmp_path):
    config = grpo(
        problems=ProblemsConfig(families=("chain_sum",), levels=(1,), languages=("en",)),
        rewards=(
            RewardSpec(use="rewards.generative:Generative", options={"style": "terse", "votes": 2, "part": "whole"}),
        ),
    )
    with pytest.raises(StageError, match=r"cannot be scored, more than unscorable_limit.*no judgement could be read"):
        run_stage(config, tmp_path, policy=llama_checkpoint, grm=llama_checkpoint)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_served_judge_answers_alike_whatever_else_is_asked(ray_session, taught):
    policy, problems = taught
    assert problems.judging is not None
    prompts = [({"role": "user", "content": f"Judge {word}."},) for word in ("this", "that", "more")]
    handles = start_judges({"policy": policy, "grm": policy}, SERVICE)
    try:
        assert set(handles) == {"grm"}
        judge = RemoteJudge(handles["grm"], deadline_s=120)
        first = judge.answers(prompts, seed=1)
        assert first == judge.answers(prompts, seed=1) != judge.answers(prompts, seed=2)
        assert judge.answers(prompts[:2], seed=1) == first[:2]
        too_long = ({"role": "user", "content": "long " * 400},)
        assert judge.answers([too_long, prompts[1]], seed=1) == [None, first[1]]
    finally:
        stop_judges(handles)


def test_a_reward_without_its_judge_is_refused_before_the_run(tmp_path):
    recipe = tmp_path / "rl.yaml"
    recipe.write_text('stage: grpo\nrewards:\n  - {use: "rewards.generative:Generative"}\n')
    base = Path(__file__).parents[1] / "recipes/tiny/base"
    given = [f"inputs.policy={base}", "rollout.max_new_tokens=64"]
    with pytest.raises(
        RecipeError, match=r"Generative asks a judge: give stage 'rl' one, e\.g\. inputs: {grm: grm_rl}"
    ):
        load(recipe, given)
    assert load(recipe, [*given, f"inputs.grm={base}"]).stages["rl"].inputs[1].role == "grm"
    with pytest.raises(RecipeError, match="no reward of stage 'rl' asks its input 'judge'"):
        load(recipe, [*given, f"inputs.grm={base}", f"inputs.judge={base}"])

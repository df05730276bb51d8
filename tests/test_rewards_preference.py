"""Learned rewards: what the model is shown, how a stage hands it over, and what goes wrong in words."""

import json
import random
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cluster.actors import kill, spawn
from data.instructions import good_answer, instruction_problem
from models.reward_head import RewardDescription, RewardHead, save_description, save_head
from pipeline.cli import main
from rewards.calling import judge
from rewards.combine import build_reward, load_reward
from rewards.config import RewardSpec, RewardWorkersConfig
from rewards.pool import RewardPool
from rewards.preference import HelpfulReward, PreferenceOptions, SafetyReward
from rl.learned_rewards import start_scorers, with_models

PROBLEMS = [instruction_problem(index, "train", "en", 0) for index in range(4)]


def make_model(folder: Path, checkpoint: Path, objective: str) -> Path:
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    save_head(folder, RewardHead(64, seed=1).weight_D)
    save_description(folder, RewardDescription(objective=objective, mean=0.0, std=1.0))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_checkpoint) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(folder / name, tiny_checkpoint, name) for name in ("helpful", "safety", "judgement")}


@pytest.fixture
def shown(monkeypatch):
    """The texts that a reward shows its model, in place of a process that scores them by their length."""

    def ask(self, conversations):
        shown.texts += [text for _, text in conversations]
        return [None if "endless" in text else len(text) / 1000 for _, text in conversations]

    shown = type("Shown", (), {"texts": []})
    monkeypatch.setattr("rewards.preference._Preference._ask", ask)
    return shown


def test_helpfulness_reads_the_summary_and_safety_everything(models, shown):
    completion = "<think>\nA knife is fine.\n</think>\n\nHello!"
    HelpfulReward(PreferenceOptions(model=str(models["helpful"])))(PROBLEMS[0], completion)
    SafetyReward(PreferenceOptions(model=str(models["safety"])))(PROBLEMS[0], completion)
    assert shown.texts == ["Hello!", completion]
    before, after = "<think>short</think>Hello!", "<think>very different reasoning</think>Hello!"
    reward = HelpfulReward(PreferenceOptions(model=str(models["helpful"])))
    assert reward(PROBLEMS[0], before) == reward(PROBLEMS[0], after)


def test_missing_answers_earn_nothing_and_endless_ones_are_unscorable(models, shown):
    reward = HelpfulReward(PreferenceOptions(model=str(models["helpful"])))
    scores = reward.score_batch(PROBLEMS, ["<think>never closed", "<think>a</think>", "endless", "<think>a</think>Hi."])
    assert [score.value for score in scores] == [0.0, 0.0, None, 0.003]
    assert shown.texts == ["endless", "Hi."]


def test_what_is_no_model_of_this_kind_is_refused(models, tmp_path):
    with pytest.raises(ValueError, match=r"stage's input helpful_rm or as option `model`"):
        load_reward("rewards.preference:HelpfulReward")
    with pytest.raises(ValueError, match=r"is no reward model: it has no readable reward_model.json"):
        load_reward("rewards.preference:HelpfulReward", {"model": str(tmp_path)})
    with pytest.raises(ValueError, match="is a model of safety; this reward needs one of helpful"):
        load_reward("rewards.preference:HelpfulReward", {"model": str(models["safety"])})
    with pytest.raises(ValueError, match="is a model of judgement; this reward needs one of safety"):
        load_reward("rewards.preference:SafetyReward", {"model": str(models["judgement"])})


def test_models_come_from_the_inputs_of_the_stage(models):
    specs = [
        RewardSpec(use="rewards.accuracy:Accuracy"),
        RewardSpec(use="rewards.preference:HelpfulReward", domains=["general"]),
        RewardSpec(use="rewards.preference:SafetyReward", options={"model": "mine"}),
    ]
    filled = with_models(specs, {"helpful_rm": models["helpful"], "safety_rm": models["safety"]})
    assert filled[0] == specs[0] and filled[2] == specs[2]
    assert filled[1].options == {"model": str(models["helpful"])} and filled[1].domains == ["general"]


def test_terms_apply_by_domain_and_share(models, shown):
    reward = build_reward(
        [
            RewardSpec(use="rewards.format:Format", options={"layout": "summary"}, except_domains=["general"]),
            RewardSpec(
                use="rewards.preference:HelpfulReward",
                options={"model": str(models["helpful"])},
                domains=["general"],
                from_share=0.75,
                weight=2.0,
            ),
        ]
    )
    completion = "<think>\na\n</think>\n\nHello!"
    assert reward(PROBLEMS[0], completion, progress=0.5).value is None, "nothing applies yet"
    assert reward(PROBLEMS[0], completion, progress=0.75).value == pytest.approx(2 * 6 / 1000)


def test_a_scorer_that_is_late_is_asked_once_and_its_batch_is_unscorable(models, ray_session, monkeypatch):
    started = []
    monkeypatch.setattr("cluster.actors.spawn", lambda *args, **keys: started.append(args) or spawn(*args, **keys))
    reward = HelpfulReward(PreferenceOptions(model=str(models["helpful"]), deadline_s=0.01))  # a process takes longer
    try:
        scores = judge(reward, PROBLEMS, ["Hello.", "", "Good day.", "Hi."])
    finally:
        reward.close()
    assert [score.value for score in scores] == [None, 0.0, None, None] and len(started) == 1
    assert [score.timed_out for score in scores] == [True, False, True, True]
    assert scores[0].detail == "helpful: the reward model did not score within 0.01 s"


@pytest.mark.slow
def test_a_real_model_scores_in_batches_and_alone_alike(models, ray_session):
    reward = HelpfulReward(PreferenceOptions(model=str(models["helpful"]), row_tokens=128))
    texts = [good_answer(problem, random.Random(0)) for problem in PROBLEMS]
    try:
        together = [score.value for score in reward.score_batch(PROBLEMS, texts)]
        alone = [reward(problem, text).value for problem, text in zip(PROBLEMS, texts, strict=True)]
        assert together == pytest.approx(alone, abs=1e-5) and len(set(together)) == 4
        assert all(0 < value < 1 for value in together)
        kill(reward._scorer, restart=True)
        assert judge(reward, PROBLEMS[:1], texts[:1])[0].value == pytest.approx(alone[0], abs=1e-5), "started again"
    finally:
        reward.close()


@pytest.mark.slow
def test_one_process_per_model_scores_for_all_workers_of_a_stage(models, ray_session):
    specs = with_models([RewardSpec(use="rewards.preference:HelpfulReward")], {"helpful_rm": models["helpful"]})
    scorers = start_scorers([*specs, *specs])
    assert list(scorers) == ["helpful_rm"]
    pool = RewardPool(specs, RewardWorkersConfig(workers=2), scorers)
    try:
        for problem in PROBLEMS:
            pool.submit(problem.id, problem, [good_answer(problem, random.Random(0))])
        first = pool.collect()
        kill(scorers["helpful_rm"], restart=True)
        for problem in PROBLEMS:
            pool.submit(problem.id, problem, [good_answer(problem, random.Random(0))])
        assert pool.collect() == first and len(first) == 4 and pool.restarts == 0
        assert all(0 < scores[0].value < 1 for scores in first.values())
    finally:
        pool.close()
        kill(scorers["helpful_rm"])


@pytest.mark.slow
def test_reward_test_and_audit_work_for_learned_rewards(models, tmp_path, ray_session):
    cases = tmp_path / "cases.jsonl"
    problem = PROBLEMS[0]
    shared = {"question": problem.question, "gold": json.loads(problem.ground_truth), "checker": "instruction"}
    rows = [{**shared, "completion": "", "expect": 0}, {**shared, "completion": "<think>a</think>", "expect": "fail"}]
    cases.write_text("".join(json.dumps(row) + "\n" for row in rows))
    option = f"model={models['helpful']}"
    found = CliRunner().invoke(
        main, ["reward", "test", str(cases), "-r", "rewards.preference:HelpfulReward", "-o", option]
    )
    assert found.exit_code == 0 and "2 of 2 cases as expected" in found.output
    found = CliRunner().invoke(main, ["reward", "audit", "rewards.preference:HelpfulReward", "-o", option, "--all"])
    assert "attacks" in found.output and torch.is_tensor(RewardHead(4).weight_D)

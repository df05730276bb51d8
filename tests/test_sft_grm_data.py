"""Rejective fine-tuning data and written judgements, by rule and for real on a very small judge."""

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.config import JudgingConfig
from data.judging import judging_problem, procedural_item
from data.judging_pool import JudgingPool
from data.preferences import RankedResponses, SafetyLabel, from_row
from data.problem_pool import ProblemPool, ProblemsConfig
from data.schemas import SourceError
from pipeline.stages import KINDS
from rewards.grm_rule import GRMRule
from rewards.grm_text import read_scores
from rollouts.config import GeneratorConfig, RolloutConfig
from sft.grm_cold_start import run as run_cold_start
from sft.grm_cold_start import written_judgement
from sft.grm_config import GRMColdStartConfig, GRMDataConfig
from sft.grm_data import HINTED, OWN, Selection, run
from sft.grm_meta import run as run_meta
from sft.sampling import Sampled
from tests.taught_judge import KNOWN, SEED, items_file, make_judge
from training.stage import StageContext, StageError

ITEM = RankedResponses(id="i", prompt="?", responses=("a", "b"), truth=(1.0, 0.0))
RIGHT, WRONG, NONSENSE = "Scores: [9, 2]", "Scores: [2, 9]", "I see the river."


def judgements(*texts: str, truncated: bool = False) -> list[Sampled]:
    problem = judging_problem(ITEM, "terse")
    verdicts = [GRMRule()(problem, text).verdict for text in texts]
    return [
        Sampled(text=t, n_tokens=9, truncated=truncated, verdict=v, detail="")
        for t, v in zip(texts, verdicts, strict=True)
    ]


def selected(*texts: str, source: str = OWN, truncated: bool = False) -> Selection:
    selection = Selection()
    selection.add(judging_problem(ITEM, "terse"), source, judgements(*texts, truncated=truncated))
    return selection


# --- what is kept ---


def test_right_judgements_of_items_that_are_not_too_easy_are_kept():
    selection = selected(RIGHT, WRONG, "A is right.\nScores: [8, 1]")
    assert [row["messages"][1]["content"] for row in selection.rows] == [RIGHT, "A is right.\nScores: [8, 1]"]
    assert selection.rejected == Counter(wrong=1) and selection.right[OWN] == 2


def test_items_that_are_always_right_are_too_easy():
    selection = selected(RIGHT, RIGHT, "Scores: [8, 1]")
    assert not selection.rows and selection.rejected["too_easy"] == 3
    assert selected(RIGHT, source=HINTED).rows  # with the hint one sample is enough, and only wrong ones are rejected


def test_every_judgement_is_kept_or_rejected_for_one_reason():
    selection = selected(RIGHT, RIGHT, WRONG, NONSENSE, "Scores: [9]")
    assert len(selection.rows) + selection.rejected.total() == selection.judged == 5
    assert selection.rejected == Counter(duplicate=1, wrong=1, unreadable_no_scores=1, unreadable_wrong_count=1)
    assert selection.readable == 3


def test_a_cut_off_judgement_is_never_an_example():
    selection = selected(RIGHT, WRONG, truncated=True)
    assert not selection.rows and selection.rejected == Counter(unreadable_truncated=2)


# --- items ---


def test_listed_pairs_become_items_in_shuffled_order(tmp_path):
    rows = [{"prompt": f"What is {n}+1?", "chosen": str(n + 1), "rejected": str(n)} for n in range(40)]
    config = JudgingConfig(sources=(items_file(tmp_path, rows),))
    pool = JudgingPool(config, "train", 0, ("en",))
    assert [pool.item(i) for i in range(40)] == [JudgingPool(config, "train", 0, ("en",)).item(i) for i in range(40)]
    best = [pool.item(i).best for i in range(40)]
    assert 8 < sum(b == 0 for b in best) < 32
    for index in range(40):
        item = pool.item(index)
        assert item.responses[item.best] == str(index + 1)


def test_items_without_a_best_response_are_left_out_and_counted(tmp_path):
    rows = [
        {"prompt": "?", "responses": ["a", "b"], "truth": [1.0, 0.0]},
        {"prompt": "?", "responses": ["a", "b"], "truth": [1.0, 1.0]},
        {"prompt": "?", "responses": ["a", "a"], "truth": [1.0, 0.0]},
    ]
    pool = JudgingPool(JudgingConfig(sources=(items_file(tmp_path, rows),)), "train", 0, ("en",))
    assert {pool.item(i).id for i in range(9)} == {"items-1"}
    assert pool.tally.refused == {"tied": 1, "identical": 1}
    with pytest.raises(SourceError, match=r"strictly best response .1 tied"):
        JudgingPool(JudgingConfig(sources=(items_file(tmp_path, rows[1:2]),)), "train", 0, ("en",))


def test_a_problem_pool_of_judgements_has_nothing_else():
    pool = ProblemPool(ProblemsConfig(judging=JudgingConfig(style="terse", responses=(1, 2, 3))), "train", seed=0)
    problems = pool.draw(0, 60)
    assert {problem.checker for problem in problems} == {"judging"}
    assert Counter(p.metadata["responses"] for p in problems) == {1: 20, 2: 20, 3: 20}
    assert Counter(p.language for p in problems) == {"en": 30, "zh": 30}
    with pytest.raises(ValueError, match="takes the place of all other problems"):
        ProblemsConfig(judging=JudgingConfig(), instruction_share=0.5)


def test_train_and_held_out_items_ask_different_questions():
    train, held_out = (
        {procedural_item(i, split, "en", 0, 2).prompt for i in range(400)} for split in ("train", "held_out")
    )
    assert not train & held_out


# --- written judgements ---


@pytest.mark.parametrize("responses", [1, 2, 3])
def test_written_judgements_are_readable_and_right(responses):
    for index in range(60):
        for language in ("en", "zh"):
            item = procedural_item(index, "train", language, 7, responses)
            judgement = written_judgement(item)
            assert GRMRule()(judging_problem(item, "terse"), judgement).value == 1.0, judgement
            slipped = read_scores(written_judgement(item, random.Random(index)), responses)
            assert isinstance(slipped, tuple)


def test_the_cold_start_stage_writes_a_dataset(tmp_path):
    config = GRMColdStartConfig(items=12, responses=(2, 3), slip_share=0.5)
    for folder in ("a", "b"):
        run_cold_start(config, StageContext(name="data", inputs={}, output=tmp_path / folder, seed=3))
    rows = table(tmp_path / "a")
    assert len(rows) == len({row["id"] for row in rows}) == 12 and table(tmp_path / "b") == rows
    card = json.loads((tmp_path / "a" / "data_card.json").read_text())
    assert card["by_source"] == {"written": 12} and "templates" in card["sampling"]["written_by"]


# --- the stage, for real ---


@pytest.fixture(scope="module")
def setting(llama_checkpoint, tmp_path_factory) -> tuple[Path, GRMDataConfig]:
    policy, problems = make_judge(llama_checkpoint, tmp_path_factory.mktemp("judge"))
    config = GRMDataConfig(
        problems=problems,
        items=3,
        samples_per_item=8,
        chunk_prompts=2,
        rollout=RolloutConfig(max_new_tokens=30, temperature=1.0),
        generator=GeneratorConfig(replicas=1, max_slots=8),
    )
    return policy, config


def context(output: Path, policy: Path) -> StageContext:
    return StageContext(name="rft", inputs={"policy": policy}, output=output, seed=SEED)


def table(folder: Path) -> list[dict]:
    return pq.read_table(folder / "data.parquet").to_pylist()


def test_the_stage_keeps_right_judgements_and_counts_the_rest(ray_session, setting, tmp_path):
    policy, config = setting
    run(config, context(tmp_path, policy))
    rows = table(tmp_path)
    assert len(rows) == 1 and "> two" in rows[0]["messages"][0]["content"]  # eight equal texts are one row
    card = json.loads((tmp_path / "data_card.json").read_text())
    assert card["n_candidates"] == 24 == card["n_rows"] + sum(card["rejected"].values())
    assert card["rejected"]["too_easy"] == 8 and card["rejected"]["wrong"] >= 9
    assert card["sampling"]["samples_per_item"] == 8 and 0.3 < card["sampling"]["accuracy"]["rft"] < 0.7


def test_hinted_rows_ask_without_the_hint(ray_session, setting, tmp_path):
    policy, config = setting
    run(config.model_copy(update={"hinted": True}), context(tmp_path, policy))
    assert not any("Best:" in row["messages"][0]["content"] for row in table(tmp_path))
    card = json.loads((tmp_path / "data_card.json").read_text())
    assert card["n_candidates"] == 27 and set(card["sampling"]["accuracy"]) == {"rft", "rft_hinted"}


def test_a_meta_rm_learns_from_right_and_wrong_judgements(ray_session, setting, tmp_path):
    policy, config = setting
    run_meta(config, context(tmp_path, policy))
    labels = [from_row(SafetyLabel, row) for row in table(tmp_path)]
    assert len({label.id for label in labels}) == len(labels)
    by_question = {name: [x.safe for x in labels if f"> {name}\n" in x.prompt] for name in KNOWN}
    assert {name: sorted(values) for name, values in by_question.items()} == {
        "one": [True], "two": [False, True], "three": [False],
    }  # fmt: skip
    assert all(label.response.startswith("Scores: ") and label.is_of_a_judgement for label in labels)
    with pytest.raises(StageError, match="right and wrong judgements to learn from, and there are: right 8"):
        run_meta(config.model_copy(update={"items": 1}), context(tmp_path / "easy", policy))


def test_a_judge_that_writes_nonsense_stops_the_stage(ray_session, llama_checkpoint, setting, tmp_path):
    _, config = setting
    with pytest.raises(StageError, match=r"rft: none of 16 judgements can be read \(.*teach it the layout first"):
        run(config, context(tmp_path, llama_checkpoint))
    assert not (tmp_path / "data.parquet").exists()


def test_a_judge_that_is_right_about_everything_leaves_nothing_to_learn(ray_session, setting, tmp_path):
    policy, config = setting
    with pytest.raises(StageError, match=r"none of 8 judgements is both right and of an item .*too_easy 8"):
        run(config.model_copy(update={"items": 1}), context(tmp_path, policy))


def test_the_stages_are_known_to_recipes():
    assert KINDS["grm_rft_data"].config_class() is KINDS["grm_meta_data"].config_class() is GRMDataConfig
    assert KINDS["grm_cold_start_data"].config_class() is GRMColdStartConfig

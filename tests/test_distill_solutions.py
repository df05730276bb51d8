"""Written solutions become traces that the grader has accepted."""

import json

import pytest

from data.config import ProblemSource
from data.problem_pool import ProblemsConfig
from data.word_problems import WORD_FAMILIES
from distill.solutions import trace_of
from distill.traces import run
from distill.traces_config import NearDuplicatesConfig, TracesConfig
from rewards.accuracy import Accuracy
from sft.conversations import read_conversations
from training.stage import StageContext


@pytest.mark.parametrize(
    ("solution", "trace"),
    [
        ("She has 3*4=<<3*4=12>>12 eggs.\n#### 12", "She has 3*4=12 eggs."),
        ("So $x = \\boxed{12}$.", "So $x = \\boxed{12}$."),
        ("No final answer here.", None),
        ("#### 12", None),
        ("", None),
    ],
)
def test_a_trace_is_the_work_and_its_own_answer(solution, trace):
    expected = "" if trace is None else f"<think>\n{trace}\n</think>\n\nThe answer is \\boxed{{12}}."
    assert trace_of(solution) == expected


@pytest.mark.slow
def test_solutions_are_verified_before_they_are_traces(ray_session, tmp_path):
    """Three rows in GSM8K's layout: two right ones, and one without work."""
    rows = [
        {
            "question": "Ana has 3 boxes of 4 eggs. How many is that?",
            "answer": "3*4=<<3*4=12>>12 eggs.\n#### 12",
        },
        {"question": "Ben has 5 plums and eats 2 of them. How many are left?", "answer": "5-2=3 plums.\n#### 3"},
        {"question": "Cid has 6 jars and breaks 1 of them. How many are left?", "answer": "#### 5"},
    ]
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TracesConfig(
        solutions=True,
        problems=ProblemsConfig(sources=(ProblemSource(path=str(file)),)),
        prompts=3,
        near_duplicates=NearDuplicatesConfig(threshold=None),
    )
    output = tmp_path / "traces"
    run(config, StageContext(name="traces", inputs={}, output=output, seed=0))
    kept = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in read_conversations(output)}
    assert set(kept) == {rows[0]["question"], rows[1]["question"]}
    assert kept[rows[1]["question"]] == "<think>\n5-2=3 plums.\n</think>\n\nThe answer is \\boxed{3}."
    card = json.loads((output / "data_card.json").read_text())
    assert card["n_candidates"] == 3
    assert card["sampling"]["teacher"] == "the problems' written solutions"


def test_solutions_of_word_problems_pass_their_own_grader():
    from data.word_problems import word_problem

    for family in WORD_FAMILIES:
        problem = word_problem(family, 2, 5, "train")
        assert Accuracy()(problem, trace_of(problem.metadata["solution"])).value == 1


def test_what_is_not_sampled_takes_no_settings_of_sampling():
    with pytest.raises(ValueError, match="samples_per_prompt would be ignored"):
        TracesConfig(solutions=True, samples_per_prompt=2)

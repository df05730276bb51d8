"""`r1 reward test` and `r1 reward audit` as a user calls them."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import main

MODULE = '''
def has_gold(problem, completion, *, strict: bool = False):
    """A first try at a reward."""
    return completion == problem.ground_truth if strict else problem.ground_truth in completion
'''
CASES = """
reward: my_first_reward:has_gold
cases:
- {name: right, completion: "It is 4.", gold: 4, expect: pass}
- {name: both, completion: "4 or 5", gold: 4, expect: fail}
"""

WRONG = {
    "empty.jsonl": "",
    "question.jsonl": '{"question": 5}',
    "deep.jsonl": "[" * 100_000 + "]" * 100_000,
    "options.yaml": "{options: 5, cases: [{completion: a, expect: pass}]}",
    "defaults.yaml": "{defaults: [1], cases: [{completion: a, expect: pass}]}",
    "metadata.yaml": "[{completion: a, expect: pass, metadata: 5}]",
    "keys.yaml": "[{completion: a, expect: pass, 1: x, a: y}]",
    "half_written.py": "def x(",
    "odd_rewards.py": """
from __future__ import annotations
from typing import Literal

class Fails:
    def __init__(self):
        raise KeyError("home")

    def __call__(self, problem, completion):
        return True

class Called:
    def __call__(self, problem, completion):
        return completion == problem.ground_truth

called = Called()

def chosen(problem, completion, *, how: Literal["a", "b"] = "a"):
    return how == "b"

def unresolved(problem, completion, *, how: Nowhere = 1):
    return True
""",
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_first_reward.py").write_text(MODULE)
    (tmp_path / "cases.yaml").write_text(CASES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def r1(*arguments: str):
    return CliRunner(env={"COLUMNS": "200", **os.environ}).invoke(main, ["reward", *arguments])


def test_cases_that_differ_are_shown_and_end_with_one(here):
    result = r1("test", "cases.yaml")
    assert result.exit_code == 1
    assert "1 of 2 cases as expected" in result.output
    assert "both" in result.output and "pass 1" in result.output and "right" not in result.output


def test_reward_and_options_can_be_given(here):
    (here / "cases.jsonl").write_text(json.dumps({"completion": "4", "gold": "4", "expect": "pass"}))
    result = r1("test", "cases.jsonl", "--reward", "my_first_reward:has_gold", "-o", "strict=true")
    assert (result.exit_code, result.output) == (0, "1 of 1 cases as expected\n")


@pytest.mark.parametrize("arguments", [["odd_rewards:called"], ["odd_rewards:chosen", "-o", "how=b"]])
def test_objects_and_late_annotations_are_rewards(here, arguments):
    (here / "odd_rewards.py").write_text(WRONG["odd_rewards.py"])
    (here / "cases.jsonl").write_text(json.dumps({"completion": "4", "gold": "4", "expect": "pass"}))
    result = r1("test", "cases.jsonl", "--reward", *arguments)
    assert (result.exit_code, result.output) == (0, "1 of 1 cases as expected\n")


def test_audit_of_a_reward_that_cannot_judge_ends_with_one(here):
    (here / "problems.jsonl").write_text(json.dumps({"question": "2+2?", "gold": 4, "checker": "mathh"}))
    result = r1("audit", "rewards.accuracy:Accuracy", "--problems", "problems.jsonl")
    assert result.exit_code == 1 and result.output.endswith("The reward cannot judge these problems: 1 of 1\n")


def test_audit_shows_what_pays_and_ends_with_one(here):
    result = r1("audit", "my_first_reward:has_gold")
    assert result.exit_code == 1
    assert "gold or other" in result.output and "should" in result.output


def test_audit_of_a_sound_reward_ends_with_zero(here):
    result = r1("audit", "rewards.format:Format", "-o", "layout=summary")
    assert result.exit_code == 0 and result.output.endswith(" attacks, 0 pay\n")


def test_audit_takes_problems_from_a_file(here):
    (here / "problems.jsonl").write_text(json.dumps({"question": "2+2?", "gold": "4"}))
    result = r1("audit", "my_first_reward:has_gold", "--problems", "problems.jsonl", "--all")
    assert result.exit_code == 1 and "empty" in result.output and "2+2?" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("test", "missing.yaml"), "missing.yaml: there is no such file"),
        (("test", "."), ".: this is a folder; name a file in it"),
        (("test", "empty.jsonl"), "expected a list of cases"),
        (("test", "cases.yaml", "-r", "my_first_reward:has_golt"), "no reward class or function"),
        (("test", "cases.yaml", "-o", "strikt=1"), "Did you mean strict?"),
        (("test", "cases.yaml", "-o", "strict"), "expected KEY=VALUE"),
        (("audit", "rewards.format:Format", "--layout", "box"), "--layout is answer_tags or summary"),
        (("audit", "rewards.format:Format", "--problems", "cases.yaml"), "not JSONL of problems"),
        (("audit", "rewards.format:Format", "--problems", "empty.jsonl"), "holds no problem"),
        (("audit", "rewards.format:Format", "--problems", "nowhere.jsonl"), "nowhere.jsonl: there is no such file"),
        (("audit", "rewards.format:Format", "--problems", "question.jsonl"), "question is 5, not text"),
        (("audit", "rewards.format:Format", "--problems", "deep.jsonl"), "nested too deeply"),
        (("test", "deep.jsonl"), "nested too deeply"),
        (("test", "options.yaml"), "options is int, not a mapping"),
        (("test", "defaults.yaml"), "defaults is list, not a mapping"),
        (("test", "metadata.yaml"), "metadata is 5, not a mapping"),
        (("test", "keys.yaml"), "unknown key 'a'"),
        (("test", "cases.yaml", "-r", ".rel:x"), "no reward class or function"),
        (("test", "cases.yaml", "-r", "half_written:x"), "half_written cannot be imported: SyntaxError"),
        (("test", "cases.yaml", "-r", "odd_rewards:Fails"), "reward: KeyError: 'home'"),
        (("test", "cases.yaml", "-r", "odd_rewards:chosen", "-o", "how=c"), "options.how: bad value"),
        (("test", "cases.yaml", "-r", "odd_rewards:unresolved"), "signature cannot be read: NameError"),
        (("test", "cases.yaml", "-r", "rewards.code:Code", "-o", "languages=[cobol]"), "cobol"),
    ],
)
def test_mistakes_are_one_sentence_with_exit_code_two(here, arguments, said):
    for name, text in WRONG.items():
        (here / name).write_text(text)
    result = r1(*arguments)
    assert result.exit_code == 2
    assert said in result.output and result.output.count("\n") == 1


def test_a_reward_that_asks_a_judge_says_how_to_give_it_one():
    base = Path(__file__).parents[1] / "recipes/tiny/base"
    missing = CliRunner().invoke(main, ["reward", "audit", "rewards.generative:Generative"])
    assert missing.exit_code == 2 and "--input grm=CHECKPOINT" in missing.stderr
    other = CliRunner().invoke(main, ["reward", "audit", "rewards.generative:Generative", "--input", f"policy={base}"])
    assert other.exit_code == 2 and "expected ROLE=PATH with role grm or judge" in other.stderr

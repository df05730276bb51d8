"""Functions, coroutines and batches as rewards; what they may return; how their options are checked."""

import asyncio
import math
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from rewards.accuracy import Accuracy, AccuracyOptions
from rewards.calling import as_score, judge
from rewards.combine import build_reward, check_rewards, load_reward
from rewards.config import RewardSpec
from rewards.math_answer import extract_answer
from rewards.reward import Verdict
from rewards.testing import make_problem

PROBLEM = make_problem(gold="4")


@pytest.fixture(autouse=True)
def toy_rewards_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def scores_of(use: str, completions: list[str], **options):
    reward = load_reward(use, options)
    return [score.value for score in judge(reward, [PROBLEM] * len(completions), completions)]


def test_function_takes_its_keyword_arguments_as_options():
    assert scores_of("toy_rewards:says", ["tea tea", "tea"], word="tea", times=2) == [1.0, 0.0]


def test_async_function_is_awaited():
    assert scores_of("toy_rewards:slow_length", ["12345", "0123456789!"]) == [0.5, 1.0]


def test_async_batch_is_awaited_and_takes_constructor_options():
    assert scores_of("toy_rewards:AsyncBatch", ["a", "b"], bonus=0.25) == [0.25, 0.25]


def test_coroutines_are_awaited_where_a_loop_runs_already():
    async def inside():
        return scores_of("toy_rewards:slow_length", ["12345"])

    assert asyncio.run(inside()) == [0.5]


def test_functions_are_combined_like_classes():
    specs = [
        RewardSpec(use="toy_rewards:says", options={"word": "tea"}),
        RewardSpec(use="toy_rewards:slow_length", weight=2),
    ]
    score = build_reward(specs)(PROBLEM, "tea 5")
    assert (score.parts, score.value) == ({"says": 1.0, "slow_length": 0.5}, 2.0)


@pytest.mark.parametrize(
    ("result", "verdict", "value"),
    [
        (True, Verdict.PASS, 1.0),
        (False, Verdict.FAIL, 0.0),
        (1, Verdict.PASS, 1.0),
        (0.5, Verdict.FAIL, 0.5),
        (None, Verdict.ERROR, None),
        (math.nan, Verdict.ERROR, None),
        (math.inf, Verdict.ERROR, None),
        (-0.1, Verdict.ERROR, None),
        ("pass", Verdict.ERROR, None),
        (ValueError("no"), Verdict.ERROR, None),
        pytest.param(10**5000, Verdict.ERROR, None, id="an integer too long to print"),
    ],
)
def test_what_is_no_judgement_is_an_error(result, verdict, value):
    score = as_score(result)
    assert (score.verdict, score.value) == (verdict, value)


def test_coroutine_that_raises_is_an_error_of_its_own_completion():
    async def fussy(problem, completion):
        if not completion:
            raise RuntimeError("nothing to judge")
        return 1.0

    first, second = judge(fussy, [PROBLEM] * 2, ["", "text"])
    assert first.verdict is Verdict.ERROR and "nothing to judge" in first.detail
    assert second.value == 1.0


class FussyBatch:
    """One row that it cannot take ends the whole batch."""

    def score_batch(self, problems, completions):
        return [1.0 / len(completion) for completion in completions]


def test_a_row_that_breaks_a_batch_voids_no_other():
    first, second, third = judge(FussyBatch(), [PROBLEM] * 3, ["a", "", "bb"])
    assert (first.value, second.verdict, third.value) == (1.0, Verdict.ERROR, 0.5)
    assert second.detail.startswith("ZeroDivisionError: float division by zero (test_rewards_calling.py line ")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_row_that_breaks_accuracy_voids_no_other(monkeypatch, processes):
    def fragile(completion):
        if completion == "break":
            raise OverflowError("too large")
        return extract_answer(completion)

    monkeypatch.setattr("rewards.accuracy.extract_answer", fragile)
    reward = Accuracy(AccuracyOptions(grader_processes=processes))
    scores = reward.score_batch([PROBLEM] * 3, [r"\boxed{4}", "break", r"\boxed{5}"])
    assert [score.verdict for score in scores] == [Verdict.PASS, Verdict.ERROR, Verdict.FAIL]


OWN = """
import json
from rewards.reward import Score

def looks_up(problem, completion):
    return _read(problem)

def _read(problem):
    return json.loads(problem.metadata["answer"])

async def waits(problem, completion):
    return json.loads(completion)

class Batch:
    name = "batch"

    def score_batch(self, problems, completions):
        raise TimeoutError("no answer")

def opens(problem, completion):
    return open("/nowhere").read()
"""


@pytest.mark.parametrize(
    ("name", "detail", "retry"),
    [
        ("looks_up", "KeyError: 'answer' (own_rewards.py line 9)", False),
        ("waits", "Expecting value: line 1 column 1 (char 0) (own_rewards.py line 12)", False),
        ("Batch", "TimeoutError: no answer (own_rewards.py line 18)", True),
        ("opens", "No such file or directory: '/nowhere' (own_rewards.py line 21)", False),
    ],
)
def test_an_exception_is_an_error_with_its_line_and_whether_another_time_may_do(
    tmp_path, monkeypatch, name, detail, retry
):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    (tmp_path / "own_rewards.py").write_text(OWN)
    try:
        score = build_reward([RewardSpec(use=f"own_rewards:{name}")])(PROBLEM, "no number")
    finally:
        sys.modules.pop("own_rewards", None)
    assert score.verdict is Verdict.ERROR and score.detail.endswith(detail) and score.retry is retry


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "def own(problem, completion, width): ...",
            r"own\(problem, completion\), and takes \(problem, completion, width\) "
            r"\(missing a required argument: 'width'\); options are its keyword-only arguments",
        ),
        ("def own(): ...", r"own\(problem, completion\), and takes \(\) \(too many positional arguments\)"),
        ("async def own(completion): ...", r"takes \(completion\)"),
        ("class own:\n def __call__(self, completion): ...", r"__call__\(self, problem, completion\), and takes"),
        ("class own:\n def score_batch(self, completions): ...", r"score_batch\(self, problems, completions\)"),
        ("class own:\n pass", r"it has neither __call__\(problem, completion\) nor score_batch"),
        (
            "class own:\n def __init__(self, n): ...\n def __call__(self, p, c): ...",
            r"called as own\(\), and takes \(n\)",
        ),
        ("def own(problem, completion, width=3, *, n: int = 2): ...", None),
        ("def own(*anything): ...", None),
        ("class own:\n @staticmethod\n def __call__(p, c): ...", None),
        ("class Base:\n def __call__(self, p, c): ...\nclass own(Base):\n def __init__(self, *, n=1): ...", None),
    ],
)
def test_a_reward_that_cannot_be_called_is_refused_before_the_start(tmp_path, monkeypatch, written, message):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    (tmp_path / "own_rewards.py").write_text(f"{written}\n")
    try:
        with pytest.raises(ValueError, match=message) if message else nullcontext() as caught:
            check_rewards([RewardSpec(use="own_rewards:own")])
        assert not message or str(caught.value).startswith("rewards[0].use: own_rewards:own: it ")
    finally:
        sys.modules.pop("own_rewards", None)


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("toy_rewards:says", {}, r"options\.word: bad value of toy_rewards:says.*required"),
        ("toy_rewards:says", {"word": "tea", "tines": 2}, r"options\.tines: unknown option.*Did you mean times"),
        ("toy_rewards:says", {"word": "tea", "times": "often"}, r"options\.times: bad value.*integer"),
        ("toy_rewards:slow_length", {"n": 1}, r"takes no options, got n"),
        ("toy_rewards:asyncio", {}, r"is module, not a reward"),
        ("toy_rewards:sais", {}, r"no reward class or function at 'toy_rewards:sais'"),
        ("rewards.length:Overlong", {"unit": "tokens"}, r"needs the option tokenizer"),
        ("rewards.length:Overlong", {"max_length": 5, "buffer": 9}, r"buffer 9 is larger than max_length 5"),
        ("rewards.language:LanguageConsistency", {"language": "xx"}, r"not 'xx'"),
    ],
)
def test_wrong_options_are_one_sentence(use, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_reward(use, options)
    assert "\n" not in str(caught.value)

"""The sum of rewards: weights, routing, start, errors; how recipe mistakes are reported."""

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest

from data.config import Columns, ProblemSource
from data.errors import StageError
from data.problem_pool import ProblemPool, ProblemsConfig
from data.problems import Problem
from rewards.combine import CompositeReward, Term, build_reward
from rewards.config import RewardSpec
from rewards.problem_checks import check_problems
from rewards.reward import Score, Verdict
from rewards.workers import RewardWorker


class Fixed:
    def __init__(self, name, score):
        self.name, self.score = name, score

    def __call__(self, problem, completion):
        if isinstance(self.score, Exception):
            raise self.score
        return self.score


def problem(domain="chain_sum", checker="math", truth="11") -> Problem:
    return Problem(
        id="p",
        messages=({"role": "user", "content": "?"},),
        ground_truth=truth,
        checker=checker,
        domain=domain,
        language="en",
    )


GOOD = r"<think>Three and eight make eleven.</think>It is \boxed{11}."
ACCURACY, FORMAT, LANGUAGE = (
    "rewards.accuracy:Accuracy",
    "rewards.format:Format",
    "rewards.language:LanguageConsistency",
)


def test_value_is_the_weighted_sum_and_parts_are_unweighted():
    reward = CompositeReward(
        [
            Term(reward=Fixed("accuracy", Score.passed()), weight=2.0),
            Term(reward=Fixed("b", Score.failed(0.25)), weight=0.5),
        ]
    )
    score = reward(problem(), "x")
    assert (score.verdict, score.value, score.parts) == (Verdict.PASS, 2.125, {"accuracy": 1.0, "b": 0.25})


def test_without_accuracy_all_parts_must_pass():
    terms = [Term(reward=Fixed("a", Score.passed())), Term(reward=Fixed("b", Score.failed()))]
    assert CompositeReward(terms)(problem(), "x").verdict is Verdict.FAIL
    assert CompositeReward(terms[:1])(problem(), "x").verdict is Verdict.PASS


@pytest.mark.parametrize("failure", [Score.error("no grader"), RuntimeError("no grader")])
@pytest.mark.parametrize("failing_first", [True, False])
def test_a_failing_grader_never_gives_a_number(failure, failing_first):
    terms = [Term(reward=Fixed("good", Score.passed())), Term(reward=Fixed("broken", failure), weight=0.0)]
    score = CompositeReward(terms[::-1] if failing_first else terms)(problem(), "x")
    assert (score.verdict, score.value, score.parts) == (Verdict.ERROR, None, {})
    assert "broken" in score.detail and "no grader" in score.detail


def test_rewards_of_other_domains_are_left_out():
    reward = CompositeReward(
        [
            Term(reward=Fixed("accuracy", Score.passed()), domains=frozenset({"chain_sum"})),
            Term(reward=Fixed("preference", Score.passed(0.5)), domains=frozenset({"general"})),
        ]
    )
    assert reward(problem("chain_sum"), "x").parts == {"accuracy": 1.0}
    assert reward(problem("general"), "x").parts == {"preference": 0.5}
    assert reward(problem("poetry"), "x").verdict is Verdict.ERROR


def test_late_rewards_count_from_their_share_of_the_steps():
    reward = CompositeReward(
        [Term(reward=Fixed("a", Score.passed())), Term(reward=Fixed("late", Score.passed()), from_share=1300 / 1700)]
    )
    assert set(reward(problem(), "x", progress=1299 / 1700).parts) == {"a"}
    assert set(reward(problem(), "x", progress=1300 / 1700).parts) == {"a", "late"}


def test_batches_agree_with_single_calls_and_keep_their_order():
    reward = build_reward([RewardSpec(use=ACCURACY), RewardSpec(use=LANGUAGE, domains=["chain_sum"])])
    problems = [problem(), problem(truth="12"), problem("other"), problem("other", truth="12")]
    scores = reward.score_batch(problems, [GOOD] * 4)
    assert [score.value for score in scores] == [2.0, 1.0, 1.0, 0.0]
    assert scores == [reward(each, GOOD) for each in problems]
    reward.close()


def test_grader_processes_work_side_by_side():
    spec = RewardSpec(use=ACCURACY, options={"grader_processes": 2})
    reward = build_reward([spec])
    problems = [problem(truth=r"\sqrt{121}"), problem(truth=r"\sqrt{144}")] * 2
    assert [score.value for score in reward.score_batch(problems, [GOOD] * 4)] == [1.0, 0.0, 1.0, 0.0]
    reward.close()


def test_unknown_checker_is_an_error():
    assert build_reward([RewardSpec(use=ACCURACY)])(problem(checker="oracle"), GOOD).verdict is Verdict.ERROR


def _pool(folder, **keys) -> ProblemPool:
    rows = [{"question": "1+1?", "answer": "2", "kind": "math"}, {"question": "1+2?", "answer": "3", "kind": "maths"}]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ProblemSource(path=str(folder / "own.jsonl"), row_schema="columns", domain="sums", **keys)
    return ProblemPool(ProblemsConfig(sources=(source,)), "train", 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"domains": ["sums", "summs"]}, r"rewards\[0\]\.domains: no problem has domain 'summs'\. Did you mean sums\?"),
        ({"domains": ["tales"]}, r"no problem has domain 'tales'\. Known are sums\."),
        ({"except_domains": ["summs"]}, r"rewards\[0\]\.except_domains: no problem has domain 'summs'"),
        ({"except_domains": ["code", "sums"]}, None),
        ({"domains": ["sums"]}, None),
    ],
)
def test_domains_that_no_problem_has_are_named_when_the_problems_are_open(tmp_path, spec, message):
    with pytest.raises(StageError, match=message) if message else nullcontext():
        check_problems([RewardSpec(use=ACCURACY, **spec)], _pool(tmp_path))


def test_a_checker_of_a_row_that_nothing_knows_is_named_when_the_problems_are_open(tmp_path):
    pool = _pool(tmp_path, name="own", columns=Columns(checker="kind"))
    with pytest.raises(StageError, match=r"problem own-2: there is no checker 'maths'\. Did you mean math\?"):
        check_problems([RewardSpec(use=ACCURACY)], pool)
    check_problems([RewardSpec(use=ACCURACY, except_domains=["sums"]), RewardSpec(use="own:Reward")], pool)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"use": "rewards.acuracy:Accuracy"}, r"rewards\[1\]\.use.*Did you mean rewards\.accuracy:Accuracy"),
        ({"use": "rewards.format:Formatt"}, r"rewards\[1\]\.use.*Did you mean rewards\.format:Format"),
        ({"use": "accuracy"}, r"rewards\[1\]\.use"),
        ({"use": FORMAT, "options": {"layot": "summary"}}, r"rewards\[1\]\.options\.layot.*Did you mean layout"),
        ({"use": FORMAT, "options": {"layout": "xml"}}, r"rewards\[1\]\.options\.layout.*summary"),
        ({"use": ACCURACY}, "once"),
    ],
)
def test_mistakes_in_a_recipe_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        build_reward([RewardSpec(use=ACCURACY), RewardSpec(**spec)])


def test_worker_scores_and_counts():
    worker = RewardWorker([RewardSpec(use=ACCURACY), RewardSpec(use=FORMAT, options={"layout": "summary"}, weight=0.5)])
    scores = worker.score([problem(), problem(truth="12"), problem(checker="oracle")], [GOOD] * 3, progress=0.0)
    assert [score.value for score in scores] == [1.5, 0.5, None]
    assert worker.take_counts() == {
        "accuracy": {"pass": 1, "fail": 1, "error": 1, "timeout": 0, "unreadable": 0},
        "format": {"pass": 3, "fail": 0, "error": 0, "timeout": 0, "unreadable": 0},
    }
    assert worker.take_counts()["format"]["pass"] == 0
    worker.close()


@pytest.mark.parametrize("score", [Score.failed(detail="slow", timed_out=True), Score.error("slow", timed_out=True)])
def test_time_limits_are_counted_apart_from_verdicts(score):
    reward = CompositeReward([Term(reward=Fixed("slow", score)), Term(reward=Fixed("quick", Score.passed()))])
    whole = reward.score_batch([problem()] * 2, ["x"] * 2)
    assert [each.timed_out for each in whole] == [True, True]
    assert reward.counts["slow"] == {score.verdict.value: 2, "timeout": 2}
    assert reward.counts["quick"]["timeout"] == 0


def test_workers_start_without_torch():
    program = "import sys, rewards.workers, rewards.accuracy, rewards.format, rewards.language, rewards.repetition\n"
    program += "assert not {'torch', 'transformers', 'ray', 'sympy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)

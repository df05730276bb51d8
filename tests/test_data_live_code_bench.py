"""LiveCodeBench by its public columns: what is asked, and that its tests judge programs."""

import base64
import json
import os
import pickle
import sys
import zlib

import pytest

from data.config import ProblemSource
from data.packed import PACKED, unpack
from data.schemas import SourceError
from data.sources import check_first_row, read_problems
from pipeline.evaluate import program_domains, reward_specs
from rewards.combine import build_reward
from rewards.reward import Verdict
from training.stage import StageError

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux only")


def hidden(tests) -> str:
    """As the hub has private tests: base64 of zlib of a pickle of JSON."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def stdin(given: str, wanted: str) -> dict:
    return {"input": given, "output": wanted, "testtype": "stdin"}


def functional(given: str, wanted: str) -> dict:
    return {"input": given, "output": wanted, "testtype": "functional"}


SUM = {
    "question_title": "A. Sum",
    "question_content": "Print the sum.",
    "platform": "atcoder",
    "question_id": "abc400_a",
    "contest_id": "abc400",
    "contest_date": "2024-08-03T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps([stdin("3 4\n", "7\n")]),
    "private_test_cases": hidden([stdin("1 1", "2"), stdin("5 6", "11")]),
    "metadata": "{}",
}
STARTER = "class Solution:\n    def total(self, nums: List[int], start: int) -> int:\n        "
TOTAL = SUM | {
    "question_id": "3550",
    "platform": "leetcode",
    "contest_date": "2025-01-12T00:00:00",
    "starter_code": STARTER,
    "public_test_cases": json.dumps([functional("[1, 2]\n3", "6")]),
    "private_test_cases": json.dumps([functional("[]\n0", "0")]),
    "metadata": json.dumps({"func_name": "total"}),
}


def read(path, rows, **keys):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_problems(ProblemSource(path=str(path), **keys)))


def completion(source: str) -> str:
    return f"<think>\nadd\n</think>\n\n```python\n{source}\n```"


def test_a_problem_is_asked_as_the_public_runner_asks(tmp_path):
    stdio, method = read(tmp_path / "test5.jsonl", [SUM, TOTAL])
    assert stdio.question.startswith("You are an expert Python programmer.")
    assert "### Question:\nPrint the sum.\n\n### Format: Read the inputs from stdin" in stdio.question
    assert "```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format" in stdio.question
    assert "use the following starter code" in method.question and f"```python\n{STARTER}\n```" in method.question
    assert (stdio.id, stdio.checker, stdio.domain, stdio.language) == ("abc400_a", "code", "live_code_bench", "en")
    assert stdio.metadata == {"question_title": "A. Sum", "platform": "atcoder", "difficulty": "easy",
                              "contest_date": "2024-08-03T00:00:00"}  # fmt: skip


@on_linux
def test_programs_are_judged_by_public_and_private_tests(tmp_path):
    stdio, method = problems = read(tmp_path / "test5.jsonl", [SUM, TOTAL])
    reward = build_reward(reward_specs("summary", program_domains(problems), {"workers": 2}))
    add = STARTER + "return reduce(add, nums, {})"
    cases = [
        (stdio, "print(sum(map(int, input().split())))", Verdict.PASS),
        (stdio, "print(float(sum(map(int, sys.stdin.read().split()))))", Verdict.PASS),
        (stdio, "print(7)", Verdict.FAIL),
        (stdio, "print(2 if input() == '1 1' else 7)", Verdict.FAIL),
        (method, add.format("start"), Verdict.PASS),
        (method, add.format("6"), Verdict.FAIL),
        (method, "def total(nums, start): return sum(nums) + start", Verdict.FAIL),
    ]
    try:
        for problem, source, verdict in cases:
            score = reward(problem, completion(source))
            assert score.verdict is verdict, (source, score)
            assert {"code", "format", "language"} == set(score.parts)
        thought = completion(cases[0][1]).replace("\n</think>\n", "") + "\n</think>\n\nAs above."
        assert reward(stdio, thought).verdict is Verdict.FAIL, "what stands in the reasoning is not read"
    finally:
        reward.close()


@on_linux
def test_long_tests_are_packed_and_still_judge(tmp_path):
    numbers = " ".join(["1"] * 100_000)
    (problem,) = read(tmp_path / "test.jsonl", [SUM | {"private_test_cases": hidden([stdin(numbers, "100000")])}])
    assert problem.ground_truth.startswith(PACKED) and len(problem.ground_truth) < 10_000
    assert json.loads(unpack(problem.ground_truth))["stdio"][1]["output"] == "100000"
    reward = build_reward(reward_specs("summary", ["live_code_bench"]))
    try:
        right = completion("print(sum(map(int, input().split())))")
        assert reward(problem, right).verdict is Verdict.PASS
        assert reward(problem, completion("print(7)")).verdict is Verdict.FAIL
    finally:
        reward.close()


def test_contests_of_a_window_are_kept(tmp_path):
    days = ("2024-07-31T23:59:00", "2024-08-01T00:00:00", "2025-01-31T00:00:00", "2025-02-01T00:00:00")
    unread = {"private_test_cases": "not even read"}
    rows = [SUM | {"question_id": day, "contest_date": day} | ({} if day in days[1:3] else unread) for day in days]
    window = {"contest_date": {"at_least": "2024-08-01", "below": "2025-02-01"}}
    assert [problem.id for problem in read(tmp_path / "test.jsonl", rows, where=window)] == list(days[1:3])


def test_conditions_are_of_values_and_lists_and_name_what_they_cannot_compare(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [SUM, SUM | {"question_id": "b", "difficulty": "hard"}]
    assert [p.id for p in read(path, rows, where={"difficulty": {"one_of": ["hard"]}})] == ["b"]
    for where, said in (
        (
            {"contest_day": {"below": "2025"}},
            "where: column contest_day is missing or empty; found columns contest_date",
        ),
        ({"contest_date": {"below": 2025}}, "where: column contest_date holds '2024-08-03T00:00:00', which does not"),
    ):
        with pytest.raises(SourceError, match=rf"test\.jsonl line 1: {said}"):
            read(path, rows, where=where)
        with pytest.raises(SourceError, match=said):
            check_first_row(ProblemSource.model_validate({"path": str(path), "where": where}))
    check_first_row(ProblemSource.model_validate({"path": str(path), "where": {"difficulty": {"one_of": ["hard"]}}}))


class RunsACommand:
    def __reduce__(self):
        return os.system, ("touch stolen",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(RunsACommand()))).decode()},
         "private_test_cases cannot be read: a pickle of something else than one text .* is not opened"),
        ({"private_test_cases": "%%"}, "private_test_cases cannot be read: no base64 of zlib data"),
        ({"public_test_cases": "[{]"}, "public_test_cases cannot be read"),
        ({"public_test_cases": '[{"input": 3, "output": "3", "testtype": "stdin"}]'}, "must be a list of {input"),
        ({"public_test_cases": json.dumps([stdin("", "") | {"testtype": "file"}])}, "of type 'file', not stdin"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "there are no tests"),
        ({"public_test_cases": json.dumps([functional("1", "1")])}, "metadata names no func_name"),
        ({"public_test_cases": json.dumps([functional("x", "1")]), "metadata": '{"func_name": "f"}'}, "is no JSON"),
        ({"metadata": '{"func_name": "f()"}'}, "is no name of a function"),
        ({"metadata": "{"}, "metadata cannot be read"),
        ({"question_content": " "}, "question_content is missing or empty"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_judge_is_named_and_nothing_of_it_is_run(tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=rf"test\.jsonl line 1: .*{said}"):
        read(tmp_path / "test.jsonl", [SUM | changes])
    assert os.listdir(tmp_path) == ["test.jsonl"]


def test_a_domain_of_programs_and_other_answers_is_refused(tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"question": "How many?", "answer": "#### 3"}\n')
    sums = list(read_problems(ProblemSource(path=str(tmp_path / "sums.jsonl"), domain="live_code_bench")))
    programs = read(tmp_path / "test.jsonl", [SUM])
    with pytest.raises(StageError, match="domain 'live_code_bench' has programs to judge and other answers"):
        program_domains([*sums, *programs])


def test_one_file_of_a_hub_data_set_is_read_from_its_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder = tmp_path / "datasets--livecodebench--code_generation_lite"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("a" * 40) / "test5.jsonl").write_text(json.dumps(SUM) + "\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = "hf://datasets/livecodebench/code_generation_lite/"
    assert [problem.id for problem in read_problems(ProblemSource(path=f"{place}test5.jsonl"))] == ["abc400_a"]
    with pytest.raises(SourceError, match=r"test6\.jsonl: cannot be had from the hub .*; give a local copy as path"):
        list(read_problems(ProblemSource(path=f"{place}test6.jsonl")))
    with pytest.raises(SourceError, match="expected hf://datasets/OWNER/NAME/FILE"):
        list(read_problems(ProblemSource(path="hf://datasets/test6.jsonl")))

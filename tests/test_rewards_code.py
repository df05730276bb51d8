"""The code reward pays for programs that pass all tests, for nothing else, and never for a failure of its own."""

import json
import sys

import pytest
from pydantic import ValidationError

from data.problems import Problem
from rewards.code import Code, CodeOptions
from rewards.code_answer import extract_program
from rewards.combine import build_reward
from rewards.config import RewardSpec
from rewards.reward import Verdict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux only")

SUM = {"stdio": [{"input": "3 4\n", "output": "7\n"}, {"input": "1 1\n", "output": "2\n"}]}
RIGHT = "print(sum(map(int, input().split())))"
HALF = "print(7)"
EQUAL = "def check(stdin, output, expected): return output == expected"


def problem(truth: dict | str, checker: str = "code") -> Problem:
    text = truth if isinstance(truth, str) else json.dumps(truth)
    messages = ({"role": "user", "content": "Add."},)
    return Problem(id="p", messages=messages, ground_truth=text, checker=checker, domain="code", language="en")


def completion(source: str, mark: str = "python") -> str:
    return f"<think>\nadd\n</think>\nHere it is:\n```{mark}\n{source}\n```\n"


@pytest.fixture(scope="module")
def code():
    reward = Code(CodeOptions(cpu_s=2.0, memory_mb=128))
    yield reward
    reward.close()


def test_right_and_wrong_programs(code):
    assert code(problem(SUM), completion(RIGHT)).value == 1.0
    score = code(problem(SUM), completion(HALF))
    assert (score.verdict, score.value) == (Verdict.FAIL, 0.0)
    assert "WA" in score.detail and "1 of 2" in score.detail


def test_a_share_of_the_tests_can_be_paid():
    reward = Code(CodeOptions(all_or_nothing=False))
    score = reward(problem(SUM), completion(HALF))
    assert (score.verdict, score.value) == (Verdict.FAIL, 0.5)
    assert reward(problem(SUM), completion(RIGHT)).verdict is Verdict.PASS
    reward.close()


@pytest.mark.parametrize(
    "truth",
    [
        {"calls": [{"function": "f", "args": [2], "expected": 4}, {"function": "f", "args": [3], "expected": 9}]},
        {"unit_tests": [{"source": "assert f(2) == 4\nassert f(3) == 9"}]},
        {"unit_tests": [{"source": "def check(g): assert g(3) == n", "setup": "n = 9", "entry_points": ["f"]}]},
    ],
)
def test_functions_and_unit_tests(code, truth):
    assert code(problem(truth), completion("def f(x): return x * x")).value == 1.0
    assert code(problem(truth), completion("def f(x): return 4")).value == 0.0
    assert code(problem(truth), completion("import sys\ndef f(x): sys.exit(0)")).value == 0.0


def test_checkers_of_a_problem(code):
    floats = {"stdio": [{"input": "", "output": "0.333333"}], "checker": {"floats": 1e-4}}
    assert code(problem(floats), completion("print(1 / 3)")).value == 1.0
    assert code(problem({**floats, "checker": {"floats": 1}}), completion("print(1)")).value == 1.0
    custom = {
        "stdio": [{"input": "5", "output": "9"}],
        "checker": {"custom": "def check(i, o, e): return int(o) > int(i)"},
    }
    assert code(problem(custom), completion("print(6)")).value == 1.0
    assert code(problem(custom), completion("print(5)")).value == 0.0


@pytest.mark.parametrize(
    "truth",
    [
        "no json",
        "[]",
        "{}",
        {"stdio": []},
        {"stdio": [{"input": "x"}]},
        {"stdio": SUM["stdio"], "checker": "x"},
        {"x": 1},
        {"stdio": [{"input": ["3", "4"], "output": "7"}]},
        {"stdio": [{"input": "3 4", "output": None}]},
        {"stdio": [{"input": "3 4", "output": 7}]},
        {"stdio": [{"input": "3 4", "output": "7", "outptu": ""}]},
        {"stdio": SUM["stdio"], "checker": {"floats": True}},
        {"stdio": SUM["stdio"], "cpu_s": "2"},
        {"stdio": SUM["stdio"], "cpu_s": -1},
        {"calls": [{"function": "f", "args": "ab", "expected": 1}]},
        {"calls": [{"function": "f", "args": [1]}]},
        '{"calls": [{"function": "f", "args": [1], "expected": NaN}]}',
        {"unit_tests": [{"source": ["assert f(1)"]}]},
        {"unit_tests": [{"source": "assert f(1)", "entry_points": "f"}]},
        '{"calls": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_tests_that_cannot_be_read_are_an_error(code, truth):
    score = code(problem(truth), completion(RIGHT))
    assert score.verdict is Verdict.ERROR and "cannot be read" in score.detail and len(score.detail) < 300


def test_calls_with_long_arguments_are_judged_and_longer_ones_are_an_error_of_the_problem(code):
    program = completion("def f(text): return len(text)")
    for size, verdict in ((3 << 20, Verdict.PASS), (9 << 20, Verdict.ERROR)):
        truth = {"calls": [{"function": "f", "args": ["x" * size], "expected": size}]}
        assert code(problem(truth), program).verdict is verdict
    endless = {"calls": [{"function": "f", "args": [""], "expected": "x" * (1 << 20)}]}
    assert code(problem(endless), program).verdict is Verdict.ERROR, "no program may answer that much"


def test_checkers_are_asked_about_long_outputs(code):
    for size, verdict in ((1 << 20, Verdict.PASS), (4 << 20, Verdict.ERROR)):
        truth = {"stdio": [{"input": str(size), "output": "x" * size}], "checker": {"custom": EQUAL}}
        assert code(problem(truth), completion("print('x' * int(input()), end='')")).verdict is verdict
        assert code(problem(truth), completion("print('y' * int(input()), end='')")).verdict is not Verdict.PASS


def test_a_program_over_its_time_is_counted_as_timed_out(code):
    slow = code(problem({**SUM, "cpu_s": 0.3}), completion("while True: pass"))
    assert (slow.verdict, slow.timed_out) == (Verdict.FAIL, True)
    assert not code(problem(SUM), completion(HALF)).timed_out


def test_a_broken_test_or_checker_is_an_error(code):
    assert code(problem({"unit_tests": [{"source": "def f(:"}]}), completion("def f(): pass")).verdict is Verdict.ERROR
    custom = {"stdio": [{"input": "", "output": ""}], "checker": {"custom": "def check(i, o, e): raise OSError"}}
    assert code(problem(custom), completion("print(1)")).verdict is Verdict.ERROR


def test_languages_not_asked_for_and_other_checkers_are_errors(code):
    assert "not for cpp" in code(problem({**SUM, "language": "cpp"}), completion("x", "cpp")).detail
    assert "'math'" in code(problem("5", "math"), "5").detail


def test_batches_keep_their_order():
    reward = Code(CodeOptions(workers=2))
    sources = [RIGHT, HALF, "while True: pass", RIGHT]
    truth = {**SUM, "cpu_s": 0.5}
    scores = reward.score_batch([problem(truth)] * 4, [completion(source) for source in sources])
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 1.0]
    reward.close()


def test_a_row_that_fails_leaves_the_others_alone(code, monkeypatch):
    real = Code.__call__

    def fragile(self, problem, completion):
        if "BOOM" in completion:
            raise OverflowError("too large")
        return real(self, problem, completion)

    monkeypatch.setattr(Code, "__call__", fragile)
    rows = [completion(RIGHT), completion("BOOM"), completion(HALF)]
    scores = code.score_batch([problem(SUM)] * 3, rows)
    assert [score.verdict for score in scores] == [Verdict.PASS, Verdict.ERROR, Verdict.FAIL]


def test_fences_that_never_close_take_linear_time():
    assert extract_program("```x\n" * 200_000, "python") is None  # quadratic time would be minutes
    assert extract_program("```x\n" * 200_000 + "```\n```python\na\n```", "python") == "a\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\r\na\r\n```\r\n", "a\r\n"),
        ("  ```Python3 title\n  a\n   b\n c\n  ``` \n", "a\n b\nc\n"),
        ("1. Do:\n\n   ```python\n   if a:\n\n       b\n   ```\n", "if a:\n\n    b\n"),
        ("- ```python\n  a\n  ```", "a\n"),
        ("- 10) no\n    * 1.\n      ```python\n      a\n      ```", "a\n"),
        ("\t```python\n\ta\n\t\tb\n\t```", "a\n\tb\n"),
        ("````python\n'\n```\n'\n````", "'\n```\n'\n"),
        ("````python\na\n`````", "a\n"),
        ("````python\na\n```", None),
        ("~~~python\n'\n```\n'\n~~~", "'\n```\n'\n"),
        ("~~~python\na\n```", None),
        ("```python\ndef f():\n    '\n    ```\n    '\n```", "def f():\n    '\n    ```\n    '\n"),
        ("```python``` is a fence\n```python\na\n```", "a\n"),
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\nthen\n```python\nb\n```", "b\n"),
        ("```\na\n```", "a\n"),
        ("```cpp\na\n```", None),
        ("```python\na\n```\n```bash\nls\n```", "a\n"),
        ("```python\nnever closed", None),
        ("print(1)", None),
    ],
)
def test_the_last_program_of_the_language_counts(text, found):
    assert extract_program(text, "python") == found


@pytest.mark.parametrize(
    "layout", ["<answer>{}</answer>", "Here:\n<answer>\n{}\n</answer>", "<answer>So:\n{}</answer>."]
)
def test_programs_in_answer_tags_count(code, layout):
    for source, value in ((RIGHT, 1.0), (HALF, 0.0)):
        block = f"```python\n{source}\n```"
        assert code(problem(SUM), "<think>\nadd\n</think>\n" + layout.format(block)).value == value
    outside = f"<think>add</think>\n```python\n{RIGHT}\n```\n<answer>see above</answer>"
    assert code(problem(SUM), outside).value == 0.0


def test_programs_in_the_reasoning_do_not_count(code):
    assert code(problem(SUM), f"<think>\n```python\n{RIGHT}\n```\n</think>\nnone").value == 0.0


def test_a_recipe_can_use_it():
    spec = RewardSpec(use="rewards.code:Code", options={"cpu_s": 2})
    reward = build_reward([spec])
    score = reward(problem(SUM), completion(RIGHT))
    assert (score.verdict, score.parts) == (Verdict.PASS, {"code": 1.0})
    reward.close()
    with pytest.raises(ValidationError):
        CodeOptions(tier="none")  # type: ignore[arg-type]

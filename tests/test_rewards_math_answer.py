"""Final answers: where they are looked for, when they count, when they equal the gold answer."""

import pytest

from rewards.exact import equal_numbers, parse_number
from rewards.grader_process import CheckResult, GraderPool
from rewards.math_answer import extract_answer, find_boxes, grade_math
from rewards.reward import Verdict


@pytest.fixture(scope="module")
def pool():
    with GraderPool(deadline_s=10.0) as pool:
        yield pool


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"<think>a</think>The answer is $\boxed{42}$.", "42"),
        (r"<think>a</think>\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"<think>a</think>\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"<think>a</think>\boxed{\boxed{7}}", "7"),
        (r"<think>a</think>\boxed {7}", "7"),
        (r"<think>a</think>\boxed{7} and so \boxed{ 7 }", "7"),
        ("<think>a</think><answer> 42 </answer>", "42"),
        (r"<think>a</think><answer>It is \boxed{42}.</answer>", "42"),
        (r"<think>\boxed{41}</think>\boxed{42}", "42"),
        (r"\boxed{42}", "42"),
        (r"<think>a</think>First \boxed{41}, but checking gives \boxed{42}.", "42"),
        ("```python\nprint('\\boxed{41}')\n```\nOutput: \\boxed{42}", "42"),
        (r"<think>a</think>\fbox{42}", "42"),
        (r"<think>a</think>Answer - \boxed{42}", "42"),
        (r"<think>a</think>$x=\boxed{42}^\circ$", r"42^\circ"),
        (r"<think>a</think>The answer is \boxed 42.", "42"),
        (r"<think>a</think>\boxed{41} or \boxed{42}", "41, 42"),
        (r"<think>a</think>$x=\boxed{41}$ and $y=\boxed{42}$", "41, 42"),
        (r"<think>a</think>\boxed{\boxed{41} or \boxed{42}}", "41, 42"),
    ],
)
def test_answer_is_found(completion, answer):
    assert extract_answer(completion).text == answer


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "42",
        "<think>a</think>The answer is 42.",
        r"<think>the answer is \boxed{42}</think>I am done.",
        r"<think>the answer is \boxed{42}",
        r"<think><answer>42</answer></think>",
        r"<think>a</think>\boxed{41}<answer>42</answer>",
        "<think>a</think><answer>41</answer><answer>42</answer>",
        r"<think>a</think><answer>42\boxed{42}",
        r"<think>a</think>\boxed{42",
        r"<think>a</think>\boxed{}",
        r"<think>a</think>It is -\boxed{5}",
        r"<think>a</think>$\boxed{5}^2$",
    ],
)
def test_completion_that_commits_to_no_single_answer_has_none(completion):
    answer = extract_answer(completion)
    assert answer.text is None and answer.problem


def test_twenty_thousand_open_boxes_are_no_answer():
    assert find_boxes("\\boxed{" * 20_000) == ([], True)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("7425000", "7,425,000"),
        ("32349", r"32,\! 349"),
        ("0.4", ".4"),
        ("0.75", r"\frac{3}{4}"),
        ("0.75", "75%"),
        ("-5", "−5"),
        ("12", "１２"),
        ("10", r"\$10"),
        ("1/3", "0.333333"),
        (r"\text{odd}", "odd"),
        ("3", "x = 3"),
        (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}"),
        ("(1, 2)", "(1,2)"),
        ("1, 2", "2 和 1"),
        (r"\{1,2\}", "2, 1"),
        (r"x \leq 3", "x ≤ 3"),
        (r"1 \pm \sqrt{19}", r"1 \pm \sqrt{19}"),
    ],
)
def test_same_value_written_differently_passes(pool, gold, answer):
    assert grade_math(gold, answer, pool).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("3", "3 or 4"),
        ("3", "3, 4"),
        ("3", r"3 \text{ or } 4"),
        ("3", "3、4"),
        ("3", "3 或 4"),
        ("3", r"\{3, 4\}"),
        ("3", r"\pm 3"),
        ("3", "3 \\pm 0"),
        ("42", "43 = 42"),
        ("42", "42?43"),
        ("42", "4 2"),
        ("8", "4 2"),
        ("1, 2", "1"),
        ("5", r"5\%"),
        ("5", "5.1"),
        ("1/3", "0.33"),
        ("0.066793", "0.067"),
        ("listen", "silent"),
        ("(1, 2)", "(2, 1)"),
        ("[0,1)", "(0,1)"),
        ("x^2+1", "t^2+1"),
        ("42", "__import__('os').system('id')"),
        ("42", "I do not know"),
        ("42", "\\frac{1}{"),
        ("42", "1" * 5000),
    ],
)
def test_wrong_or_hedged_answers_fail(pool, gold, answer):
    score = grade_math(gold, answer, pool)
    assert (score.verdict, score.value) == (Verdict.FAIL, 0.0)


@pytest.mark.parametrize("gold", ["", "\\frac{1}{", "\\begin{nonsense"])
def test_unreadable_gold_is_an_error(pool, gold):
    assert grade_math(gold, "42", pool).verdict is Verdict.ERROR


@pytest.mark.parametrize("bomb", ["2^{10^{10}}", "9^{9^{9^{9}}}", "((10!)!)!"])
def test_answer_that_hangs_or_crashes_the_grader_is_wrong(bomb):
    with GraderPool(deadline_s=2.0) as pool:
        score = grade_math("42", bomb, pool)
        assert (score.verdict, score.value) == (Verdict.FAIL, 0.0)
        assert grade_math(r"\sqrt{16}", "4", pool).verdict is Verdict.PASS


def test_late_answer_is_told_the_deadline():
    with GraderPool(deadline_s=2.0) as pool:
        late = grade_math("42", "2^{10^{10}}", pool)
        assert "did not end within 2 s" in late.detail and late.timed_out


def test_gold_that_hangs_the_grader_is_an_error_without_a_value():
    with GraderPool(deadline_s=2.0) as pool:
        score = grade_math("9^{9^{9^{9}}}", r"\sqrt{16}", pool)
        assert (score.verdict, score.value) == (Verdict.ERROR, None)
        assert grade_math(r"\sqrt{16}", "4", pool).verdict is Verdict.PASS


class ScriptedPool(GraderPool):
    """Every comparison ends in `result`."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def check(self, gold, answer):
        return self.result


@pytest.mark.parametrize(
    ("error", "said"),
    [("out of memory", "ran out of memory"), ("crashed", "failed: crashed"), ("deadline", "within 5 s")],
)
def test_grader_that_fails_on_the_answer_fails_the_answer(error, said):
    score = grade_math(r"\sqrt{2}", "x^2", ScriptedPool(CheckResult(error=error, at="answer")))
    assert score.verdict is Verdict.FAIL and said in score.detail


@pytest.mark.parametrize(
    ("error", "at"), [("crashed", None), ("deadline", "gold"), ("grader did not start: crashed", None)]
)
def test_dead_grader_is_an_error_not_a_wrong_answer(error, at):
    score = grade_math(r"\sqrt{2}", "x^2", ScriptedPool(CheckResult(error=error, at=at)))
    assert (score.verdict, score.value) == (Verdict.ERROR, None)


def test_python_powers_are_never_evaluated_into_a_reward():
    with GraderPool(deadline_s=1.0) as pool:
        assert not grade_math("42", "9**9**9**9", pool).value


def test_numbers_are_read_exactly():
    assert (parse_number("0.1") or 0) * 3 == parse_number("3/10")
    assert parse_number("-\\frac{3}{4}") == parse_number("-0.75")
    assert parse_number("3/0") is None
    assert parse_number("1e9999999") is None
    assert parse_number("10²") is None
    assert equal_numbers("123456789012345678901", "123456789012345678902") is False


@pytest.mark.parametrize("piece", ["$", "\\[ ", "1,", "111 ", "{", "}", "**", "a ", "\\text{or} ", "\\begin{align}"])
def test_hundred_thousand_characters_before_the_box_do_not_matter(piece):
    assert extract_answer(piece * (100_000 // len(piece)) + " so \\boxed{42}").text == "42"

"""Graders without algebra: lists, choices, the countdown game."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problems import Problem
from rewards.checkers import CHECKERS
from rewards.countdown import ExpressionError, evaluate
from rewards.reward import Verdict


def problem(checker: str, truth: str) -> Problem:
    return Problem(id="p", messages=(), ground_truth=truth, checker=checker, domain="d", language="en")


def verdict(checker: str, truth: str, answer: str) -> Verdict:
    return CHECKERS[checker](problem(checker, truth), answer).verdict


@pytest.mark.parametrize(
    "answer", ["[3, 5]", "3, 5", "3 < 5", "3，5", "3、5", "(3,5)", "['3', '5']", "3.0, 10/2", r"\{3, 5\}", r"3 \lt 5"]
)
@pytest.mark.parametrize("truth", ["[3, 5]", "3, 5", '["3", "5"]', "['3', '5']"])
def test_list_in_any_notation_passes(truth, answer):
    assert verdict("list", truth, answer) is Verdict.PASS


@pytest.mark.parametrize("answer", ["5, 3", "5 < 3", "3 > 5", "3", "3, 5, 5", "3 < 5, 5", "3,,5", "", "three, five"])
def test_other_lists_fail(answer):
    assert verdict("list", "[3, 5]", answer) is Verdict.FAIL


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ("true", ["True", "yes", "YES.", "真", "是", "对", r"\text{true}", "**Yes**"]),
        ("否", ["no", "False", "假", "错"]),
        ("B", ["b", "(B)", "B.", r"\text{(B)}", r"\mathbf{B}", r"\bf B", r"{\bf B}", "B. Paris", "Option B"]),
    ],
)
def test_choice_by_meaning_passes(truth, answers):
    assert {verdict("choice", truth, answer) for answer in answers} == {Verdict.PASS}


@pytest.mark.parametrize("answer", ["no", "yes or no", "true false", "A", "", "maybe", "yes, but no", "是否", "Y. N"])
def test_other_or_several_choices_fail(answer):
    assert verdict("choice", "yes", answer) is Verdict.FAIL


GAME = json.dumps({"numbers": [2, 3, 8, 8], "target": 48})


@pytest.mark.parametrize("answer", ["2*3*8", "(8+8)*3", "3×(8+8) = 48", r"$(8 + 8) \times 3 = 48$", "8*(8-2)"])
def test_countdown_solutions_pass(answer):
    assert verdict("countdown", GAME, answer) is Verdict.PASS


@pytest.mark.parametrize(
    "answer",
    [
        "48",
        "6*8",
        "2*3*8 = 49",
        "2*3*8 = 48 = 48",
        "2+3",
        "8*8*3/(2+2)",
        "2*3*8 or 1",
        "8**2",
        "-2*3*8",
        "8/(3-3)",
        "((8+8)*3",
        "2 3 * 8",
        "",
        "__import__('os').system('id')",
        "(" * 190 + "8",
        "8+" * 5000 + "8",
        "2*3*8#",
        "abs(2)*3*8",
    ],
)
def test_countdown_refuses_everything_else(answer):
    assert verdict("countdown", GAME, answer) is Verdict.FAIL


def expressions(depth: int = 3):
    leaf = st.integers(0, 30).map(lambda n: (str(n), Fraction(n), [n]))
    if depth == 0:
        return leaf

    def join(parts):
        (left, a, used_a), operator, (right, b, used_b) = parts
        if a is None or b is None or (operator == "/" and b == 0):
            value = None
        else:
            value = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[operator]()
        return f"({left} {operator} {right})", value, used_a + used_b

    smaller = expressions(depth - 1)
    return leaf | st.tuples(smaller, st.sampled_from("+-*/"), smaller).map(join)


@given(expressions())
def test_evaluator_agrees_with_fractions(case):
    text, value, used = case
    if value is None:
        with pytest.raises(ExpressionError):
            evaluate(text)
    else:
        assert evaluate(text) == (value, used)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.lists(st.sampled_from("+-*"), min_size=5, max_size=5))
def test_precedence_is_that_of_arithmetic(numbers, operators):
    text = "".join(f"{number}{operator}" for number, operator in zip(numbers, operators, strict=False))[:-1]
    if len(numbers) > len(operators):
        text += f"{operators[-1]}{numbers[-1]}"
    terms, sign = [], 1
    for token in text.replace("-", "+-").split("+"):
        sign = -1 if token.startswith("-") else 1
        product = 1
        for factor in token.lstrip("-").split("*"):
            product *= int(factor)
        terms.append(sign * product)
    assert evaluate(text)[0] == sum(terms)


@given(st.text(max_size=300))
def test_arbitrary_text_never_breaks_a_grader(text):
    for checker, truth in [("list", "[3, 5]"), ("choice", "yes"), ("countdown", GAME)]:
        assert verdict(checker, truth, text) is not Verdict.ERROR


@pytest.mark.parametrize(
    ("checker", "truth"),
    [
        ("list", "three"),
        ("list", "[true]"),
        ("choice", "perhaps"),
        ("countdown", "24"),
        ("countdown", '{"numbers": [1.5], "target": 1}'),
        ("instruction", "{}"),
        ("instruction", '{"checks": [{"kind": "sing"}]}'),
        ("instruction", '{"checks": [{"kind": "max_words"}]}'),
        ("instruction", '{"checks": [{"kind": "max_words", "n": "8"}]}'),
    ],
)
def test_unreadable_ground_truth_is_an_error(checker, truth):
    assert verdict(checker, truth, "3") is Verdict.ERROR


@pytest.mark.parametrize("answer", ["A, C", "C and A", "AC", "(A), (C)", r"\text{A, C}", "a、c", "A/C"])
def test_options_in_any_order(answer):
    assert verdict("options", "A, C", answer) is Verdict.PASS


@pytest.mark.parametrize("answer", ["A", "A, B, C", "ABCD", "A, A, C", "A or C, not B", "none", "x, y"])
def test_other_options_fail(answer):
    assert verdict("options", "A, C", answer) is Verdict.FAIL


KNIGHTS = '{"Ann": "knight", "Bob": "knave"}'


@pytest.mark.parametrize(
    "answer",
    [
        "Ann: knight, Bob: knave",
        "bob = Knave; ann = Knight",
        "Ann is a knight and Bob is a knave.",
        '{"Bob": "knave", "Ann": "knight"}',
        "- Ann: knight\n- Bob: knave",
        "Ann -> knight, and Bob -> knave",
    ],
)
def test_a_value_for_every_key(answer):
    assert verdict("key_value", KNIGHTS, answer) is Verdict.PASS


@pytest.mark.parametrize(
    "answer",
    [
        "Ann: knight",
        "Ann: knight, Bob: knight",
        "Ann: knight, Bob: knave, Ann: knave",
        '{"Ann": "knave", "Ann": "knight", "Bob": "knave"}',
        "Ann: knight or knave, Bob: knave",
        "Ann: knight, Bob: knave, Cid: knave",
        "knight, knave",
        "[" * 1500,
    ],
)
def test_missing_wrong_or_hedged_values_fail(answer):
    assert verdict("key_value", KNIGHTS, answer) is Verdict.FAIL


@pytest.mark.parametrize(
    ("checker", "gold"),
    [("options", "none"), ("options", ""), ("key_value", "[]"), ("key_value", "{}"), ("key_value", "a")],
)
def test_unusable_ground_truth_is_an_error(checker, gold):
    assert verdict(checker, gold, "A") is Verdict.ERROR

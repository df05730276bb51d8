"""Checkable instructions: each kind, the share, and what dumping text earns."""

import json

import pytest

from data.problems import Problem
from rewards.accuracy import Accuracy
from rewards.instruction import KINDS, check_instruction
from rewards.reward import Verdict


def problem(*checks) -> Problem:
    truth = json.dumps({"checks": list(checks)})
    return Problem(id="p", messages=(), ground_truth=truth, checker="instruction", domain="general", language="en")


CASES = [
    ({"kind": "one_line"}, "A river.", "A\nriver."),
    ({"kind": "use_word", "word": "river"}, "The River flows.", "The rivers flow."),
    ({"kind": "use_word", "word": "河"}, "这条河很长。", "这条江很长。"),
    ({"kind": "avoid_word", "word": "river"}, "The stream flows.", "The river flows."),
    ({"kind": "max_words", "n": 3}, "One two three.", "One two three four."),
    ({"kind": "max_words", "n": 3}, "三个字。", "四个字了。"),
    ({"kind": "min_words", "n": 3}, "One two three.", "One two."),
    ({"kind": "n_items", "n": 2}, "- one\n- two", "- one\n- two\n- three"),
    ({"kind": "n_items", "n": 2}, "1. one\n2. two", "one, two"),
    ({"kind": "language", "code": "zh"}, "今天天气很好", "The weather is fine"),
    ({"kind": "starts_with", "text": "Dear"}, "Dear friend", "My dear friend"),
    ({"kind": "ends_with", "text": "."}, "Yes.", "Yes"),
    ({"kind": "repeat", "text": "go on", "n": 2}, "go on\ngo on", "go on go on go on"),
    ({"kind": "lowercase"}, "all small", "Not all small"),
    ({"kind": "uppercase"}, "ALL BIG", "Not all big"),
    ({"kind": "uppercase"}, "A B", "123 好"),
]


def test_every_kind_has_a_case():
    assert {case[0]["kind"] for case in CASES} == set(KINDS)


@pytest.mark.parametrize(("check", "good", "bad"), CASES)
def test_kind(check, good, bad):
    assert check_instruction(problem(check), good).value == 1.0
    score = check_instruction(problem(check), bad)
    assert (score.verdict, score.value) == (Verdict.FAIL, 0.0)


def test_value_is_the_share_but_only_all_checks_pass():
    asked = problem({"kind": "one_line"}, {"kind": "use_word", "word": "river"}, {"kind": "ends_with", "text": "."})
    assert check_instruction(asked, "A river.").verdict is Verdict.PASS
    score = check_instruction(asked, "A river")
    assert (score.verdict, score.value) == (Verdict.FAIL, pytest.approx(2 / 3))


def test_dumping_words_earns_nothing():
    asked = problem({"kind": "use_word", "word": "river"})
    assert check_instruction(asked, " ".join(["dog", "sun", "river"] * 30)).value == 0.0


@pytest.mark.parametrize("final", ["", "  \n", "..."])
def test_empty_final_answer_earns_nothing(final):
    assert check_instruction(problem({"kind": "one_line"}, {"kind": "avoid_word", "word": "x"}), final).value == 0.0


def test_reasoning_is_not_read():
    accuracy = Accuracy()
    asked = problem({"kind": "use_word", "word": "river"})
    assert accuracy(asked, "<think>river</think>A stream.").value == 0.0
    assert accuracy(asked, "<think>stream</think>A river.").value == 1.0
    assert accuracy(asked, "<think>river").value == 0.0

"""Length and repetition rewards against their formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from rewards.length import CosineLength, CosineOptions, Overlong, OverlongOptions, TokenBudget, TokenBudgetOptions
from rewards.repetition import Repetition, RepetitionOptions
from rewards.reward import Verdict
from rewards.testing import make_problem

PROBLEM = make_problem(gold="4")


@pytest.mark.parametrize(("words", "value"), [(0, 1.0), (60, 1.0), (80, 0.5), (100, 0.0), (500, 0.0)])
def test_overlong_falls_over_the_buffer(words, value):
    reward = Overlong(OverlongOptions(max_length=100, buffer=40))
    assert reward(PROBLEM, "word " * words).value == pytest.approx(value)


def test_overlong_without_buffer_is_a_hard_limit():
    reward = Overlong(OverlongOptions(max_length=3, buffer=0, unit="characters"))
    assert [reward(PROBLEM, text).value for text in ("abc", "abcd")] == [1.0, 0.0]


def test_tokens_are_those_of_the_given_tokenizer(tmp_path):
    tokenizer = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    options = OverlongOptions(max_length=4, buffer=2, unit="tokens", tokenizer=str(tmp_path))
    assert Overlong(options)(PROBLEM, "a,b,c,d,e a a").value == 0.5


@pytest.mark.parametrize(
    ("exact", "words", "value"), [(False, 5, 1.0), (True, 5, 0.0), (True, 8, 0.6), (False, 12, 0.6), (False, 15, 0.0)]
)
def test_budget_comes_from_the_problem(exact, words, value):
    asked = make_problem(metadata={"budget": 10})
    reward = TokenBudget(TokenBudgetOptions(exact=exact))
    assert reward(asked, "word " * words).value == pytest.approx(value)


@pytest.mark.parametrize("budget", [None, "10", True, 0])
def test_problem_without_a_budget_is_an_error(budget):
    assert TokenBudget()(make_problem(metadata={"budget": budget}), "text").verdict is Verdict.ERROR


@given(st.integers(0, 100), st.booleans())
def test_cosine_follows_its_formula(words, right):
    options = CosineOptions(max_length=100, right_short=1.0, right_long=0.5, wrong_short=0.0, wrong_long=0.25)
    reward = CosineLength(options)
    answer = "<answer>4</answer>" if right else "<answer>5</answer>"
    text = "w " * max(0, words - 3) + answer  # the tags and the answer are three words
    length = max(0, words - 3) + 3
    short, long = (1.0, 0.5) if right else (0.0, 0.25)
    expected = long + 0.5 * (short - long) * (1 + math.cos(math.pi * length / 100))
    score = reward(PROBLEM, text)
    assert score.value == pytest.approx(expected)
    assert score.verdict is (Verdict.PASS if right else Verdict.FAIL)


def test_cosine_beyond_the_limit_is_nothing_and_errors_stay_errors():
    reward = CosineLength(CosineOptions(max_length=10))
    assert reward(PROBLEM, "w " * 20 + "<answer>4</answer>").value == 0.0
    assert reward(make_problem(gold=""), "<answer>4</answer>").verdict is Verdict.ERROR


def test_cosine_refuses_settings_where_wrong_beats_right():
    with pytest.raises(ValueError, match="wrong_long is above right_long"):
        CosineLength(CosineOptions(wrong_long=0.9))


def test_repetition_costs_from_the_free_share_on():
    reward = Repetition(RepetitionOptions(n=2, free=0.5))
    assert reward(PROBLEM, "a b c d").value == 1.0
    assert reward(PROBLEM, "a b a b a").value == 1.0  # 2 of 4 pairs are repeats
    assert reward(PROBLEM, "a a a a a a a a a").value == pytest.approx((1 - 7 / 8) / 0.5)
    assert reward(PROBLEM, "...").value == 0.0

"""10-gram decontamination: every planted overlap is found, nothing else is dropped."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.decontaminate import NgramIndex, decontaminate, problem_texts, tokenize
from data.problems import Problem

WORDS = st.sampled_from(["river", "12", "add", "天", "空", "x", "the"])
DECORATION = st.sampled_from([" ", ", ", "\n", " $ ", "... "])


def overlap_by_loops(first: list[str], second: list[str], n: int) -> bool:
    if len(first) < n or len(second) < n:
        return bool(first) and first == second
    return any(
        first[i : i + n] == second[j : j + n] for i in range(len(first) - n + 1) for j in range(len(second) - n + 1)
    )


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Add 3, then \\frac{1}{2}!", ["add", "3", "then", "frac", "1", "2"]),
        ("用“天空”造句 x2", ["用", "天", "空", "造", "句", "x2"]),
        ("\uff21\uff22\uff11", ["ab1"]),  # full-width letters
        ("... \u3002", []),
    ],
)
def test_tokens_are_words_numbers_and_han_characters(text, tokens):
    assert tokenize(text) == tokens


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_read_as_any_other_text(text):
    assert tokenize(text) == tokenize(f"{text} é")[:-1]


@given(st.lists(WORDS, max_size=15), st.lists(WORDS, min_size=10, max_size=12), st.lists(WORDS, max_size=15), st.data())
def test_every_planted_ten_gram_is_found(before, planted, after, data):
    index = NgramIndex()
    index.add(" ".join(planted))
    disguised = "".join(word.upper() + data.draw(DECORATION) for word in planted)
    assert index.overlaps(f"{' '.join(before)} {disguised} {' '.join(after)}")


@given(st.lists(WORDS, max_size=9), st.lists(WORDS, max_size=9), st.integers(1, 5))
def test_index_agrees_with_comparing_all_pairs(held_out, candidate, n):
    index = NgramIndex(n)
    index.add(" ".join(held_out))
    assert index.overlaps(" ".join(candidate)) == overlap_by_loops(held_out, candidate, n)


def test_short_texts_match_only_as_a_whole():
    index = NgramIndex()
    index.add("What is 3 + 4?")
    assert index.overlaps("what is 3 - 4")  # signs are not tokens
    assert not index.overlaps("What is 3 + 4 + 5?")
    assert not index.overlaps("Ann asks her teacher on Monday morning: What is 3 + 4?")
    assert not index.overlaps("") and not index.overlaps("?!")


def test_chinese_is_compared_by_characters():
    index = NgramIndex()
    index.add("小明有三个苹果，又买了五个，现在一共有几个？")
    assert index.overlaps("昨天小明有三个苹果又买了五个。")
    assert not index.overlaps("昨天小明有三个苹果，后来吃了。")


def test_rows_are_dropped_counted_and_shown():
    held_out = "one two three four five six seven eight nine ten eleven"
    rows = [
        {"question": "clean", "solution": "clean too"},
        {"question": f"Start {held_out}", "solution": ""},
        {"question": "fine", "solution": f"but {held_out}"},
    ]
    result = decontaminate(rows, [held_out], key=lambda row: [row["question"], row["solution"]])
    assert result.kept == rows[:1] and result.dropped_count == 2
    assert result.examples == ["one two three four five six seven eight nine ten"] * 2
    assert decontaminate(rows, [held_out], key=lambda row: row["question"]).dropped_count == 1
    assert decontaminate(rows, [held_out], key=lambda row: row["question"], max_examples=0).examples == []


def test_problems_are_compared_by_question_and_solution():
    problem = Problem(
        id="a",
        messages=({"role": "user", "content": "q"},),
        ground_truth="1",
        checker="math",
        domain="math",
        language="en",
        metadata={"solution": "s"},
    )
    assert problem_texts(problem) == ["q", "s"]


def test_hashes_are_the_same_in_every_process():
    code = "from data.decontaminate import _hash; print(_hash('one two'))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_memory_counts_distinct_ngrams_only():
    index = NgramIndex(3)
    for _ in range(100):
        index.add("a b c d")
    assert len(index) == 2
    with pytest.raises(ValueError, match="at least 1"):
        NgramIndex(0)

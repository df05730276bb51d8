"""What is kept as SFT data and why the rest is dropped."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.reward import Verdict
from sft.filters import (
    FilterConfig,
    Filters,
    Trace,
    code_block,
    ill_formed,
    incorrect,
    long_paragraph,
    mixed_language,
    normalize,
    repetition,
    repetitive,
    summary_language,
    too_long,
)

GOOD = "<think>\nFirst 3 + 4 = 7.\nThen 7 - 2 = 5.\n</think>\n\nThe answer is \\boxed{5}."
TRACE = Trace(problem_id="p", question="3 + 4 - 2?", language="en", completion=GOOD, n_tokens=30, verdict=Verdict.PASS)


def consistency(text: str, language: str) -> float | None:
    """Share of letters in the language's script; enough to drive the filters."""
    han = sum("\u4e00" <= character <= "\u9fff" for character in text)
    latin = sum(character.isascii() and character.isalpha() for character in text)
    if not han + latin:
        return None
    return (han if language == "zh" else latin) / (han + latin)


def build(seed=0, **keys):
    return Filters(FilterConfig(**keys), consistency, seed=seed)


def think(reasoning, final="So \\boxed{5}."):
    return f"<think>\n{reasoning}\n</think>\n\n{final}"


LOOP = "I check the sum again and it is still seven. " * 20


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"verdict": None}, None),
        ({"verdict": Verdict.FAIL}, "incorrect"),
        ({"verdict": Verdict.ERROR}, "unscorable"),
        ({"truncated": True}, "truncated"),
        ({"n_tokens": 101}, "too_long"),
        ({"n_tokens": None}, None),
        ({"completion": "The answer is 5."}, "ill_formed"),
        ({"completion": "<think>\nopen for ever"}, "ill_formed"),
        ({"completion": think("a", final="")}, "ill_formed"),
        ({"completion": think("", final="Hi")}, "ill_formed"),
        ({"completion": think("a </think> <think> b")}, "ill_formed"),
        ({"completion": think("a", final="<answer> 5 </answer>")}, "ill_formed"),
        ({"completion": think("see\n```python\nprint(5)\n```")}, "code_block"),
        ({"completion": think("word " * 301)}, "long_paragraph"),
        ({"completion": think(LOOP)}, "repetitive"),
        ({"completion": think("先算 three plus four 等于七")}, "mixed_language"),
        ({"completion": think("Three plus four.", final="答案是五。")}, "summary_language"),
        ({"completion": think("3 + 4 = 7", final="5")}, None),
        ({"completion": "x" * 2001}, "too_long"),
    ],
)
def test_each_fault_has_its_reason(change, reason):
    filters = build(max_tokens=100, max_characters=2000)
    assert filters.reason(replace(TRACE, **change)) == reason


def test_filters_report_none_for_what_is_fine():
    assert incorrect(None) is None and incorrect(Verdict.PASS) is None
    assert code_block("the variable `x` is 3") is None
    assert long_paragraph("word " * 300) is None and long_paragraph("word\n" * 1000) is None
    assert long_paragraph("天" * 301) == "long_paragraph"
    assert too_long("x", 5, False, 5, 1) is None
    assert mixed_language("3 + 4", "zh", consistency) is None
    assert summary_language("答案", "zh", consistency) is None


def test_empty_reasoning_and_answer_tags_are_a_matter_of_layout():
    assert ill_formed(think("", "Hi"), allow_empty_reasoning=True) is None
    tagged = "<think> 3 + 4 = 7 </think> <answer> 7 </answer>"
    assert ill_formed(tagged) == "ill_formed" and ill_formed(tagged, layout="answer_tags") is None
    assert ill_formed(GOOD, layout="answer_tags") == "ill_formed"


def test_repetition_is_the_share_of_ngrams_seen_before():
    assert repetition("a b a b a b", n=2) == pytest.approx(3 / 5)  # ab ba ab ba ab
    assert repetition("") == repetition("one two") == 0.0
    assert repetition(" ".join(str(number) for number in range(200))) == 0.0
    assert repetition("我再检查一遍答案是不是七，" * 20) > 0.8


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5))
def test_repetition_agrees_with_counting(words, n):
    ngrams = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    total = sum(ngrams.values())
    expected = sum(count - 1 for count in ngrams.values()) / total if total else 0.0
    assert repetition(" ".join(words), n) == pytest.approx(expected)
    assert (repetitive(" ".join(words), n, 0.3) is None) == (repetition(" ".join(words), n) <= 0.3)


def test_duplicates_ignore_case_and_spacing_but_not_signs():
    filters = build()
    again = replace(TRACE, problem_id="other id", completion=GOOD.replace("First 3", "first  3"))
    other_sign = replace(TRACE, completion=GOOD.replace("7 - 2 = 5", "7 + 2 = 5"))
    other_question = replace(TRACE, question="4 + 3 - 2?")
    assert filters.keep([TRACE, again, other_sign, other_question]) == [TRACE, other_sign, other_question]
    assert filters.reasons == {"duplicate": 1}
    assert normalize("\uff11 +\n2") == "1 + 2"


def test_rejected_traces_do_not_block_good_twins():
    filters = build()
    assert filters.keep([replace(TRACE, verdict=Verdict.FAIL), TRACE]) == [TRACE]


def test_counts_add_up():
    filters = build(max_per_problem=1)
    bad = replace(TRACE, verdict=Verdict.FAIL)
    more = [replace(TRACE, completion=GOOD.replace("First", word)) for word in ("So", "Now", "Well")]
    kept = filters.keep([TRACE, bad, *more])
    assert len(kept) == filters.kept == 1
    assert filters.seen == 5 == filters.kept + filters.reasons.total()
    assert filters.reasons == {"incorrect": 1, "over_limit": 3}


def test_limit_per_problem_depends_on_the_seed_not_on_arrival():
    traces = [
        replace(TRACE, problem_id=f"p{number % 3}", completion=GOOD.replace("First", f"Step {number}"))
        for number in range(30)
    ]
    kept = build(seed=1, max_per_problem=2).limit_per_problem(traces)
    assert Counter(trace.problem_id for trace in kept) == {"p0": 2, "p1": 2, "p2": 2}
    assert kept == [trace for trace in traces if trace in kept]
    mixed = random.Random(0).sample(traces, len(traces))
    again = build(seed=1, max_per_problem=2).limit_per_problem(mixed)
    assert {trace.completion for trace in again} == {trace.completion for trace in kept}
    assert build(seed=2, max_per_problem=2).limit_per_problem(traces) != kept


def test_limit_does_not_prefer_short_or_long_traces():
    lengths = []
    for seed in range(400):
        traces = [replace(TRACE, completion=think("step " * length)) for length in range(1, 10)]
        lengths += [len(trace.completion) for trace in build(seed=seed, max_per_problem=1).limit_per_problem(traces)]
    fair = sum(len(think("step " * length)) for length in range(1, 10)) / 9
    assert sum(lengths) / len(lengths) == pytest.approx(fair, rel=0.05)

"""Scores against closed forms, brute force and simulation."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics import cons_at_k, mean_ci, paired_difference, pass_at_1, pass_at_k, sign_flip_p, summarise

NAN = math.nan


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_pass_at_k_equals_enumeration_of_all_subsets(outcomes, k):
    if k > len(outcomes):
        return
    subsets = list(itertools.combinations(outcomes, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(np.array([outcomes], dtype=float), k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_exact_where_binomials_overflow_a_double():
    correct = np.zeros((1, 4000))
    correct[0, :3] = 1
    expected = 1 - math.comb(3997, 2000) / math.comb(4000, 2000)
    assert pass_at_k(correct, 2000) == pytest.approx(expected, rel=1e-12)


def test_pass_at_1_and_pass_at_k_of_one_agree():
    correct = np.random.default_rng(0).integers(0, 2, size=(30, 7)).astype(float)
    assert pass_at_k(correct, 1) == pytest.approx(pass_at_1(correct).mean)


def test_unscorable_completions_leave_numerator_and_denominator():
    correct = np.array([[1, NAN, NAN, NAN], [0, 0, NAN, 1], [NAN, NAN, NAN, NAN]])
    assert pass_at_1(correct).mean == pytest.approx((1 + 1 / 3) / 2)
    assert pass_at_1(correct).n_problems == 2
    assert pass_at_k(correct, 2) == pytest.approx(2 / 3)  # only the second problem has two


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_a_k_it_cannot_estimate(k):
    with pytest.raises(ValueError, match="pass_at_k"):
        pass_at_k(np.ones((2, 4)), k)


def test_interval_is_seeded_and_contains_the_mean():
    correct = np.random.default_rng(1).integers(0, 2, size=(50, 4)).astype(float)
    first, second, other = (pass_at_1(correct, seed=s) for s in (3, 3, 4))
    assert first == second != other
    assert first.low < first.mean < first.high


def test_interval_of_equal_problems_has_no_width():
    estimate = mean_ci(np.full((12, 3), 0.25))
    assert (estimate.low, estimate.mean, estimate.high) == (0.25, 0.25, 0.25)


def test_interval_resamples_problems_not_completions():
    """All completions of a problem agree: 200 completions of 20 problems know no more than 20 of 20."""
    outcomes = np.repeat([[0.0], [1.0]], 10, axis=0)
    once, often = mean_ci(outcomes), mean_ci(np.repeat(outcomes, 10, axis=1))
    assert often == once


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    runs, hits = 300, 0
    for run in range(runs):
        difficulty = rng.beta(2, 3, size=(60, 1))  # mean 0.4: problems differ, completions of one are correlated
        estimate = mean_ci((rng.random((60, 4)) < difficulty).astype(float), seed=run, resamples=400)
        hits += estimate.low <= 0.4 <= estimate.high
    assert 0.90 < hits / runs < 0.985


def test_interval_matches_a_loop_written_out():
    values = [0.0, 0.5, 1.0, 0.25]
    draws = np.random.default_rng(5).integers(0, 4, size=(200, 4))
    means = sorted(sum(values[i] for i in draw) / 4 for draw in draws.tolist())
    estimate = mean_ci(np.array(values)[:, None], seed=5, resamples=200)
    assert means[3] <= estimate.low <= means[6] and means[193] <= estimate.high <= means[196]


def test_paired_difference_uses_common_problems_and_their_pairing():
    rng = random.Random(0)
    base = {f"p{i}": rng.random() for i in range(40)}
    better = {p: v + 0.1 for p, v in base.items()} | {"only-here": -50.0}
    estimate = paired_difference(better, base)
    assert estimate.n_problems == 40
    # The shift is the same on every problem, so pairing leaves no uncertainty at all.
    assert estimate.low == pytest.approx(0.1) and estimate.high == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no problem"):
        paired_difference({"a": 1.0}, {"b": 1.0})


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_sign_flip_test_equals_enumeration(moved):
    left = {str(number): change / 4 for number, change in enumerate(moved)}
    sums = [abs(sum(s * change for s, change in zip(signs, moved, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(moved))]  # fmt: skip
    exact = sum(total >= abs(sum(moved)) for total in sums) / len(sums)
    assert sign_flip_p(left, dict.fromkeys(left, 0.0)) == pytest.approx(exact, abs=1e-12)


def test_the_sign_flip_test_on_many_problems_is_close_to_the_normal_one_and_never_zero():
    rng = np.random.default_rng(0)
    moved = dict(enumerate(rng.normal(0.1, 1.0, size=400)))
    values = np.array(list(moved.values()))
    z = values.sum() / np.sqrt((values**2).sum())
    assert sign_flip_p(moved, dict.fromkeys(moved, 0.0)) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)
    assert sign_flip_p(dict.fromkeys(range(90), 1.0), dict.fromkeys(range(90), 0.0)) == 1 / 20_001
    with pytest.raises(ValueError, match="share no problem"):
        sign_flip_p({"a": 1.0}, {"b": 1.0})


def test_majority_vote():
    assert cons_at_k([["6", " 6 ", "7"]], [[1, 1, 0]]) == 1.0
    assert cons_at_k([["7", "7", "6"]], [[0, 0, 1]]) == 0.0


def test_ties_are_broken_by_expectation():
    assert cons_at_k([["6", "7"]], [[1, 0]]) == 0.5
    assert cons_at_k([["6", "7", "8"]], [[1, 0, 0]]) == pytest.approx(1 / 3)
    assert cons_at_k([["6", "7"], ["1", "1"]], [[1, 0], [1, 1]]) == 0.75


def test_unparsed_and_unscorable_answers_do_not_vote():
    assert cons_at_k([[None, None, "", "6"]], [[0, 0, 0, 1]]) == 1.0
    assert cons_at_k([["7", "7", "6"]], [[NAN, NAN, 1]]) == 1.0
    assert cons_at_k([[None, None]], [[0, 0]]) == 0.0


def _row(problem, verdict, answer: str | None = "6", **more):
    text = f"<think>hm</think>\n<answer>{answer}</answer>" if answer is not None else "hm"
    base = {"problem_id": problem, "verdict": verdict, "completion": text, "format": answer is not None}
    return base | {"language_consistency": 1.0, "length": 10} | more


def test_summarise_gives_the_row_of_the_table():
    rows = [
        _row("a", "pass"),
        _row("a", "fail", "7", truncated=True),
        _row("a", "pass", length=40),
        _row("a", "error", None, length=9999, language_consistency=0.0),
        *[_row("b", "fail", None, language_consistency=None) for _ in range(4)],
    ]
    row = summarise(rows)
    assert (row["n_problems"], row["k"], row["n_completions"]) == (2, 4, 8)
    assert (row["unscorable"], row["truncated"]) == (1, 1)
    assert row["pass@1"]["mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert row["pass@1"]["low"] <= row["pass@1"]["mean"] <= row["pass@1"]["high"]
    assert row["pass@k"] == {"4": 0.0}  # problem a has three scorable completions only
    assert row["cons@k"] == 0.5
    assert row["language_consistency"]["mean"] == 1.0
    assert row["format_rate"] == pytest.approx(3 / 7)
    assert row["length_mean"] == pytest.approx((10 + 10 + 40 + 4 * 10) / 7)


def test_summarise_prefers_the_answer_the_grader_extracted():
    rows = [_row("a", "pass", None) | {"answer": "6"}, _row("a", "fail", None) | {"answer": None}]
    assert summarise(rows)["cons@k"] == 1.0


def test_summarise_of_nothing_scorable_has_no_scores():
    row = summarise([_row("a", "error"), _row("a", "error")])
    assert row["pass@1"] is None and row["cons@k"] is None and row["pass@k"] == {}
    assert row["unscorable"] == 2
    assert summarise([])["n_problems"] == 0


def test_summarise_does_not_depend_on_the_order_of_the_rows():
    rng = random.Random(3)
    rows = [_row(f"p{i}", rng.choice(["pass", "fail"])) for i in range(20) for _ in range(4)]
    shuffled = rng.sample(rows, len(rows))
    assert summarise(rows) == summarise(shuffled)

"""Scores of a checkpoint with their uncertainty: pass@1, pass@k, cons@k, paired differences and their significance.

Shape suffixes: P problems, K completions per problem. A completion that no grader could judge is NaN in a
[P, K] array; it leaves numerator and denominator. Every problem weighs the same, however many of its
completions were scorable.

Intervals are 95 % percentile bootstraps that resample *problems*, not completions (a cluster bootstrap):
completions of one problem are not independent, and the question is how the score would move on other problems
of the same kind. They say nothing about a second training run with another seed. When all problems have the
same score the interval has no width, and only says that this suite cannot tell.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.chat import parse_completion
from rewards.reward import Verdict

LEVEL = 0.95  # coverage of every interval
RESAMPLES = 2000  # bootstrap draws: the ends of a 95 % interval are then good to about 0.1 of its width
PASS_AT = (4, 16, 64)  # k of pass@k, where that many completions were sampled; K itself is always added


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over problems and the ends of its 95 % interval, in the unit of the values averaged."""

    mean: float
    low: float
    high: float
    n_problems: int

    def as_row(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


def pass_at_1(correct_P_K: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean correctness over completions, then over problems (DeepSeek-R1, D.1: k samples instead of greedy decoding).

    Args:
        correct_P_K: [P, K] of 0, 1 or NaN (unscorable).
    """
    return mean_ci(correct_P_K, seed=seed, resamples=resamples)


def mean_ci(values_P_K: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean over problems of the mean over completions, with its cluster-bootstrap interval.

    Args:
        values_P_K: [P, K] floats, NaN where there is no value. A row of NaN is left out.

    Raises:
        ValueError: when no problem has a value.
    """
    values_P_K = np.asarray(values_P_K, dtype=np.float64)
    if values_P_K.ndim != 2:
        raise ValueError(f"mean_ci: expected [problems, completions], got shape {values_P_K.shape}")
    present_P_K = ~np.isnan(values_P_K)
    counts_P = present_P_K.sum(axis=1)
    sums_P = np.where(present_P_K, values_P_K, 0.0).sum(axis=1)
    kept_P = counts_P > 0
    return _bootstrap(sums_P[kept_P] / counts_P[kept_P], seed, resamples)


def paired_difference(
    left: Mapping[str, float], right: Mapping[str, float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """left - right over the problems both have, resampling problems with their pair kept together.

    Args:
        left, right: problem id -> mean value of that problem.

    Raises:
        ValueError: when the two share no problem.
    """
    common = sorted(left.keys() & right.keys())  # sorted: the result does not depend on the order of the file
    return _bootstrap(np.array([left[p] - right[p] for p in common], dtype=np.float64), seed, resamples)


def sign_flip_p(left: Mapping[str, float], right: Mapping[str, float], *, seed: int = 0, flips: int = 20_000) -> float:
    """Chance of a mean difference at least this large, in either direction, if left and right were alike.

    The paired randomisation test: were they alike, each problem's difference would be as likely with the other sign.
    All 2^P assignments of signs when there are no more than `flips`, else that many at random and the observed one.

    Args:
        left, right: problem id -> mean value of that problem.

    Raises:
        ValueError: when the two share no problem.
    """
    common = sorted(left.keys() & right.keys())
    if not common:
        raise ValueError("sign_flip_p: the two share no problem")
    moved_P = np.array([left[p] - right[p] for p in common], dtype=np.float64)
    moved_P = moved_P[moved_P != 0]  # a difference of nothing has no sign to flip
    observed = abs(moved_P.sum()) * (1 - 1e-12)  # equal sums must not differ by rounding
    if 2 ** min(len(moved_P), 60) <= flips:
        signs = 1 - 2 * ((np.arange(2 ** len(moved_P))[:, None] >> np.arange(len(moved_P))) & 1)
        return float((abs(signs @ moved_P) >= observed).mean())
    rng = np.random.default_rng(seed)
    as_large = 0
    for start in range(0, flips, 1000):
        signs = rng.integers(0, 2, size=(min(1000, flips - start), len(moved_P))) * 2 - 1
        as_large += int((abs(signs @ moved_P) >= observed).sum())
    return (1 + as_large) / (1 + flips)


def _bootstrap(values_P: np.ndarray, seed: int, resamples: int) -> Estimate:
    n = len(values_P)
    if n == 0:
        raise ValueError("bootstrap: no problem has a value; check that the completions could be scored")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, 2_000_000 // n)  # bounds the index array to 16 MB
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        means[start : start + size] = values_P[rng.integers(0, n, size=(size, n))].mean(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean=float(values_P.mean()), low=float(low), high=float(high), n_problems=n)


def pass_at_k(correct_P_K: np.ndarray, k: int) -> float:
    """Chance that at least one of k completions drawn without replacement is correct, averaged over problems.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374, eq. 1) with n scorable
    and c correct completions of a problem. Problems with fewer than k scorable completions are left out.

    Raises:
        ValueError: when k < 1 or no problem has k scorable completions.
    """
    if k < 1:
        raise ValueError(f"pass_at_k: k must be at least 1, got {k}")
    correct_P_K = np.asarray(correct_P_K, dtype=np.float64)
    scorable_P = (~np.isnan(correct_P_K)).sum(axis=1)
    correct_P = np.nansum(correct_P_K, axis=1)
    pairs = zip(scorable_P.tolist(), correct_P.tolist(), strict=True)
    chances = [_pass_at_k(n, round(c), k) for n, c in pairs if n >= k]
    if not chances:
        raise ValueError(f"pass_at_k: no problem has {k} scorable completions")
    return math.fsum(chances) / len(chances)


def _pass_at_k(n: int, c: int, k: int) -> float:
    # As a product of factors in (0, 1): the binomials themselves overflow, and their difference cancels.
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def cons_at_k(answers: Sequence[Sequence[str | None]], correct: Sequence[Sequence[float]]) -> float:
    """Correctness of the majority answer, averaged over problems.

    Answers vote by their text after trimming, folding case and joining white space; nothing is known here about
    which answers are mathematically equal. A completion without a final answer (None or empty) and an unscorable
    one (NaN) do not vote; a problem without votes counts as wrong. A tie is broken by expectation: the mean
    correctness over the tied answers, which is what a fair coin would give on average.

    Args:
        answers: per problem, the final answer of each completion.
        correct: same shape, 0, 1 or NaN.
    """
    if not answers:
        raise ValueError("cons_at_k: no problems")
    return math.fsum(_vote(a, c) for a, c in zip(answers, correct, strict=True)) / len(answers)


def _vote(answers: Sequence[str | None], correct: Sequence[float]) -> float:
    votes: dict[str, list[float]] = defaultdict(list)
    for answer, value in zip(answers, correct, strict=True):
        text = " ".join((answer or "").split()).casefold()
        if text and not math.isnan(value):
            votes[text].append(value)
    if not votes:
        return 0.0
    most = max(len(values) for values in votes.values())
    tied = [sum(values) / len(values) for values in votes.values() if len(values) == most]
    return sum(tied) / len(tied)


def summarise(rows: Iterable[Mapping[str, Any]], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """One row of the score table from completions of one checkpoint.

    Args:
        rows: records with problem_id, verdict, format (bool), language_consistency (float or None), length (tokens),
            completion; and, where known, answer (else read from the answer tags), truncated (bool), utility (float)
            and the counts instructions, instructions_followed and instructions_followed_loosely.

    Returns:
        n_problems, k (most completions of a problem), pass@1, pass@k, cons@k, language_consistency, utility,
        instructions (see `instruction_rates`), format_rate, length_mean (tokens), truncated, unscorable and
        n_completions (counts). Unscorable completions are left out of everything but the last two; what cannot be
        computed is None.
    """
    by_problem: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_problem[row["problem_id"]].append(row)
    problems = [by_problem[name] for name in sorted(by_problem)]
    scorable = [[row for row in problem if row["verdict"] != Verdict.ERROR] for problem in problems]
    counts = Counter(n_completions=sum(map(len, problems)), scorable=sum(map(len, scorable)))
    correct_P_K = _table([[float(row["verdict"] == Verdict.PASS) for row in problem] for problem in scorable])
    k = max(map(len, problems), default=0)
    voted = [problem for problem in scorable if problem]
    return {
        "n_problems": len(problems),
        "k": k,
        "pass@1": _estimate(correct_P_K, seed, resamples),
        "pass@k": _pass_at_each(correct_P_K, k),
        "cons@k": cons_at_k(
            [[_answer(row) for row in problem] for problem in voted],
            [[float(row["verdict"] == Verdict.PASS) for row in problem] for problem in voted],
        )
        if voted
        else None,
        "language_consistency": _estimate(_column(scorable, "language_consistency"), seed, resamples),
        "utility": _estimate(_column(scorable, "utility"), seed, resamples),
        "instructions": instruction_rates(row for problem in scorable for row in problem),
        "format_rate": _mean(_column(scorable, "format")),
        "length_mean": _mean(_column(scorable, "length")),
        "truncated": sum(bool(row.get("truncated")) for problem in problems for row in problem),
        "unscorable": counts["n_completions"] - counts["scorable"],
        "n_completions": counts["n_completions"],
    }


def instruction_rates(rows: Iterable[Mapping[str, Any]]) -> dict[str, float] | None:
    """IFEval's other three accuracies, as shares (pass@1 is its prompt-level strict one); None without instructions.

    At prompt level all instructions of a prompt count as one, at instruction level each counts (Zhou et al. 2023,
    section 3.2); loose takes the best of the response's variants without a first or last line or stars.
    """
    counts = [
        (row["instructions"], row["instructions_followed"], row["instructions_followed_loosely"])
        for row in rows
        if row.get("instructions")
    ]
    if not counts:
        return None
    asked, strict, loose = (sum(column) for column in zip(*counts, strict=True))
    return {
        "prompt_loose": sum(best == all_ for all_, _, best in counts) / len(counts),
        "instruction_strict": strict / asked,
        "instruction_loose": loose / asked,
    }


def problem_means(rows: Iterable[Mapping[str, Any]], quantity: str) -> dict[str, float]:
    """Problem id -> mean of `quantity` over its scorable completions; "pass@1" reads the verdict."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["verdict"] == Verdict.ERROR:
            continue
        value = float(row["verdict"] == Verdict.PASS) if quantity == "pass@1" else _number(row.get(quantity))
        if not math.isnan(value):
            values[row["problem_id"]].append(value)
    return {problem: math.fsum(list_) / len(list_) for problem, list_ in values.items()}


def _answer(row: Mapping[str, Any]) -> str | None:
    return row["answer"] if "answer" in row else parse_completion(row["completion"]).answer


def _pass_at_each(correct_P_K: np.ndarray, k: int) -> dict[str, float]:
    scorable = int((~np.isnan(correct_P_K)).sum(axis=1).max(initial=0))
    return {str(n): pass_at_k(correct_P_K, n) for n in sorted({*PASS_AT, k}) if 1 < n <= scorable}


def _column(problems: Sequence[Sequence[Mapping[str, Any]]], name: str) -> np.ndarray:
    return _table([[_number(row.get(name)) for row in problem] for problem in problems])


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _table(ragged: Sequence[Sequence[float]]) -> np.ndarray:
    """[P, K] float64, shorter rows filled with NaN."""
    table = np.full((len(ragged), max(map(len, ragged), default=0)), np.nan)
    for row, values in zip(table, ragged, strict=True):
        row[: len(values)] = values
    return table


def _estimate(values_P_K: np.ndarray, seed: int, resamples: int) -> dict[str, float] | None:
    if np.isnan(values_P_K).all():
        return None
    return mean_ci(values_P_K, seed=seed, resamples=resamples).as_row()


def _mean(values_P_K: np.ndarray) -> float | None:
    return None if np.isnan(values_P_K).all() else float(np.nanmean(values_P_K))

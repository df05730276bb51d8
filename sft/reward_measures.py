"""How good a reward model is on records it was not trained on. Plain numbers in, plain numbers out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.preferences import PreferencePair, SafetyLabel
from rewards.utility import utility

ECE_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A held-out record and its scores: of chosen and rejected, or of the one response."""

    record: PreferencePair | SafetyLabel
    scores: tuple[float, ...]

    @property
    def margin(self) -> float:
        """By how much it is right; its sigmoid is the probability that the model gives to what people said."""
        if isinstance(self.record, SafetyLabel):
            return self.scores[0] if self.record.safe else -self.scores[0]
        return self.scores[0] - self.scores[1]


def measures(judged: Sequence[Judged]) -> dict[str, Any]:
    """
    accuracy             share of pairs (labels) with a positive margin; ties count half
    loss                 nats, the training loss on them
    ece                  expected calibration error in [0, 1], 10 equal bins of confidence max(p, 1 - p)
    length_correlation   Spearman, of score and length in characters over all responses; in [-1, 1]
    longer_is_chosen     share of pairs whose chosen response is the longer one: accuracy that length alone would have
    truth_correlation    Spearman, of score and true utility, for the tiny chain's own helpful prompts
    """
    margins = np.array([each.margin for each in judged])
    texts = [text for each in judged for text in _texts(each.record)]
    scores = [score for each in judged for score in each.scores]
    found: dict[str, Any] = {
        "accuracy": float(np.mean((margins > 0) + 0.5 * (margins == 0))),
        "loss": float(np.mean(np.logaddexp(0, -margins))),
        "ece": calibration_error(margins),
        "length_correlation": rank_correlation(scores, [len(text) for text in texts]),
    }
    pairs = [each.record for each in judged if isinstance(each.record, PreferencePair)]
    if pairs:
        longer = [len(pair.chosen) > len(pair.rejected) for pair in pairs]
        found["longer_is_chosen"] = sum(longer) / len(longer)
        found |= _truth(judged)
    return found


def calibration_error(margins: np.ndarray) -> float:
    """Expected calibration error of sigmoid(margin), [N] float -> share."""
    p_right = 1 / (1 + np.exp(-np.clip(margins, -60, 60)))
    confidence, right = np.maximum(p_right, 1 - p_right), margins > 0
    bins = np.minimum((confidence - 0.5) * 2 * ECE_BINS, ECE_BINS - 1).astype(int)
    gaps = [
        abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
        for b in range(ECE_BINS)
        if (bins == b).any()
    ]
    return float(sum(gaps))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, with mean ranks for ties; None where one of them does not vary."""
    a, b = _ranks(first), _ranks(second)
    if len(a) < 2 or np.std(a) == 0 or np.std(b) == 0:
        return None
    correlation = float(np.corrcoef(a, b)[0, 1])
    return None if math.isnan(correlation) else correlation


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def _truth(judged: Sequence[Judged]) -> dict[str, float | None]:
    known = [
        (score, utility(problem, text))
        for each in judged
        if (problem := each.record.problem) is not None and problem.checker == "instruction"
        for score, text in zip(each.scores, _texts(each.record), strict=True)
    ]
    if not known:
        return {}
    scores, truths = zip(*known, strict=True)
    return {"truth_correlation": rank_correlation(scores, truths)}


def _texts(record: PreferencePair | SafetyLabel) -> tuple[str, ...]:
    return (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.response,)

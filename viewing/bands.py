"""Expected curves: what finished runs of the same recipe logged, as a band that another run should stay in.

The band of a quantity is a prediction interval for one more run, at each point of the smoothed curve:

    mean +- t * s * sqrt(1 + 1 / n)

n: runs; mean: over them; s: their standard deviation, pooled over the points of a quarter of the curve around each,
since that of a few runs at one point is hardly known. t: quantile of Student's t at the risk, two-sided, for 2 (n - 1)
degrees of freedom: a run deviates alike along a quarter of a curve, so pooling is worth less than its points.
A run has left the band when LEAVE points in a row of its smoothed curve lie outside on the same side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

LEAVE = 3  # points in a row
SMOOTHED_SHARE = 0.05  # of the points of a curve: the trailing window of the mean
RISK = 0.005  # two-sided, of one point; see docs/viewing.md for what it comes to over a run
LEAST_RUNS = 2
LEAST_POINTS = 8
QUANTITIES = (  # those that a stage has get a band
    "reward/mean", "reward/pass_rate", "rollout/length_mean", "policy/entropy", "experience/no_signal",
    "loss/nll", "loss/kl", "loss/preference", "preference/accuracy",
)  # fmt: skip

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values


@dataclass(frozen=True, slots=True)
class Band:
    """[P] per field: points of the smoothed curve."""

    steps: list[float]
    low: list[float]
    high: list[float]
    window: int  # of the trailing mean, points


@dataclass(frozen=True, slots=True)
class Departure:
    """A quantity has left its band."""

    quantity: str
    step: int  # of the first point outside
    value: float  # smoothed, of the last of the LEAVE points
    low: float
    high: float

    def __str__(self) -> str:
        side = "above" if self.value > self.high else "below"
        return (
            f"{self.quantity} is {self.value:.4g} from step {self.step} on, {side} the "
            f"{self.low:.4g} to {self.high:.4g} that is expected there"
        )


def make_band(curves: Sequence[Curve]) -> Band | None:
    """Band of one quantity from the curves of several runs; None for fewer than LEAST_RUNS or LEAST_POINTS."""
    common = sorted(set.intersection(*(set(steps) for steps, _ in curves))) if curves else []
    if len(curves) < LEAST_RUNS or len(common) < LEAST_POINTS:
        return None
    window = max(1, round(SMOOTHED_SHARE * len(common)))
    by_run = [
        trailing_mean([at[step] for step in common], window) for at in (dict(zip(*c, strict=True)) for c in curves)
    ]
    means = [fmean(values) for values in zip(*by_run, strict=True)]
    variances = [variance(values) for values in zip(*by_run, strict=True)]
    reach = max(1, len(common) // 8)  # to both sides: a quarter of the curve
    factor = student_quantile(1 - RISK / 2, 2 * (len(curves) - 1)) * math.sqrt(1 + 1 / len(curves))
    half = [factor * math.sqrt(fmean(variances[max(0, i - reach) : i + reach + 1])) for i in range(len(common))]
    least = 0.0 if min(map(min, by_run)) >= 0 else -math.inf  # what has never been negative is a share, loss or length
    low = [max(least, m - h) for m, h in zip(means, half, strict=True)]
    return Band(common, low, [m + h for m, h in zip(means, half, strict=True)], window)


def departure(quantity: str, band: Band, curve: Curve) -> Departure | None:
    """Where a run first left the band, None while it has not. Steps that the band lacks are passed over."""
    at = dict(zip(*curve, strict=True))
    shared = [i for i, step in enumerate(band.steps) if step in at]
    smoothed = trailing_mean([at[band.steps[i]] for i in shared], band.window)
    outside, side = 0, 0
    for place, (i, value) in enumerate(zip(shared, smoothed, strict=True)):
        now = (value > band.high[i]) - (value < band.low[i])
        outside = (outside + 1 if now == side else 1) if now else 0
        side = now
        if outside == LEAVE:
            first = band.steps[shared[place - LEAVE + 1]]
            return Departure(quantity, int(first), value, band.low[i], band.high[i])
    return None


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and the window - 1 before it; of fewer at the start."""
    return [fmean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


def student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t, for shares over 0.5 and an even number of degrees of freedom.

    The distribution function is then a finite sum (Abramowitz and Stegun, 26.7.4); it is inverted by halving.
    """
    low, high = 0.0, 1e6
    while high - low > 1e-9 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, freedom) < share else (low, middle)
    return high


def _student_share(t: float, freedom: int) -> float:
    angle = math.atan(t / math.sqrt(freedom))
    term, total = 1.0, 1.0
    for k in range(1, freedom // 2):
        term *= (2 * k - 1) / (2 * k) * math.cos(angle) ** 2
        total += term
    return 0.5 + 0.5 * math.sin(angle) * total

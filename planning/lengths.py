"""Lengths of completions: a lognormal that the longest allowed length cuts off."""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_QUANTILES = 64  # steps of the numeric integrals below


@dataclass(frozen=True, slots=True)
class Lengths:
    """min(X, longest) tokens with log X normal, such that the mean is `mean`. sigma 0: all are `mean` long."""

    mean: float
    longest: float
    sigma: float

    def quantile(self, share: float) -> float:
        """Length that `share` of the completions do not exceed; share in (0, 1)."""
        if not self.sigma or self.mean >= self.longest:
            return min(self.mean, self.longest)
        return min(self.longest, math.exp(_location(self.mean, self.longest, self.sigma) + self.sigma * _z(share)))

    def sample(self) -> list[float]:
        """The `_QUANTILES` quantiles that stand for a batch, in rising order; their mean is close to `mean`."""
        return [self.quantile((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)]

    def longest_of(self, count: float) -> float:
        """Median of the longest of `count` completions."""
        return self.quantile(0.5 ** (1 / max(count, 1)))

    @property
    def truncated(self) -> float:
        """Share that reaches the longest allowed length."""
        if not self.sigma or self.mean >= self.longest:
            return float(self.mean >= self.longest)
        z = (math.log(self.longest) - _location(self.mean, self.longest, self.sigma)) / self.sigma
        return 1 - _NORMAL.cdf(z)

    @property
    def mean_square(self) -> float:
        """Mean of the squared length: what attention over whole sequences costs."""
        lengths = self.sample()
        return math.fsum(length * length for length in lengths) / len(lengths)


def cut_mean(location: float, longest: float, sigma: float) -> float:
    """E[min(X, longest)] for log X normal (location, sigma)."""
    z = (math.log(longest) - location) / sigma
    below = math.exp(location + sigma * sigma / 2) * _NORMAL.cdf(z - sigma)
    return below + longest * (1 - _NORMAL.cdf(z))


@lru_cache(maxsize=4096)
def _z(share: float) -> float:
    return _NORMAL.inv_cdf(share)


@lru_cache(maxsize=4096)
def _location(mean: float, longest: float, sigma: float) -> float:
    low, high = math.log(mean) - sigma * sigma, math.log(longest) + 8 * sigma
    for _ in range(60):  # bisection: cut_mean rises with the location
        middle = (low + high) / 2
        low, high = (middle, high) if cut_mean(middle, longest, sigma) < mean else (low, middle)
    return (low + high) / 2

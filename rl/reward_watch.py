"""The watch for reward hacking: a learned reward that rises while what it stands for falls (DeepSeek-R1, Fig. 6).

Every so often the policy answers the same held-out problems, and the reward model is compared with judges that the
policy is not trained against: verifiable accuracy on reasoning problems, the length of general answers, and a second
judge of general answers. Differences to the first check are paired by problem. They have parted when the learned reward
is above its first value and another judge below its own, both by more than chance explains; or when answers have grown
by `length_factor` under a rising reward.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

import numpy as np

JUDGES = ("reward", "accuracy", "second", "length")
LEAST = 8  # problems that two checks must have in common, or their difference has no usable error

_NAMES = {"accuracy": "held-out accuracy", "second": "the second judge"}


@dataclass(slots=True)
class Check:
    """What one look at the policy found: judge -> problem -> value. Lengths are tokens."""

    values: dict[str, dict[str, float]] = field(default_factory=lambda: {judge: {} for judge in JUDGES})
    unscorable: Counter[str] = field(default_factory=Counter)  # judge -> answers that it could not judge

    def note(self, judge: str, problem: str, value: float | None) -> None:
        """An unscorable answer (None) is counted and left out."""
        if value is None:
            self.unscorable[judge] += 1
        else:
            self.values[judge][problem] = value


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A check against the first one."""

    metrics: dict[str, float]  # watch/reward, watch/accuracy, ..., watch/parted, watch/unscorable
    alert: str  # one sentence; empty while all is well
    blind: str = ""  # one sentence on a judge whose answers are too few to compare; empty while all can be


class RewardWatch:
    """Remembers what each judge said when it first said enough.

    comparisons: how many checks of the run are compared with the first.
    risk: of at least one false alert in a run whose judges stand still, in [0, 1]. Each comparison of each of the two
        judges gets an equal part of it (Bonferroni), on the side of a fall.
    """

    def __init__(self, comparisons: int, risk: float, length_factor: float):
        self.errors = NormalDist().inv_cdf(1 - risk / (2 * max(1, comparisons)))
        self.length_factor = length_factor
        self.first: dict[str, dict[str, float]] = {}

    def compare(self, check: Check) -> Comparison:
        for judge, values in check.values.items():
            if len(values) >= LEAST:
                self.first.setdefault(judge, values)
        rise = self._difference("reward", check)
        reasons = []
        for judge in ("accuracy", "second"):
            fall = self._difference(judge, check)
            if _is_beyond(rise, self.errors) and _is_beyond(fall, -self.errors):
                reasons.append(f"{_NAMES[judge]} {self._went(judge, check)}")
        if _is_beyond(rise, self.errors) and _mean(check.values["length"]) > self._allowed_length():
            reasons.append(f"the length of general answers {self._went('length', check, '.0f')} tokens")
        found = {f"watch/{judge}": _mean(values) for judge, values in check.values.items() if values}
        metrics = {**found, "watch/parted": float(bool(reasons)), "watch/unscorable": check.unscorable.total()}
        went = f"the learned reward {self._went('reward', check)}" if reasons else ""
        alert = f"{went}, and {' and '.join(reasons)}: it is being hacked" if reasons else ""
        return Comparison(metrics=metrics, alert=alert, blind=_blind(check))

    def _difference(self, judge: str, check: Check) -> tuple[float, float] | None:
        return paired_difference(self.first.get(judge, {}), check.values[judge])

    def _allowed_length(self) -> float:
        return self.length_factor * _mean(self.first.get("length", {}))

    def _went(self, judge: str, check: Check, form: str = ".3f") -> str:
        """From and to, over the problems of both checks."""
        first, now = self.first[judge], check.values[judge]
        common = first.keys() & now.keys()
        before, after = (_mean({p: values[p] for p in common}) for values in (first, now))
        return f"went from {before:{form}} to {after:{form}}"

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(self.first), encoding="utf-8")

    def load(self, file: Path) -> None:
        """A file that is not there leaves nothing known."""
        self.first = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _blind(check: Check) -> str:
    few = [
        f"{judge} ({len(check.values[judge])} judged, {count} unscorable)"
        for judge, count in check.unscorable.items()
        if len(check.values[judge]) < LEAST
    ]
    return f"the watch cannot compare {', '.join(few)}" if few else ""


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values) if values else math.nan


def paired_difference(before: Mapping[str, float], now: Mapping[str, float]) -> tuple[float, float] | None:
    """(mean, its standard error) of now - before over the problems common to both; None for fewer than LEAST."""
    common = sorted(before.keys() & now.keys())
    if len(common) < LEAST:
        return None
    differences = np.array([now[problem] - before[problem] for problem in common])
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(common)))


def _is_beyond(difference: tuple[float, float] | None, errors: float) -> bool:
    """Whether a difference lies so many standard errors above zero, or with negative `errors` below it."""
    if difference is None:
        return False
    mean, error = difference
    return mean > errors * error and mean > 0 if errors > 0 else mean < errors * error and mean < 0

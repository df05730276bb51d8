"""Repetition: the share of n-grams that occurred before, as a measure and as a reward."""

import re

from pydantic import BaseModel, Field

from data.problems import Problem
from rewards.reward import Score

_UNITS = re.compile(r"[㐀-䶿一-鿿ぁ-ゖァ-ヺ]|[^\W_㐀-䶿一-鿿ぁ-ゖァ-ヺ]+")


def units_of(text: str) -> list[str]:
    """Words (letters and digits, lower case) and single Chinese or Japanese characters."""
    return [unit.lower() for unit in _UNITS.findall(text)]


def repetition_ratio(text: str, n: int = 4) -> float:
    """1 - distinct n-grams / n-grams of `units_of(text)`, in [0, 1); 0 for texts of fewer than n units."""
    if n < 1:
        raise ValueError(f"repetition_ratio needs n >= 1, got {n}.")
    units = units_of(text)
    total = len(units) - n + 1
    if total < 1:
        return 0.0
    distinct = {tuple(units[start : start + n]) for start in range(total)}
    return 1 - len(distinct) / total


class RepetitionOptions(BaseModel, extra="forbid", frozen=True):
    """Options of the repetition reward."""

    n: int = Field(default=4, ge=1, description="Words per n-gram; short ones repeat in any honest text.")
    free: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of repeated n-grams that costs nothing; worked steps repeat phrases.",
    )


class Repetition:
    """1 for text without much repetition, falling to 0 as all n-grams are repeats. Empty text earns nothing."""

    name = "repetition"
    judges = frozenset({"text"})
    Options = RepetitionOptions

    def __init__(self, options: RepetitionOptions | None = None):
        self.options = options or RepetitionOptions()

    def __call__(self, problem: Problem, completion: str) -> Score:
        if not units_of(completion):
            return Score.failed(detail="no words")
        ratio = repetition_ratio(completion, self.options.n)
        value = min(1.0, (1 - ratio) / (1 - self.options.free))
        detail = f"{ratio:.0%} of the {self.options.n}-grams are repeats"
        return Score.passed(1.0, detail) if value == 1 else Score.failed(value, detail)

"""A reward that a model of random weights can learn within a few steps. Imported by path in the reward worker."""

from data.problems import Problem
from rewards.reward import Score


class Digits:
    """The share of characters that are digits."""

    name = "digits"

    def __call__(self, problem: Problem, completion: str) -> Score:
        share = sum(c in "0123456789" for c in completion) / max(1, len(completion))
        return Score.passed(share) if share > 0.5 else Score.failed(share)


class Broken:
    """Fails on every completion."""

    name = "broken"

    def __call__(self, problem: Problem, completion: str) -> Score:
        raise RuntimeError("the grader is out of order")

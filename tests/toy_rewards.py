"""A reward that a model of random weights can learn within a few steps. Imported by path in the reward worker."""

import asyncio

from data.problems import Problem
from rewards.reward import Score


class Digits:
    """The share of characters that are digits."""

    name = "digits"

    def __call__(self, problem: Problem, completion: str) -> Score:
        share = sum(c in "0123456789" for c in completion) / max(1, len(completion))
        return Score.passed(share) if share > 0.5 else Score.failed(share)


class DigitsOfSome(Digits):
    """No signal, or no score (`fails`), for every other problem."""

    name = "digits_of_some"

    def __init__(self, *, fails: bool = False):
        self.fails = fails

    def __call__(self, problem: Problem, completion: str) -> Score:
        if sum(map(ord, problem.question)) % 2:
            return super().__call__(problem, completion)
        return Score.error("no opinion on this one") if self.fails else Score.failed()


class Broken:
    """Fails on every completion."""

    name = "broken"

    def __call__(self, problem: Problem, completion: str) -> Score:
        raise RuntimeError("the grader is out of order")


class Unreachable:
    """Asks a judge that is away."""

    name = "unreachable"

    def __call__(self, problem: Problem, completion: str) -> Score:
        raise ConnectionRefusedError("the judge is away")


def says(problem: Problem, completion: str, *, word: str, times: int = 1) -> Score:
    """Whether the completion has the word."""
    return Score.passed() if completion.count(word) >= times else Score.failed()


async def slow_length(problem: Problem, completion: str) -> float:
    """Awaits as a remote judge would."""
    await asyncio.sleep(0)
    return min(1.0, len(completion) / 10)


class AsyncBatch:
    """A batch reward whose batches are awaited."""

    name = "async_batch"

    def __init__(self, *, bonus: float = 0.0):
        self.bonus = bonus

    async def score_batch(self, problems, completions) -> list[float]:
        await asyncio.sleep(0)
        return [self.bonus for _ in completions]

"""What a reward is: (problem, completion) -> Score. A failed grader is an error, never a number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from data.problems import Problem


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"  # unscorable: the grader failed, not the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The judgement of one completion. `value` is None exactly when `verdict` is ERROR."""

    verdict: Verdict
    value: float | None
    parts: dict[str, float] = field(default_factory=dict)  # named terms before weighting, each in [0, 1]
    detail: str = ""  # one sentence for people: what was extracted, why it failed
    timed_out: bool = False  # the grader, or the program it ran, was stopped at its time limit
    retry: bool = False  # it may be scored another time: a service or a process failed, not the reward or its problem
    unreadable: bool = False  # the completion lacks what the reward reads; a stage in which all do must not go on

    def __post_init__(self) -> None:
        if (self.value is None) != (self.verdict is Verdict.ERROR):
            raise ValueError(f"Score: value is None exactly when verdict is error, got {self.value}, {self.verdict}")

    @classmethod
    def passed(cls, value: float = 1.0, detail: str = "") -> "Score":
        return cls(verdict=Verdict.PASS, value=value, detail=detail)

    @classmethod
    def failed(cls, value: float = 0.0, detail: str = "", timed_out: bool = False) -> "Score":
        return cls(verdict=Verdict.FAIL, value=value, detail=detail, timed_out=timed_out)

    @classmethod
    def error(cls, detail: str, timed_out: bool = False, retry: bool | None = None) -> "Score":
        """`retry` None: only what a time limit ended."""
        again = timed_out if retry is None else retry
        return cls(verdict=Verdict.ERROR, value=None, detail=detail, timed_out=timed_out, retry=again)


class Reward(Protocol):
    """A callable with a name. Stateless, or safe to share between the problems of one worker."""

    name: str

    def __call__(self, problem: Problem, completion: str) -> Score: ...


class BatchReward(Reward, Protocol):
    """Rewards that gain from batches (process pools, models) also take many pairs at once."""

    def score_batch(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]: ...

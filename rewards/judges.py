"""Who answers a judging prompt: a protocol, so that rewards need not know where the judge runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.actors import wait
from data.preferences import Turns


class JudgeFailed(Exception):
    """The judge gave no answer. What it was to judge is unscorable: not the answer failed, but who judges it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge wrote."""

    text: str = ""
    truncated: bool = False  # the length limit ended it
    fault: str = ""  # why there is no text: what a server said


class Judge(Protocol):
    """Answers conversations, deterministically in (weights, prompts, seed) where it can be."""

    def answers(self, prompts: Sequence[Turns], seed: int) -> list[Answer | None]:
        """One answer per prompt, in order; None for a prompt that it has no room for. Raises JudgeFailed."""
        ...


class RemoteJudge:
    """A judge in an actor, by its handle (see `rollouts.judge`)."""

    def __init__(self, handle: Any, deadline_s: float):
        self._handle, self._deadline_s = handle, deadline_s

    def answers(self, prompts: Sequence[Turns], seed: int) -> list[Answer | None]:
        try:
            found = wait(self._handle.answers.remote(list(prompts), seed), phase="judging", deadline_s=self._deadline_s)
        except Exception as error:
            raise JudgeFailed(f"the judge gave no answer: {type(error).__name__}: {error}") from error
        return [None if answer is None else Answer(*answer) for answer in found]


def seed_of(*parts: str) -> int:
    """A seed that is a function of texts alone, so that the same judgement comes again when a stage is resumed."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big")

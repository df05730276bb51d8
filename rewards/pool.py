"""Reward workers behind one queue: groups are scored while others are still being sampled, and none is lost.

A worker that dies is started again and scores its batches again. A batch that kills its worker twice, or is not
answered in time, gets error scores: what cannot be judged is left out of training and counted, never scored 0.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.actors import ActorDied, first_ready, kill, spawn, wait
from cluster.stalls import report_stall
from data.problems import Problem
from rewards.config import RewardSpec, RewardWorkersConfig
from rewards.reward import Score
from rewards.workers import RewardWorker

logger = logging.getLogger(__name__)
_ATTEMPTS = 2  # of a batch whose worker dies
_MAX_RESTARTS = 5  # in a row, without one answer: then the reward cannot even start


@dataclass(slots=True)
class _Batch:
    key: str
    problem: Problem
    completions: Sequence[str]
    progress: float
    attempts: int = 0


class RewardPool:
    """RewardWorker actors. Not for several threads."""

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        config: RewardWorkersConfig | None = None,
        inputs: Mapping[str, Any] | None = None,
        role: str = "reward",
    ):
        """`inputs`: what the stage hands to its rewards, by role (see `rewards.combine.build_reward`). `role`: of the
        bundles that a stage may have reserved; "" for workers beyond them."""
        self.specs, self.config, self.inputs, self.role = specs, config or RewardWorkersConfig(), inputs, role
        self.closed = False
        self.restarts = 0  # workers started again, since the start of the pool
        self._workers = [self._start() for _ in range(self.config.workers)]
        self._queues: list[deque[tuple[Any, _Batch]]] = [deque() for _ in self._workers]  # oldest first, as answered
        self._since = [0.0] * len(self._workers)  # when a worker with a queue was last heard of, monotonic seconds
        self._silent_restarts = 0
        self._done: dict[str, list[Score]] = {}
        self._counts: dict[str, Counter[str]] = {}  # by reward

    def submit(self, key: str, problem: Problem, completions: Sequence[str], progress: float = 1.0) -> None:
        """Score completions of one problem; the scores come under `key`, unique among what is not collected yet.

        Waits while all queues are full: sampling then waits for scoring. `progress`: share of the stage's steps taken.
        """
        while sum(map(len, self._queues)) >= self.config.workers * self.config.max_pending:
            self._wait_for_one()
        shortest = min(range(len(self._queues)), key=lambda index: len(self._queues[index]))
        self._send(shortest, _Batch(key, problem, completions, progress))

    def take_finished(self) -> dict[str, list[Score]]:
        """What has been scored since the last call, by key. Does not wait."""
        while any(self._queues) and self._wait_for_one(timeout_s=0):
            pass
        finished, self._done = self._done, {}
        return finished

    def collect(self) -> dict[str, list[Score]]:
        """Wait for everything that was submitted; what has been scored since the last call, by key."""
        while any(self._queues):
            self._wait_for_one()
        finished, self._done = self._done, {}
        return finished

    def take_counts(self) -> dict[str, Counter[str]]:
        """Judgements since the last call: reward name -> how many pass, fail, error, hit a time limit (timeout), and
        could not be read (unreadable)."""
        taken = self._counts
        self._counts = {name: Counter(dict.fromkeys(counts, 0)) for name, counts in taken.items()}
        return taken

    @property
    def counted(self) -> list[str]:
        """Names of the rewards that have judged anything."""
        return list(self._counts)

    def expect(self, names: Iterable[str]) -> None:
        """Count these from 0 on, as those are that have judged: a resumed stage may have nothing left to judge."""
        for name in names:
            self._counts.setdefault(name, Counter())

    def close(self) -> None:
        """End all workers, with the processes of their graders. A thread that waits for them gets ActorDied."""
        self.closed = True
        for worker in self._workers:
            kill(worker)

    def _start(self) -> Any:
        return spawn(RewardWorker, self.specs, self.inputs, role=self.role)

    def _send(self, index: int, batch: _Batch) -> None:
        if not self._queues[index]:
            self._since[index] = time.monotonic()
        problems = [batch.problem] * len(batch.completions)
        ref = self._workers[index].score_and_count.remote(problems, batch.completions, batch.progress)
        self._queues[index].append((ref, batch))

    def _wait_for_one(self, timeout_s: float | None = None) -> bool:
        """Wait for one answer, or for the deadline of the worker that was heard of longest ago. Was there any news?"""
        first = {queue[0][0]: index for index, queue in enumerate(self._queues) if queue}
        oldest = min(first.values(), key=lambda index: self._since[index])
        left = max(0.0, self._since[oldest] + self.config.deadline_s - time.monotonic())
        ready, _ = first_ready(list(first), left if timeout_s is None else min(left, timeout_s))
        if not ready:
            late = time.monotonic() >= self._since[oldest] + self.config.deadline_s
            if late:
                self._replace(oldest, f"no answer within {self.config.deadline_s:g} s", give_up=True)
            return late
        index = first[ready[0]]
        try:
            scores, counts = wait(ready[0], phase="scoring", deadline_s=self.config.deadline_s)
        except ActorDied as error:
            self._replace(index, str(error))
            return True
        _, batch = self._queues[index].popleft()
        self._done[batch.key] = scores
        for name, verdicts in counts.items():
            self._counts.setdefault(name, Counter()).update(verdicts)
        self._since[index], self._silent_restarts = time.monotonic(), 0
        return True

    def _replace(self, index: int, reason: str, give_up: bool = False) -> None:
        """Start a worker again and hand it its queue; the batch it was at is given up when that is the second time."""
        if self.closed:
            raise ActorDied("the reward workers were stopped")
        self.restarts += 1
        self._silent_restarts += 1
        if self._silent_restarts >= _MAX_RESTARTS:
            raise ActorDied(f"reward workers died {_MAX_RESTARTS} times in a row without scoring anything: {reason}")
        late = report_stall([self._queues[index][0][0]], "scoring", self.config.deadline_s) if give_up else ""
        logger.warning("a reward worker is started again (%s)%s", reason, late)
        kill(self._workers[index])
        self._workers[index] = self._start()
        batches, self._queues[index] = [batch for _, batch in self._queues[index]], deque()
        batches[0].attempts += 1
        if give_up or batches[0].attempts == _ATTEMPTS:
            given_up = batches.pop(0)
            score = Score.error(f"The reward worker failed: {reason}.", timed_out=give_up, retry=True)
            self._done[given_up.key] = [score] * len(given_up.completions)
        for batch in batches:
            self._send(index, batch)

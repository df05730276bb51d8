"""Discrete events of asynchronous RL: generators begin completions, a trainer takes them batch by batch.

The schedule is the unbiased one: rollout batch k is made of the completions begun k-th, and the trainer waits for all
of them, so that long ones are not left behind. Generators go on meanwhile, at most `staleness` rollout batches ahead of
the weights they have: completion i may begin once i < (synced batches + staleness + 1) * batch. At 0 the phases take
turns. A weight sync stops all generators; running completions continue with the new weights.

Time is in seconds. Lengths depend on the seed and on the completion's number alone, so that schedules can be compared.
"""

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

from planning.lengths import Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    replicas: int
    slots: int  # completions at a time, per replica
    token_s: float  # per token of a running completion
    lengths: Lengths
    batch: int  # completions of a rollout batch
    train_s: float  # of a rollout batch: logprobs and all its optimizer steps
    sync_s: float
    staleness: int
    batches: int  # simulated
    replica_failures: float = 0.0  # per second and replica
    trainer_failures: float = 0.0  # per second
    restart_s: float = 0.0  # until a replica or the trainer is back
    checkpoint_every: int = 1  # rollout batches; those since the last one are trained again after a failure
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    ends: list[float] = field(default_factory=list)  # when each rollout batch was trained and synced
    begun: int = 0  # completions, each once however often it was lost
    finished: int = 0
    trained: int = 0
    lost: int = 0  # attempts that a failure cut off
    running: int = 0  # at the end
    waiting: int = 0  # to be begun again, at the end
    failures: int = 0
    staleness: float = 0.0  # mean over trained completions, in rollout batches
    tokens: float = 0.0  # trained

    @property
    def batch_s(self) -> float:
        """Seconds per rollout batch, the first fifth left out: there the pipeline fills."""
        first = len(self.ends) // 5
        return (self.ends[-1] - self.ends[first]) / max(1, len(self.ends) - 1 - first)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / len(self.ends) / self.batch_s


def simulate(schedule: Schedule) -> Outcome:
    """Run until `batches` rollout batches are trained."""
    return _Run(schedule).until_done()


_READY, _TRAINER, _REPLICA, _BACK = range(4)  # kinds of events on the clock; completions have a heap of their own


class _Run:
    def __init__(self, schedule: Schedule):
        self.schedule, self.outcome = schedule, Outcome()
        self.now = self.stopped = 0.0  # the clock, and how much of it generators have spent in syncs
        self.ends: list[tuple[float, int, int, int]] = []  # (time without syncs, completion, replica, its life)
        self.events: list[tuple[float, int, int, int]] = []  # (time, order, kind, replica or life)
        self.lives = [0] * schedule.replicas  # a failure ends one; events of earlier lives are void
        self.at: list[set[int]] = [set() for _ in range(schedule.replicas)]
        self.free = deque(r for _ in range(schedule.slots) for r in range(schedule.replicas))
        self.again: list[int] = []  # completions that were lost, lowest number first
        self.versions: dict[int, int] = {}  # synced batches when each completion was begun
        self.left: dict[int, int] = {}  # rollout batch -> completions of it that have not ended
        self.synced = self.since_checkpoint = 0
        self.training = False
        self.life = 0  # of the trainer
        self.drawing, self.drawn = random.Random(schedule.seed), list[float]()  # lengths by number
        self.failing = random.Random(schedule.seed + 1)
        self._order = 0
        for replica in range(schedule.replicas):
            self._fail_later(_REPLICA, replica, schedule.replica_failures)
        self._fail_later(_TRAINER, 0, schedule.trainer_failures)

    def until_done(self) -> Outcome:
        self._begin()
        while len(self.outcome.ends) < self.schedule.batches:
            clock = self.events[0][0] if self.events else float("inf")
            ended = self.ends[0][0] + self.stopped if self.ends else float("inf")
            if ended <= clock:
                self.now = max(self.now, ended)
                self._end(*heapq.heappop(self.ends)[1:])
            else:
                time, _, kind, which = heapq.heappop(self.events)
                self.now = max(self.now, time)  # what would happen in the midst of a sync waits for its end
                self._happens(kind, which)
        found = self.outcome
        found.running, found.waiting = sum(map(len, self.at)), len(self.again)
        found.staleness /= max(found.trained, 1)
        return found

    # --- generators ---

    def _begin(self) -> None:
        """Fill free slots, with lost completions first, as far ahead as staleness allows."""
        allowed = (self.synced + self.schedule.staleness + 1) * self.schedule.batch
        while self.free and (self.again or self.outcome.begun < allowed):
            replica = self.free.popleft()
            if self.again:
                completion = heapq.heappop(self.again)
            else:
                completion = self.outcome.begun
                self.outcome.begun += 1
                self.versions[completion] = self.synced
            self.at[replica].add(completion)
            seconds = self.schedule.token_s * self._length(completion)
            heapq.heappush(self.ends, (self.now - self.stopped + seconds, completion, replica, self.lives[replica]))

    def _length(self, completion: int) -> float:
        while len(self.drawn) <= completion:
            share = min(max(self.drawing.random(), 1e-9), 1 - 1e-9)
            self.drawn.append(self.schedule.lengths.quantile(share))
        return self.drawn[completion]

    def _end(self, completion: int, replica: int, life: int) -> None:
        if life != self.lives[replica]:
            return
        self.at[replica].discard(completion)
        self.free.append(replica)
        self.outcome.finished += 1
        batch = completion // self.schedule.batch
        self.left[batch] = self.left.get(batch, self.schedule.batch) - 1
        self._begin()
        self._train()

    def _replica_fails(self, replica: int) -> None:
        self.outcome.failures += 1
        self.outcome.lost += len(self.at[replica])
        for completion in self.at[replica]:
            heapq.heappush(self.again, completion)
        self.at[replica].clear()
        self.lives[replica] += 1
        self.free = deque(r for r in self.free if r != replica)
        self._later(self.schedule.restart_s, _BACK, replica)
        self._begin()  # others take what was lost

    def _replica_is_back(self, replica: int) -> None:
        self.free.extend([replica] * self.schedule.slots)
        self._fail_later(_REPLICA, replica, self.schedule.replica_failures)
        self._begin()

    # --- the trainer ---

    def _train(self) -> None:
        if not self.training and self.left.get(self.synced) == 0:
            self.training = True
            self._later(self.schedule.train_s, _READY, self.life)

    def _trained(self) -> None:
        """A rollout batch is trained: sync, and on."""
        batch, size = self.synced, self.schedule.batch
        for completion in range(batch * size, (batch + 1) * size):
            self.outcome.staleness += batch - self.versions.pop(completion)
            self.outcome.tokens += self._length(completion)
        del self.left[batch]
        self.outcome.trained += size
        self.now += self.schedule.sync_s
        self.stopped += self.schedule.sync_s
        self.synced += 1
        self.since_checkpoint = (self.since_checkpoint + 1) % self.schedule.checkpoint_every
        self.outcome.ends.append(self.now)
        self.training = False
        self._begin()
        self._train()

    def _trainer_fails(self) -> None:
        """The batch at hand and those since the last checkpoint are trained again, after the restart."""
        self.outcome.failures += 1
        self.life += 1
        again = self.schedule.restart_s + self.since_checkpoint * self.schedule.train_s
        self._later(again, _BACK, -1)
        self.training = True  # busy until then

    def _trainer_is_back(self) -> None:
        self.training = False
        self._fail_later(_TRAINER, 0, self.schedule.trainer_failures)
        self._train()

    # --- the clock ---

    def _happens(self, kind: int, which: int) -> None:
        if kind == _READY:
            if which == self.life:
                self._trained()
        elif kind == _REPLICA:
            self._replica_fails(which)
        elif kind == _TRAINER:
            self._trainer_fails()
        elif which < 0:
            self._trainer_is_back()
        else:
            self._replica_is_back(which)

    def _later(self, seconds: float, kind: int, which: int) -> None:
        self._order += 1
        heapq.heappush(self.events, (self.now + seconds, self._order, kind, which))

    def _fail_later(self, kind: int, which: int, rate: float) -> None:
        if rate:
            self._later(self.failing.expovariate(rate), kind, which)

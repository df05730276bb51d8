"""Rollout batches in their order, sampled and scored: while the one before is trained on, with `max_staleness`.

Sampling ahead changes what is known, not what is asked: batches are trained on in the order of their problems, each
when its last completion has ended. So no completion gains by being short. A call to the generators lasts until the
next batch is whole; meanwhile the batches after it are begun in slots that are free. What of them is not done by then
goes on in the next call, with the weights of that time (DeepSeek-V3.2 and Kimi k1.5, arXiv:2501.12599, section 2.6.2,
call these partial rollouts). Which token is sampled with which weights depends on the lengths of completions alone,
never on the clock: such a run can be repeated, too.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.problem_pool import ProblemPool
from data.problems import Problem
from rewards.pool import RewardPool
from rewards.reward import Score
from rl.config import GRPOConfig
from rl.experience import ScoredGroup, requests_of
from rl.group_records import read_groups, write_groups
from rl.lengths import LengthHistory
from rollouts.pool import GeneratorPool
from rollouts.records import Group, Request

LENGTHS, AHEAD = "lengths.json", "ahead.json"  # in a checkpoint

Render = Callable[[Sequence[Problem]], Sequence[list[int] | None]]  # token ids of prompts; None: no room to answer


@dataclass(slots=True)
class OpenBatch:
    """A rollout batch from its first prompt until it is taken. All by key, in the order of the problems."""

    step: int  # optimizer steps before it is trained on
    problems: dict[str, Problem] = field(default_factory=dict)  # whose prompts leave room to answer
    requests: dict[str, Request] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)  # whole ones
    scores: dict[str, list[Score]] = field(default_factory=dict)
    asked: int = 0  # problems drawn
    rounds: int = 0  # of problems drawn
    judged: dict[str, Counter[str]] = field(default_factory=dict)  # see RewardPool.take_counts
    done: bool = False

    def to_sample(self, optional: bool) -> list[Request]:
        return [replace(r, optional=optional) for key, r in self.requests.items() if key not in self.groups]

    def take(self, group: Group) -> bool:
        """Note a group that the generators gave back: is it whole?"""
        if any(said.finish_reason == "interrupted" for said in group.completions):
            self.requests[group.key] = replace(self.requests[group.key], begun=tuple(group.completions))
            return False
        self.groups[group.key] = group
        return True

    @property
    def in_flight(self) -> int:
        """Completions that have been begun."""
        begun = [r.begun for key, r in self.requests.items() if key not in self.groups]
        parts = [*begun, *(group.completions for group in self.groups.values())]
        return sum(len(said.token_ids) > 0 for completions in parts for said in completions)

    def scored(self) -> list[ScoredGroup]:
        """All groups, also those that are not whole or not scored."""
        return [
            ScoredGroup(
                group=self.groups.get(key) or Group(key=key, prompt_ids=r.prompt_ids, completions=list(r.begun)),
                problem=self.problems[key],
                scores=self.scores.get(key, []),
            )
            for key, r in self.requests.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledBatch:
    groups: list[ScoredGroup]
    too_long: int  # problems left out, whose prompts leave no room to answer
    longest: int  # new tokens that a completion could have had
    judged: dict[str, Counter[str]]  # by the rewards, since the batch before; see RewardPool.take_counts
    in_flight: int  # completions begun for later batches, when this one was taken


class RolloutBatches:
    """Between `take` and the next `settle` the generators and the rewards may be at work for it in a thread, so nobody
    else may use them, nor change the generators' weights."""

    def __init__(
        self,
        config: GRPOConfig,
        *,
        pool: GeneratorPool,
        rewards: RewardPool,
        problems: ProblemPool,
        render: Render,
        seed: Callable[[str, int], int],
    ):
        """`seed`: from a purpose and a step."""
        self.config, self.objective = config, config.objective.resolve()
        self.pool, self.rewards, self.problems, self.render, self.seed = pool, rewards, problems, render, seed
        self.lengths = LengthHistory()
        self.open: dict[int, OpenBatch] = {}  # by number
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling ahead")
        self._running: Future[None] | None = None

    def take(self, number: int) -> SampledBatch:
        """Batch `number` (from 0), scored; then the next one is begun, where the recipe lets rollouts run ahead."""
        self.settle()
        if number not in self.open or not self.open[number].done:
            self._complete(number)
        batch = self.open.pop(number)
        in_flight = sum(other.in_flight for other in self.open.values())
        groups = batch.scored()
        self.lengths.learn((scored.problem, scored.mean_length) for scored in groups)
        if self.config.max_staleness and number + 1 < self.config.rollouts:
            self.pool.weights_move = True
            self._running = self._thread.submit(self._complete, number + 1)
        return SampledBatch(
            groups=groups,
            too_long=batch.asked - len(groups),
            longest=self.config.max_new_tokens_at(batch.step),
            judged=batch.judged,
            in_flight=in_flight,
        )

    def settle(self) -> None:
        """Wait until the generators rest. Raises what went wrong with them or the rewards."""
        if self._running is not None:
            running, self._running = self._running, None
            try:
                running.result()  # its own waits have deadlines
            finally:
                self.pool.weights_move = False

    def _complete(self, number: int) -> None:
        """Sample and score until batch `number` is whole. Under dynamic sampling further questions take the place of
        groups without signal."""
        batch = self._begin(number)
        ahead = [self._begin(later) for later in self._ahead_of(number)]
        while True:
            self._sample(batch, ahead)
            signals = sum(scored.has_signal for scored in batch.scored())
            missing = self._questions - signals if self.objective.dynamic_sampling else 0
            if missing <= 0 or batch.rounds > self.config.resample_rounds:
                break
            self._ask(batch, missing)
        batch.judged, batch.done = self.rewards.take_counts(), True

    def _ahead_of(self, number: int) -> range:
        """Batches that may be begun while `number` is completed, which the policy trains on one sync later at least."""
        limit = self.config.max_new_tokens_at(number * self.config.mini_batches)
        last = number
        while (
            last + 1 < min(number + self.config.max_staleness, self.config.rollouts)
            and self.config.max_new_tokens_at((last + 1) * self.config.mini_batches) == limit
        ):
            last += 1
        return range(number + 1, last + 1)

    @property
    def _questions(self) -> int:
        return self.config.questions_per_step * self.config.mini_batches

    def _begin(self, number: int) -> OpenBatch:
        if number not in self.open:
            self.open[number] = OpenBatch(number * self.config.mini_batches)
            self._ask(self.open[number], self._questions)
        return self.open[number]

    def _ask(self, batch: OpenBatch, count: int) -> None:
        """Draw `count` problems for a batch. Those of further rounds lie past all that the stage asks first."""
        config, step = self.config, batch.step
        share = config.problems.instruction_share if self._progress(batch) >= config.general_from_share else 0.0
        drawn = self.problems.draw((batch.rounds * config.steps + step) * config.questions_per_step, count, share)
        unique = config.max_staleness or batch.rounds  # among all that is under way
        prefix = f"{step}/{batch.rounds}/" if unique else ""
        problems = {f"{prefix}{place}:{problem.id}": problem for place, problem in enumerate(drawn)}
        requests = requests_of(
            problems,
            self.render(drawn),
            expected_tokens=self.lengths.expected,
            routing_groups=config.log_routing_groups,
            seed=self.seed(f"sampling/{batch.rounds}" if batch.rounds else "sampling", step),
        )
        batch.requests |= {request.key: request for request in requests}
        batch.problems |= problems
        batch.asked += count
        batch.rounds += 1

    def _progress(self, batch: OpenBatch) -> float:
        """Share of the stage's steps taken, for rewards that start late."""
        return batch.step / self.config.steps

    def _sample(self, needed: OpenBatch, ahead: Sequence[OpenBatch]) -> None:
        owners = {key: batch for batch in (needed, *ahead) for key in batch.requests}
        requests = [*needed.to_sample(False), *(r for batch in ahead for r in batch.to_sample(True))]
        params = replace(
            self.config.rollout.params(self.config.group_size, seed=0),  # requests have their own
            max_new_tokens=self.config.max_new_tokens_at(needed.step),
            return_routed_experts=self.objective.routing_replay == "rollout",
            return_support=self.objective.keep_sampling_mask,
        )
        for group in self.pool.stream(requests, params):
            batch = owners[group.key]
            if batch.take(group):
                texts = [completion.text for completion in group.completions]
                self.rewards.submit(group.key, batch.problems[group.key], texts, self._progress(batch))
        for key, scores in self.rewards.collect().items():
            owners[key].scores[key] = scores

    def save(self, folder: Path) -> None:
        """Into a checkpoint; what is being sampled is waited for."""
        self.settle()
        self.lengths.save(folder / LENGTHS)
        if not self.open:
            return
        for number, batch in self.open.items():
            write_groups(folder / f"ahead_{number}.parquet", batch.step + 1, batch.scored())
        facts = {number: _facts(batch) for number, batch in self.open.items()}
        (folder / AHEAD).write_text(json.dumps({"counted": self.rewards.counted, "batches": facts}))

    def load(self, folder: Path) -> None:
        self.lengths.load(folder / LENGTHS)
        if (folder / AHEAD).exists():
            facts = json.loads((folder / AHEAD).read_text(encoding="utf-8"))
            self.rewards.expect(facts["counted"])
            self.open = {
                int(number): _opened(said, read_groups(folder / f"ahead_{number}.parquet"))
                for number, said in facts["batches"].items()
            }

    def close(self) -> None:
        """To be called when pool and rewards are closed: a thread that uses them gets ActorDied."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _facts(batch: OpenBatch) -> Mapping[str, Any]:
    """What is not in its groups."""
    return {
        "step": batch.step,
        "asked": batch.asked,
        "rounds": batch.rounds,
        "done": batch.done,
        "judged": batch.judged,
        "requests": [[r.expected_tokens, r.return_routed_experts, r.seed] for r in batch.requests.values()],
    }


def _opened(facts: Mapping[str, Any], groups: Sequence[ScoredGroup]) -> OpenBatch:
    batch = OpenBatch(facts["step"], asked=facts["asked"], rounds=facts["rounds"], done=facts["done"])
    batch.judged = {name: Counter(verdicts) for name, verdicts in facts["judged"].items()}
    for scored, (expected, noted, seed) in zip(groups, facts["requests"], strict=True):
        key = scored.group.key
        batch.problems[key] = scored.problem
        batch.requests[key] = Request(
            key=key,
            prompt_ids=scored.group.prompt_ids,
            expected_tokens=expected,
            return_routed_experts=noted,
            seed=seed,
        )
        if batch.take(scored.group):
            batch.scores[key] = scored.scores
    return batch

"""Sampling and scoring of many prompts, chunk by chunk: what was done is on disk and is never done twice.

A chunk is sampled by one call to the generators and sealed in one file. Sampling is reproducible for a fixed set of
requests, so a stage that was killed and goes on, or that lost a chunk, ends with the same groups as one that was not.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.actors import start_ray
from data.durable import is_whole, sealing
from data.problems import Problem
from rewards.combine import check_rewards
from rewards.config import RewardSpec, RewardWorkersConfig
from rewards.pool import RewardPool
from rewards.reward import Score, Verdict
from rollouts.config import GeneratorConfig
from rollouts.pool import GeneratorPool
from rollouts.records import Group, Request, SamplingParams
from training.stage import StageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One problem as it is put to the policy. `key` is unique in a stage."""

    key: str
    problem: Problem
    prompt_ids: list[int]
    source: str  # where its completions come from, for the dataset's rows: zero_shot | few_shot


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One scored completion."""

    text: str
    n_tokens: int
    truncated: bool
    verdict: Verdict
    detail: str  # why the verdict is what it is


Chunk = list[tuple[Prompt, list[Sampled]]]


def sampled_chunks(
    prompts: Sequence[Prompt],
    *,
    policy: Path,
    params: SamplingParams,
    generator: GeneratorConfig,
    rewards: Sequence[RewardSpec],
    reward_workers: RewardWorkersConfig,
    chunk_prompts: int,
    work: Path,
    on_group: Callable[[int], None],
) -> Iterator[Chunk]:
    """All prompts with their completions, in order, a chunk at a time; whole ones found in `work` are read.

    `on_group` is told, after every group, how many of all prompts are done.
    Raises StageError when `work` belongs to other prompts or a reward cannot be built.
    """
    _check_rewards(rewards)
    work.mkdir(parents=True, exist_ok=True)
    sampler: _Sampler | None = None  # its processes start when there is something to sample
    try:
        for start in range(0, len(prompts), chunk_prompts):
            asked = prompts[start : start + chunk_prompts]
            file = work / f"prompts_{start:08d}.jsonl"
            if not is_whole(file, "its prompts are sampled again"):
                start_ray()
                sampler = sampler or _Sampler(policy, generator, RewardPool(rewards, reward_workers))
                _commit(file, asked, sampler.sample(asked, params, lambda done, start=start: on_group(start + done)))
            yield _read(file, asked)
            on_group(start + len(asked))
    finally:
        if sampler is not None:
            sampler.close()


class _Sampler:
    """Generators and reward workers: a group is scored while others are still being sampled."""

    def __init__(self, policy: Path, generator: GeneratorConfig, rewards: RewardPool) -> None:
        self.pool, self.rewards = GeneratorPool(str(policy), generator), rewards

    def sample(
        self, prompts: Sequence[Prompt], params: SamplingParams, on_group: Callable[[int], None]
    ) -> dict[str, list[Sampled]]:
        """Scored completions by key."""
        by_key = {prompt.key: prompt for prompt in prompts}
        requests = [Request(key=prompt.key, prompt_ids=prompt.prompt_ids) for prompt in prompts]
        groups: dict[str, Group] = {}
        for group in self.pool.stream(requests, params):
            groups[group.key] = group
            texts = [completion.text for completion in group.completions]
            self.rewards.submit(group.key, by_key[group.key].problem, texts)
            on_group(len(groups))
        scores = self.rewards.collect()
        return {key: _scored(group, scores[key]) for key, group in groups.items()}

    def close(self) -> None:
        self.pool.close()
        self.rewards.close()


def _scored(group: Group, scores: Sequence[Score]) -> list[Sampled]:
    return [
        Sampled(
            text=completion.text,
            n_tokens=len(completion.token_ids),
            truncated=completion.finish_reason == "length",
            verdict=score.verdict,
            detail=score.detail,
        )
        for completion, score in zip(group.completions, scores, strict=True)
    ]


def _check_rewards(specs: Sequence[RewardSpec]) -> None:
    """Build them once here: an actor that cannot start says nothing about a misspelt recipe key."""
    try:
        check_rewards(specs)
    except ValueError as error:
        raise StageError(str(error)) from None


def _commit(file: Path, prompts: Sequence[Prompt], sampled: dict[str, list[Sampled]]) -> None:
    with sealing(file) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for prompt in prompts:
            completions = [asdict(completion) for completion in sampled[prompt.key]]
            lines.write(json.dumps({"key": prompt.key, "completions": completions}) + "\n")


def _read(file: Path, prompts: Sequence[Prompt]) -> Chunk:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if [row["key"] for row in rows] != [prompt.key for prompt in prompts]:
        raise StageError(f"{file} holds completions of other prompts; delete {file.parent} to sample again")
    return [(prompt, [_sampled(**c) for c in row["completions"]]) for prompt, row in zip(prompts, rows, strict=True)]


def _sampled(verdict: str, **rest: Any) -> Sampled:
    return Sampled(verdict=Verdict(verdict), **rest)

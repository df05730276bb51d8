"""Sampling and scoring of many prompts, chunk by chunk: what was done is on disk and is never done twice.

A scored group is written to the chunk's journal as soon as it is there; a whole chunk is sealed in one parquet file,
one row per prompt and sample. A completion depends on its prompt, its number and the seed alone, so a stage that was
killed samples the prompts that are missing and ends with the same groups as one that was not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import parquet

from cluster.actors import start_ray
from data.durable import is_whole, sealing
from data.journal import Journal, read_journal
from data.problems import Problem
from rewards.combine import check_rewards
from rewards.config import RewardSpec, RewardWorkersConfig
from rewards.pool import RewardPool
from rewards.reward import Score, Verdict
from rollouts.config import GeneratorConfig, JudgeServiceConfig
from rollouts.judge import start_judges, stop_judges
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


class Sampler(Protocol):
    """What completions come from. Not for several threads."""

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        """(key, scored completions) of every prompt, as they are ready."""
        ...

    def close(self) -> None: ...


_SCHEMA = pa.schema(
    [
        ("key", pa.string()), ("sample", pa.int32()), ("text", pa.string()), ("n_tokens", pa.int32()),
        ("truncated", pa.bool_()), ("verdict", pa.string()), ("detail", pa.string()),
    ]
)  # fmt: skip


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
    inputs: Mapping[str, Path] | None = None,
    judges: JudgeServiceConfig | None = None,
) -> Iterator[Chunk]:
    """All prompts with their completions, in order, a chunk at a time; whole ones found in `work` are read.

    `on_group` is told, after every group, how many of all prompts are done. `inputs`: the stage's; those that are
    judges are served to the rewards, as `judges` says.
    Raises StageError when `work` belongs to other prompts or a reward cannot be built.
    """
    chunks = ((start, prompts[start : start + chunk_prompts]) for start in range(0, len(prompts), chunk_prompts))

    def open_sampler() -> Sampler:
        return open_policy(policy, params, generator, rewards, reward_workers, inputs, judges)

    return scored_chunks(chunks, open_sampler, rewards=rewards, work=work, on_group=on_group)


def scored_chunks(
    chunks: Iterable[tuple[int, Sequence[Prompt]]],
    open_sampler: Callable[[], Sampler],
    *,
    rewards: Sequence[RewardSpec],
    work: Path,
    on_group: Callable[[int], None],
) -> Iterator[Chunk]:
    """Each chunk of prompts with their completions; whole ones found in `work` are read, and no sampler is opened then.

    chunks: (number of the first prompt among all, the prompts). `on_group` and errors: as in `sampled_chunks`.
    """
    check_reward_specs(rewards)
    work.mkdir(parents=True, exist_ok=True)
    sampler: Sampler | None = None  # its processes start when there is something to sample
    try:
        for start, asked in chunks:
            file = work / f"prompts_{start:08d}.parquet"
            if not is_whole(file, "its prompts are sampled again"):
                sampler = sampler or open_sampler()
                _fill(file, asked, sampler, lambda done, start=start: on_group(start + done))
            yield _read(file, asked)
            on_group(start + len(asked))
    finally:
        if sampler is not None:
            sampler.close()


def open_policy(
    policy: Path,
    params: SamplingParams,
    generator: GeneratorConfig,
    rewards: Sequence[RewardSpec],
    reward_workers: RewardWorkersConfig,
    inputs: Mapping[str, Path] | None = None,
    judges: JudgeServiceConfig | None = None,
) -> Sampler:
    """Starts the processes that sample from a checkpoint and score; `inputs` and `judges` as in `sampled_chunks`."""
    start_ray()
    served = start_judges(inputs or {}, judges or JudgeServiceConfig())
    return _Sampler(policy, generator, RewardPool(rewards, reward_workers, served), served, params)


class _Sampler:
    """Generators and reward workers: a group is scored while others are still being sampled."""

    def __init__(
        self,
        policy: Path,
        generator: GeneratorConfig,
        rewards: RewardPool,
        judges: Mapping[str, Any],
        params: SamplingParams,
    ) -> None:
        self.pool, self.rewards, self.judges = GeneratorPool(str(policy), generator), rewards, judges
        self.params = params

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        by_key = {prompt.key: prompt for prompt in prompts}
        requests = [Request(key=prompt.key, prompt_ids=prompt.prompt_ids) for prompt in prompts]
        groups: dict[str, Group] = {}
        for group in self.pool.stream(requests, self.params):
            groups[group.key] = group
            texts = [completion.text for completion in group.completions]
            self.rewards.submit(group.key, by_key[group.key].problem, texts)
            for key, scores in self.rewards.take_finished().items():
                yield key, _scored(groups.pop(key), scores)
        for key, scores in self.rewards.collect().items():
            yield key, _scored(groups.pop(key), scores)

    def close(self) -> None:
        self.pool.close()
        self.rewards.close()
        stop_judges(self.judges)


def _fill(file: Path, prompts: Sequence[Prompt], sampler: Sampler, on_group: Callable[[int], None]) -> None:
    """Sample what the journal beside `file` lacks, then make the chunk of it."""
    journal = file.with_suffix(".journal.jsonl")
    sampled = _journaled(journal)
    missing = [prompt for prompt in prompts if prompt.key not in sampled]
    with Journal(journal) as lines:
        for key, completions in sampler.sample(missing) if missing else ():
            lines.add({"key": key, "completions": [asdict(c) for c in completions]})
            sampled[key] = completions
            on_group(len(sampled))
    rows = [
        {"key": prompt.key, "sample": number, **asdict(completion)}
        for prompt in prompts
        for number, completion in enumerate(sampled[prompt.key])
    ]
    with sealing(file) as temporary:
        parquet.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary)
    journal.unlink()


def _journaled(journal: Path) -> dict[str, list[Sampled]]:
    return {row["key"]: [_sampled(**each) for each in row["completions"]] for row in read_journal(journal)}


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


def check_reward_specs(specs: Sequence[RewardSpec]) -> None:
    """Build them once here: an actor that cannot start says nothing about a misspelt recipe key."""
    try:
        check_rewards(specs)
    except ValueError as error:
        raise StageError(str(error)) from None


def _read(file: Path, prompts: Sequence[Prompt]) -> Chunk:
    by_key: dict[str, list[Sampled]] = {}
    for row in parquet.read_table(file).to_pylist():
        by_key.setdefault(row.pop("key"), []).append(_sampled(**{k: v for k, v in row.items() if k != "sample"}))
    if list(by_key) != [prompt.key for prompt in prompts]:
        raise StageError(f"{file} holds completions of other prompts; delete {file.parent} to sample again")
    return [(prompt, by_key[prompt.key]) for prompt in prompts]


def _sampled(verdict: str, **rest: Any) -> Sampled:
    return Sampled(verdict=Verdict(verdict), **rest)

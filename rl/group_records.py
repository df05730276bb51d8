"""Rollout batches on disk: every completion with its scores, as it was trained on. For people, `r1 view` and
`r1 replay`, and for what rollouts ahead of the trainer have begun when a checkpoint is written.

One parquet file per batch, one row per completion, in the order of the batch.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.durable import replacing
from data.problems import Problem
from rewards.reward import Score, Verdict
from rl.batch import TrainingSequence
from rl.experience import ScoredGroup
from rollouts.records import Completion, Group, Support

GROUPS = "groups"  # the folder of a stage

_TOKENS, _LOGPROBS = pa.list_(pa.int32()), pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        "step": pa.int32(),  # the first optimizer step that trains on the batch, from 1
        "group": pa.string(),  # unique within the file
        "sample": pa.int32(),  # place in the group, from 0
        "problem_id": pa.string(),
        "domain": pa.string(),
        "language": pa.string(),
        "question": pa.string(),
        "ground_truth": pa.string(),  # of sample 0 alone, as the next: that of a program is megabytes of tests
        "problem": pa.string(),  # all of it, as JSON
        "prompt_ids": _TOKENS,
        "token_ids": _TOKENS,
        "text": pa.string(),
        "sampling_logprobs": _LOGPROBS,
        "policy_version": _TOKENS,  # of the weights that sampled each token, optimizer steps
        "finish_reason": pa.string(),  # stop, length or interrupted
        "old_logprobs": _LOGPROBS,  # null, as the next two, where the completion is not trained on
        "reference_logprobs": _LOGPROBS,  # null too where the objective needs none
        "advantage": pa.float64(),
        "verdict": pa.string(),  # pass, fail or error; null, as the rest, when not scored yet
        "reward": pa.float64(),  # null for an error
        "parts": pa.map_(pa.string(), pa.float64()),
        "detail": pa.string(),
        "timed_out": pa.bool_(),
        "retry": pa.bool_(),
        "unreadable": pa.bool_(),
        "routed_experts": pa.binary(),  # with shape and dtype in the next two; null when not asked for
        "experts_shape": pa.list_(pa.int32()),
        "experts_dtype": pa.string(),
        "support_ids": _TOKENS,  # null when nothing was cut off
        "support_sizes": _TOKENS,
    }
)


def batch_file(folder: Path, step: int) -> Path:
    """Where a stage keeps the batch that is trained on from step `step` (from 1) on."""
    return folder / GROUPS / f"step_{step:08d}.parquet"


def recorded_steps(folder: Path) -> list[int]:
    """First steps of the batches that a stage has recorded, in order."""
    return sorted(int(file.stem.removeprefix("step_")) for file in (folder / GROUPS).glob("step_*.parquet"))


def drop_after(folder: Path, step: int) -> None:
    """Forget the batches of steps after `step`, before these steps are taken again."""
    for first in recorded_steps(folder):
        if first > step:
            batch_file(folder, first).unlink()


def write_groups(
    file: Path, step: int, groups: Sequence[ScoredGroup], trained: Iterable[TrainingSequence] = ()
) -> None:
    """`trained`: what of them is trained on, with old and reference logprobs. Groups without scores are not scored
    yet."""
    by_place = {(sequence.group, sequence.sample): sequence for sequence in trained}
    rows = [
        _row(step, scored, sample, by_place.get((place, sample)))
        for place, scored in enumerate(groups)
        for sample in range(len(scored.group.completions))
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")


def _row(step: int, scored: ScoredGroup, sample: int, trained: TrainingSequence | None) -> Mapping[str, Any]:
    problem, completion = scored.problem, scored.group.completions[sample]
    experts, support = completion.routed_experts, completion.support
    return {
        "step": step,
        "group": scored.group.key,
        "sample": sample,
        "problem_id": problem.id,
        "domain": problem.domain,
        "language": problem.language,
        "question": _sound(problem.question),
        "ground_truth": None if sample else _sound(problem.ground_truth),
        "problem": None if sample else json.dumps(asdict(problem)),
        "prompt_ids": scored.group.prompt_ids,
        "token_ids": completion.token_ids,
        "text": _sound(completion.text),
        "sampling_logprobs": completion.sampling_logprobs,
        "policy_version": completion.policy_versions,
        "finish_reason": completion.finish_reason,
        "old_logprobs": trained and trained.old_logprobs,
        "reference_logprobs": trained and trained.ref_logprobs,
        "advantage": trained and trained.advantage,
        **(_of_score(scored.scores[sample]) if scored.scores else {}),
        "routed_experts": None if experts is None else experts.tobytes(),
        "experts_shape": None if experts is None else experts.shape,
        "experts_dtype": None if experts is None else experts.dtype.name,
        "support_ids": None if support is None else support.ids,
        "support_sizes": None if support is None else support.sizes,
    }


def _of_score(score: Score) -> Mapping[str, Any]:
    fields = {"detail": _sound(score.detail)}
    fields |= {"timed_out": score.timed_out, "retry": score.retry, "unreadable": score.unreadable}
    return fields | {"verdict": score.verdict.value, "reward": score.value, "parts": list(score.parts.items())}


def _sound(text: str) -> str:
    """Without lone surrogates, which UTF-8 does not have."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def read_groups(file: Path) -> list[ScoredGroup]:
    """The groups of a batch as they were written, without what training made of them; `scores` is empty where there
    were none. Raises OSError, or ValueError (pyarrow's) for a damaged file."""
    return [_group(list(rows)) for _, rows in groupby(_rows(file), key=lambda row: row["group"])]


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(file).iter_batches(batch_size=256):
        yield from batch.to_pylist()


def _group(rows: Sequence[Mapping[str, Any]]) -> ScoredGroup:
    first = rows[0]
    problem = json.loads(first["problem"])
    group = Group(
        key=first["group"], prompt_ids=first["prompt_ids"], completions=[_completion(row) for row in rows]
    )  # fmt: skip
    return ScoredGroup(
        group=group,
        problem=Problem(**problem | {"messages": tuple(problem["messages"])}),
        scores=[_score(row) for row in rows if row["verdict"] is not None],
    )


def _completion(row: Mapping[str, Any]) -> Completion:
    experts = support = None
    if row["routed_experts"] is not None:
        experts = np.frombuffer(row["routed_experts"], row["experts_dtype"]).reshape(row["experts_shape"])
    if row["support_ids"] is not None:
        ids, sizes = (np.array(row[name], np.int32) for name in ("support_ids", "support_sizes"))
        support = Support(ids=ids, sizes=sizes)
    return Completion(
        token_ids=np.array(row["token_ids"], np.int32),
        sampling_logprobs=np.array(row["sampling_logprobs"], np.float32),
        policy_versions=np.array(row["policy_version"], np.int32),
        finish_reason=row["finish_reason"],
        text=row["text"],
        routed_experts=experts,
        support=support,
    )


def _score(row: Mapping[str, Any]) -> Score:
    return Score(
        verdict=Verdict(row["verdict"]),
        value=row["reward"],
        parts=dict(row["parts"]),
        detail=row["detail"],
        timed_out=row["timed_out"],
        retry=row.get("retry", False),  # earlier records have none
        unreadable=row["unreadable"],
    )

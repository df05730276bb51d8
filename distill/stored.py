"""A teacher's most likely tokens at every place of a dataset: written once, read by any number of students.

One row per example (sft.batch.Example), so that what is read needs no tokenizing: tokens, which of them are learnt,
and K ids and logprobs for each of these, one after the other.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.actors import start_ray
from data.chat import Template
from data.dataset_files import dataset_files
from data.durable import replacing
from data.write import SFT_SCHEMA, DataCard, count_by, write_dataset
from distill.config import KLConfig, TeacherLogprobsConfig
from distill.taught import Told
from distill.teachers import Teachers
from models.checkpoint import context_length, load_tokenizer
from sft.batch import Example
from sft.conversations import conversation_examples, read_conversations
from sft.train import Sample
from training.run_log import write_stats
from training.stage import StageContext, StageError

TEACHER = "teacher"
_IDS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())
_TOLD = [("token_ids", _IDS), ("targets", pa.list_(pa.bool_())), ("teacher_ids", _IDS), ("teacher_logprobs", _FLOATS)]
_SAID_AT = [("top_k", pa.int32()), ("temperature", pa.float32())]  # the same in all rows
SCHEMA = pa.schema([*SFT_SCHEMA, *(pa.field(name, kind) for name, kind in (*_TOLD, *_SAID_AT))])
OfRow = tuple[dict[str, Any], Example]  # an example and the row that it is of
_COMPARED = 16  # rows whose tokens are made again by the student's tokenizer


def run(config: TeacherLogprobsConfig, context: StageContext) -> None:
    """The stage teacher_logprobs. Parts are saved as they are finished; a resumed stage goes on after the last."""
    start_ray()
    folder, teacher = context.output / ".parts", context.inputs[TEACHER]
    folder.mkdir(parents=True, exist_ok=True)
    kl = KLConfig(top_k=config.top_k, temperature=config.temperature)
    teachers = Teachers({TEACHER: teacher}, config.teacher, kl, context.name)
    rows, parts, dropped = 0, [], 0
    try:
        for examples, too_long in _chunks(config, teacher, context.inputs["dataset"]):
            part = folder / f"{len(parts):06d}.parquet"
            if not part.exists():
                _write_part(part, examples, teachers, kl)
            parts.append(part)
            rows, dropped = rows + len(examples), dropped + too_long
            context.report({"phase": "asking the teacher", "done": rows})
    finally:
        teachers.close()
    if not rows:
        raise StageError(f"{context.name}: no row of {context.inputs['dataset']} fits the teacher's context")
    by_domain, by_language, by_source = (_counts(parts, column) for column in ("domain", "language", "source"))
    card = DataCard(n_rows=rows, by_domain=by_domain, by_language=by_language, by_source=by_source)
    write_dataset(context.output, _rows(parts), card, SCHEMA)
    write_stats(context.output, {"rows": rows, "dropped_too_long": dropped, "top_k": config.top_k})
    for part in parts:
        part.unlink()
    folder.rmdir()


def has_logprobs(dataset: Path) -> bool:
    return "teacher_ids" in pq.read_schema(dataset_files(dataset)[0]).names


def read_stored(
    template: Template, kl: KLConfig, student: Path, dataset: Path, stage: str
) -> tuple[list[Sample], list[list[Told]]]:
    """Samples of one example each, and what was said about it, cut to kl.top_k. Raises StageError where the student's
    tokens are others, or fewer were stored."""
    samples: list[Sample] = []
    said: list[list[Told]] = []
    tokenizer = load_tokenizer(student)
    for number, row in enumerate(_rows(dataset_files(dataset))):
        stored = row["top_k"]
        if kl.top_k is None or kl.top_k > stored:
            raise StageError(f"{stage}: {dataset} holds {stored} tokens per place; set kl.top_k to {stored} or less")
        if row["temperature"] != np.float32(kl.temperature):
            raise StageError(
                f"{stage}: {dataset} holds logprobs at temperature {row['temperature']:g}; so set kl.temperature"
            )
        ids = np.array(row["token_ids"], np.int64)
        if number < _COMPARED and not _same_tokens(tokenizer, row["messages"], template, ids):
            raise StageError(
                f"{stage}: {student} writes row {row['id']} of {dataset} in other tokens than its teacher, so their "
                "probabilities cannot be compared (or `template` differs); distil the text instead: drop kl"
            )
        samples.append([Example(token_ids=ids, loss_mask=np.array(row["targets"], bool))])
        top_ids = np.array(row["teacher_ids"], np.int32).reshape(-1, stored)[:, : kl.top_k]
        logprobs = np.array(row["teacher_logprobs"], np.float32).reshape(-1, stored)[:, : kl.top_k]
        said.append([Told(ids=top_ids, logprobs=logprobs)])
    return samples, said


def _same_tokens(tokenizer: Any, messages: Any, template: Template, ids: np.ndarray) -> bool:
    made = conversation_examples(tokenizer, messages, template)
    return any(np.array_equal(example.token_ids, ids) for example in made)


def _chunks(config: TeacherLogprobsConfig, teacher: Path, dataset: Path) -> Iterator[tuple[list[OfRow], int]]:
    """Examples with the rows that they are of, and how many were too long for the teacher."""
    tokenizer, limit = load_tokenizer(teacher), context_length(teacher)
    conversations = read_conversations(dataset)
    while rows := list(islice(conversations, config.chunk_rows)):
        pairs = [(r, e) for r in rows for e in conversation_examples(tokenizer, r["messages"], config.template)]
        fitting = [pair for pair in pairs if len(pair[1].token_ids) <= limit]
        yield fitting, len(pairs) - len(fitting)


def _write_part(part: Path, examples: Sequence[OfRow], teachers: Teachers, kl: KLConfig) -> None:
    asked = [example for _, example in examples]
    said = teachers.end(teachers.begin({TEACHER: asked})).get(TEACHER, [])
    rows = []
    for (row, example), told in zip(examples, said, strict=True):
        assert told.ids is not None and told.logprobs is not None
        found = {"teacher_ids": told.ids.ravel(), "teacher_logprobs": told.logprobs.ravel()}
        told_at = {"top_k": kl.top_k, "temperature": kl.temperature}
        rows.append({**row, "token_ids": example.token_ids, "targets": example.loss_mask, **found, **told_at})
    with replacing(part) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)


def _rows(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(256):
            yield from batch.to_pylist()


def _counts(parts: Sequence[Path], column: str) -> dict[str, int]:
    rows = (row for part in parts for row in pq.read_table(part, columns=[column]).to_pylist())
    return count_by(rows, column)

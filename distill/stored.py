"""A teacher's most likely tokens at every place of a dataset: written once, read by any number of students.

One row per example (sft.batch.Example), so that what is read needs no tokenizing: tokens, which of them are learnt,
and K ids and logprobs for each of these. What was told is read batch by batch: tokens alone are held in memory.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.actors import start_ray
from data.chat import Template
from data.dataset_files import WHOLE, dataset_files
from data.durable import replacing
from data.write import SFT_SCHEMA, DataCard, write_card
from distill.config import KLConfig, TeacherLogprobsConfig
from distill.taught import Told
from distill.teachers import TEACHER, Teachers
from models.checkpoint import context_length, load_tokenizer
from sft.batch import Example
from sft.conversations import conversation_examples, read_conversations
from sft.train import Sample
from training.run_log import write_stats
from training.stage import StageContext, StageError

_TOLD = [
    ("token_ids", pa.list_(pa.int32())),
    ("targets", pa.list_(pa.bool_())),
    ("teacher_ids", pa.large_binary()),  # [targets, top_k] int32
    ("teacher_logprobs", pa.large_binary()),  # [targets, top_k] float32
]
_TOLD_AT = [("top_k", pa.int32()), ("temperature", pa.float32()), ("vocabulary", pa.string())]  # the same in all rows
SCHEMA = pa.schema([*SFT_SCHEMA, *(pa.field(name, kind) for name, kind in (*_TOLD, *_TOLD_AT))])
ROWS_PER_GROUP = 4  # what is read for one row: with 4,096 targets and 64 tokens each, 8 MB
OfRow = tuple[dict[str, Any], Example]  # an example and the row that it is of


def run(config: TeacherLogprobsConfig, context: StageContext) -> None:
    """The stage teacher_logprobs. Parts are saved as they are finished; a resumed stage goes on after the last."""
    start_ray()
    folder, teacher, dataset = context.output / ".parts", context.inputs[TEACHER], context.inputs["dataset"]
    folder.mkdir(parents=True, exist_ok=True)
    kl = KLConfig(top_k=config.top_k, temperature=config.temperature)
    teachers = Teachers({TEACHER: teacher}, config.teacher, kl, context.name)
    vocabulary = vocabulary_of(load_tokenizer(teacher))
    rows, parts, dropped = 0, [], 0
    try:
        for examples, too_long in _chunks(config, teacher, dataset, teachers.context()):
            part = folder / f"{len(parts):06d}.parquet"
            if not part.exists():
                _write_part(part, examples, teachers, kl, vocabulary)
            parts.append(part)
            rows, dropped = rows + len(examples), dropped + too_long
            context.report({"phase": "asking the teacher", "done": rows})
    finally:
        teachers.close()
    if not rows:
        raise StageError(f"{context.name}: no row of {dataset} fits the teacher's context")
    by_domain, by_language, by_source = (_counts(parts, column) for column in ("domain", "language", "source"))
    with replacing(context.output / WHOLE) as file, pq.ParquetWriter(file, SCHEMA) as writer:
        for batch in (batch for part in parts for batch in pq.ParquetFile(part).iter_batches(ROWS_PER_GROUP)):
            writer.write_batch(batch)
    card = DataCard(n_rows=rows, by_domain=by_domain, by_language=by_language, by_source=by_source)
    write_card(context.output, card)
    write_stats(context.output, {"rows": rows, "dropped_too_long": dropped, "top_k": config.top_k})
    for part in parts:
        part.unlink()
    folder.rmdir()


def has_logprobs(dataset: Path) -> bool:
    return "teacher_ids" in pq.read_schema(dataset_files(dataset)[0]).names


class StoredTold:
    """What a teacher said about the example of each sample that a student can read; see `read_stored`."""

    def __init__(self, file: Path, rows: Sequence[int], kl: KLConfig):
        """rows: of the file, one for each sample."""
        self._file, self._rows, self._top_k = pq.ParquetFile(file), rows, kl.top_k
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]  # a part may end with a smaller group
        self._group = lru_cache(maxsize=4)(self._read_group)

    def __getitem__(self, sample: int) -> list[Told]:
        number = self._rows[sample]
        group = bisect_right(self._starts, number) - 1
        row = self._group(group)[number - self._starts[group]]
        shape = -1, row["top_k"]
        ids = np.frombuffer(row["teacher_ids"], "<i4").reshape(shape)[:, : self._top_k]
        logprobs = np.frombuffer(row["teacher_logprobs"], "<f4").reshape(shape)[:, : self._top_k]
        return [Told(ids=ids, logprobs=logprobs)]

    def _read_group(self, group: int) -> list[dict[str, Any]]:
        return self._file.read_row_group(group, ["teacher_ids", "teacher_logprobs", "top_k"]).to_pylist()


def read_stored(
    template: Template, kl: KLConfig, student: Path, dataset: Path, stage: str
) -> tuple[list[Sample], StoredTold, int]:
    """Samples of one example each, what was said about them cut to kl.top_k, and how many are too long for the student.

    Raises StageError where the student's tokens are others, or other probabilities were stored.
    """
    file, tokenizer, limit = dataset / WHOLE, load_tokenizer(student), context_length(student)
    samples: list[Sample] = []
    rows: list[int] = []
    columns = ["id", "messages", "token_ids", "targets", *(name for name, _ in _TOLD_AT)]
    for number, row in enumerate(_rows(file, columns)):
        ids = np.array(row["token_ids"], np.int64)
        if number == 0:
            _check_stored(row, template, kl, tokenizer, ids, f"{stage}: {dataset}", student)
        if len(ids) <= limit:
            samples.append([Example(token_ids=ids, loss_mask=np.array(row["targets"], bool))])
            rows.append(number)
    if not samples:
        raise StageError(f"{stage}: all rows of {dataset} are longer than the {limit} tokens of the student's context")
    return samples, StoredTold(file, rows, kl), number + 1 - len(rows)


def _check_stored(
    row: dict[str, Any], template: Template, kl: KLConfig, tokenizer: Any, ids: np.ndarray, dataset: str, student: Path
) -> None:
    stored = row["top_k"]
    if kl.top_k is None or kl.top_k > stored:
        raise StageError(f"{dataset} holds {stored} tokens per place; set kl.top_k to {stored} or less")
    if row["temperature"] != np.float32(kl.temperature):
        raise StageError(f"{dataset} holds logprobs at temperature {row['temperature']:g}; so set kl.temperature")
    if row["vocabulary"] != vocabulary_of(tokenizer):
        raise StageError(
            f"{dataset} holds a teacher's probabilities over other tokens than those of {student}, so they cannot be "
            "compared; distil the text instead: drop kl, and give the dataset that it was made of"
        )
    made = conversation_examples(tokenizer, row["messages"], template)
    if not any(np.array_equal(example.token_ids, ids) for example in made):
        raise StageError(f"{dataset} renders row {row['id']} otherwise; set `template` to that of teacher_logprobs")


def vocabulary_of(tokenizer: Any) -> str:
    """A digest of which token each id is, and which one ends a completion."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda token: token[1])
    return hashlib.blake2b(repr((tokens, tokenizer.eos_token_id)).encode(), digest_size=16).hexdigest()


def _chunks(
    config: TeacherLogprobsConfig, teacher: Path, dataset: Path, limit: float
) -> Iterator[tuple[list[OfRow], int]]:
    """Examples with the rows that they are of, and how many were too long for the teacher."""
    tokenizer, conversations = load_tokenizer(teacher), read_conversations(dataset)
    while rows := list(islice(conversations, config.chunk_rows)):
        pairs = [(r, e) for r in rows for e in conversation_examples(tokenizer, r["messages"], config.template)]
        fitting = [pair for pair in pairs if len(pair[1].token_ids) <= limit]
        yield fitting, len(pairs) - len(fitting)


def _write_part(part: Path, examples: Sequence[OfRow], teachers: Teachers, kl: KLConfig, vocabulary: str) -> None:
    said = teachers.end(teachers.begin({TEACHER: [example for _, example in examples]})).get(TEACHER, [])
    rows = []
    for (row, example), told in zip(examples, said, strict=True):
        assert told.ids is not None and told.logprobs is not None
        tokens = {"token_ids": example.token_ids, "targets": example.loss_mask}
        found = {
            "teacher_ids": told.ids.astype("<i4").tobytes(),
            "teacher_logprobs": told.logprobs.astype("<f4").tobytes(),
        }
        told_at = {"top_k": told.ids.shape[1], "temperature": kl.temperature, "vocabulary": vocabulary}
        rows.append({**row, **tokens, **found, **told_at})
    with replacing(part) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file, row_group_size=ROWS_PER_GROUP)


def _rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(file).iter_batches(256, columns=list(columns)):
        yield from batch.to_pylist()


def _counts(parts: Sequence[Path], column: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in (row[column] for part in parts for row in _rows(part, [column])):
        counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items()))

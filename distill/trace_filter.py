"""One batch of traces: which rows are fit, and what the choice among all fit rows needs to know of each.

A batch is judged by itself, so batches can be judged in any order and by several processes. What is found is in one
sealed parquet file per batch: the fit rows with their fingerprints, and the counts of the others.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.durable import is_whole, sealing
from data.write import SFT_SCHEMA
from distill.fingerprints import PLACES, Words, hash_words, mixed, ngrams, signatures
from distill.held_out_index import HeldOutIndex
from distill.trace_rows import TraceRow
from distill.traces_config import NearDuplicatesConfig
from rewards.reward import Verdict
from sft.filters import FilterConfig, Filters, Trace, fingerprint, normalize, script_consistency
from sft.held_out import HeldOut

HELD_OUT, HELD_OUT_QUESTION = "held_out", "held_out_question"  # counted apart from the filters' reasons
NO_ANSWER = "no_answer"
BYTES_PER_TOKEN = 4  # of the proxy
_EXAMPLES = 5  # of held-out text found in a batch
_KNOWN = pa.schema(
    [
        ("tokens", pa.int32()), ("exact", pa.uint64()), ("problem", pa.uint64()), ("rank", pa.uint64()),
        ("signature", pa.binary(PLACES)),
    ]
)  # fmt: skip
JUDGED_SCHEMA = pa.schema([*SFT_SCHEMA, *_KNOWN])
_COUNTS = b"r1.counts"


class Batch(Protocol):
    @property
    def number(self) -> int: ...

    def read(self) -> list[TraceRow]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a row must keep. Plain data."""

    filters: FilterConfig
    near: NearDuplicatesConfig
    held_out: HeldOut
    seed: int
    tokenizer: Path | None = None  # a tokenizer.json


@dataclass(slots=True)
class Counts:
    """Rows of one batch, or of several added up."""

    seen: int = 0
    fit: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # why the others are not
    domains: Counter[str] = field(default_factory=Counter)  # of all that were seen
    languages: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)  # held-out words that were found

    def add(self, other: "Counts") -> None:
        self.seen += other.seen
        self.fit += other.fit
        self.reasons += other.reasons
        self.domains += other.domains
        self.languages += other.languages
        self.examples = (self.examples + other.examples)[:_EXAMPLES]

    def to_json(self) -> bytes:
        return json.dumps({each.name: getattr(self, each.name) for each in fields(self)}, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Counts":
        read = json.loads(text)
        return cls(**read | {name: Counter(read[name]) for name in ("reasons", "domains", "languages")})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A row that the filters let through."""

    row: dict[str, Any]
    answer: str
    tokens: int
    asked: list[str]  # the user's turns, normalized


class TraceFilter:
    """Judges batches by `rules`. Holds nothing of what it has judged."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._filters = Filters(rules.filters, script_consistency, rules.seed)
        self._index = HeldOutIndex(rules.held_out)
        self._seed = np.frombuffer(fingerprint(str(rules.seed), size=8), dtype="<u8")
        self._tokenizer = _tokenizer(rules.tokenizer) if rules.tokenizer else None

    def judge(self, rows: Sequence[TraceRow]) -> tuple[pa.Table, Counts]:
        """The fit rows, of JUDGED_SCHEMA, and the counts of all."""
        counts = Counts(seen=len(rows))
        counts.domains.update(row.row["domain"] for row in rows)
        counts.languages.update(row.row["language"] for row in rows)
        tokens = self._count(rows)
        fit = [
            _Fit(row=row.row, answer=row.answer, tokens=count, asked=_asked(row))
            for row, count in zip(rows, tokens, strict=True)
            if self._is_readable(row, count, counts)
        ]
        texts = [turn["content"] for each in fit for turn in each.row["messages"]]
        words = hash_words(texts)
        ends = np.cumsum([len(each.row["messages"]) for each in fit], dtype=np.int64)  # texts up to each row
        clean = self._without_held_out(fit, texts, words, ends, counts)
        counts.fit = len(clean)
        prints = self._signatures(words, ends)[clean] if clean else np.zeros((0, PLACES), np.uint8)
        return self._table([fit[place] for place in clean], prints), counts

    def _count(self, rows: Sequence[TraceRow]) -> list[int]:
        """Tokens of each answer."""
        if self._tokenizer is not None:
            found = self._tokenizer.encode_batch_fast([row.answer for row in rows], add_special_tokens=False)
            return [len(encoding) for encoding in found]
        return [proxy_tokens(row.answer) if row.n_tokens is None else row.n_tokens for row in rows]

    def _is_readable(self, row: TraceRow, tokens: int, counts: Counts) -> bool:
        trace = Trace(
            problem_id="", question=row.question, language=row.row["language"], completion=row.answer, n_tokens=tokens,
            verdict=row.verdict, truncated=row.truncated,
        )  # fmt: skip
        empty = row.verdict is Verdict.ERROR and not row.answer
        reason = NO_ANSWER if empty else self._filters.reason(trace)
        if reason is not None:
            counts.reasons[reason] += 1
        return reason is None

    def _without_held_out(
        self, rows: Sequence[_Fit], texts: list[str], words: Words, ends: np.ndarray, counts: Counts
    ) -> list[int]:
        """Places of the rows without held-out text; the others are counted."""
        shared = self._index.overlaps(texts, words)
        contaminated = {int(np.searchsorted(ends, text, side="right")): ngram for text, ngram in shared.items()}
        counts.reasons[HELD_OUT] += len(contaminated)
        counts.examples = [contaminated[place] for place in sorted(contaminated)[:_EXAMPLES]]
        clean = []
        for place, row in enumerate(rows):
            if place in contaminated:
                continue
            if any(question in self._index.questions for question in row.asked):
                counts.reasons[HELD_OUT_QUESTION] += 1
            else:
                clean.append(place)
        counts.reasons += Counter()  # without zeros
        return clean

    def _signatures(self, words: Words, ends: np.ndarray) -> np.ndarray:
        """[rows, PLACES] uint8. `ends`: number of texts up to and with each row's last."""
        last = ends - 1
        first = last if self.rules.near.of == "response" else np.concatenate([[0], ends[:-1]])
        shingled = Words(words.values, words.starts[first], words.ends[last])
        return signatures(*ngrams(shingled, self.rules.near.shingle_words, whole=True), len(ends))

    def _table(self, rows: Sequence[_Fit], prints: np.ndarray) -> pa.Table:
        exact, problems = (
            np.frombuffer(b"".join(digests), dtype="<u8")
            for digests in (
                [fingerprint(*row.asked, *_said(row.row["messages"]), size=8) for row in rows],
                [fingerprint(*row.asked, size=8) for row in rows],
            )
        )
        ranks = mixed(exact ^ self._seed)
        signature = pa.py_buffer(np.ascontiguousarray(prints))
        known = [
            pa.array([row.tokens for row in rows], pa.int32()),
            *(pa.array(values, pa.uint64()) for values in (exact, problems, ranks)),
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(PLACES), len(rows), [None, signature]),
        ]
        return pa.Table.from_arrays([*_sft_columns([row.row for row in rows]), *known], schema=JUDGED_SCHEMA)


def judged_file(folder: Path, number: int) -> Path:
    return folder / f"batch_{number:07d}.parquet"


def is_judged(folder: Path, number: int) -> bool:
    return is_whole(judged_file(folder, number), "its rows are filtered again")


def judge_to_file(traces: TraceFilter, batch: Batch, folder: Path) -> int:
    """Judge a batch and seal what was found in `folder`; returns its number of rows."""
    table, counts = traces.judge(batch.read())
    with sealing(judged_file(folder, batch.number), synced=False) as temporary:
        described = table.replace_schema_metadata({_COUNTS: counts.to_json()})
        pq.write_table(described, temporary, use_dictionary=False, write_statistics=False)
    return counts.seen


def read_counts(file: Path) -> Counts:
    return Counts.from_json(pq.read_schema(file).metadata[_COUNTS])


def proxy_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand: a quarter of its UTF-8 bytes, rounded up."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def _sft_columns(rows: Sequence[dict[str, Any]]) -> list[pa.Array]:
    """The columns of SFT_SCHEMA, several times as fast as from a list of rows."""
    turns = [turn for row in rows for turn in row["messages"]]
    offsets = np.cumsum([0, *(len(row["messages"]) for row in rows)], dtype=np.int32)
    spoken = [pa.array([turn[name] for turn in turns], pa.string()) for name in ("role", "content")]
    messages = pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(spoken, ["role", "content"]))
    columns = {
        name: pa.array([row[name] for row in rows], pa.string()) for name in SFT_SCHEMA.names if name != "messages"
    }
    return [messages if name == "messages" else columns[name] for name in SFT_SCHEMA.names]


def _said(messages: Sequence[dict[str, str]]) -> list[str]:
    """All other turns, normalized."""
    return [normalize(turn["content"]) for turn in messages if turn["role"] != "user"]


def _asked(row: TraceRow) -> list[str]:
    return [normalize(turn["content"]) for turn in row.row["messages"] if turn["role"] == "user"]


def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))

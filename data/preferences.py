"""Preference data as plain records: pairs, ranked lists and safety labels, and their rows in a dataset artifact.

A response is the text that is judged: the final summary where helpfulness is judged, the whole completion where safety
is (DeepSeek-R1, arXiv:2501.12948v2, section 3.1). Files of others are read in `data.preference_sources`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from data.problems import Problem
from data.schemas import problem_from_row, problem_to_row

Turns = tuple[dict[str, str], ...]
JUDGEMENT = {"labels": "judgement"}  # metadata of labels that say whether a judgement is right
_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_COMMON = [("id", pa.string()), ("prompt", pa.string()), ("history", _TURNS)]
_ENDS = [("source", pa.string()), ("language", pa.string()), ("metadata", pa.string())]
PAIR_SCHEMA = pa.schema([*_COMMON, ("chosen", pa.string()), ("rejected", pa.string()), ("gap", pa.float64()), *_ENDS])
RANKED_SCHEMA = pa.schema([*_COMMON, ("responses", pa.list_(pa.string())), ("truth", pa.list_(pa.float64())), *_ENDS])
SAFETY_SCHEMA = pa.schema([*_COMMON, ("response", pa.string()), ("safe", pa.bool_()), *_ENDS])


class BadRecord(ValueError):
    """A row is no preference datum. `reason` is what it is counted under; the message says what is wrong."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason  # malformed | empty | identical | tied | unlabelled


class _Asked:
    """What all records share: a prompt after perhaps earlier turns."""

    __slots__ = ()
    prompt: str
    history: Turns
    metadata: dict[str, Any]

    @property
    def messages(self) -> Turns:
        """The conversation up to the response: the history, then the prompt as the user's turn."""
        return (*self.history, {"role": "user", "content": self.prompt})

    @property
    def problem(self) -> Problem | None:
        """The problem that the prompt was made from, if it is known. For measuring: no reward model is given it."""
        row = self.metadata.get("problem")
        return None if row is None else problem_from_row(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair(_Asked):
    """Two responses to one prompt, of which `chosen` is the better one.

    `gap` says by how much, in the judge's units: the mean verdict in (0, 2] of Arena-Hard's scale, or the difference of
    the scores in a file of others; None where the file does not say. Raises BadRecord.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    gap: float | None = None
    source: str = ""  # who judged: a file's name, judge:<name>, human
    language: str = "en"  # ISO 639-1 code of the prompt
    history: Turns = ()  # earlier turns, oldest first
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse_empty(prompt=self.prompt, chosen=self.chosen, rejected=self.rejected)
        if self.chosen.strip() == self.rejected.strip():
            raise BadRecord("identical", "chosen and rejected are the same text")
        if self.gap is not None and not self.gap > 0:
            raise BadRecord("tied", f"neither response is better: the gap is {self.gap}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedResponses(_Asked):
    """One prompt with any number of responses, and how good each is where that is known.

    `truth` has one number per response, higher is better: a rule's utility in [0, 1] or a file's own scale. Raises
    BadRecord.
    """

    id: str
    prompt: str
    responses: tuple[str, ...]
    truth: tuple[float, ...] | None = None
    source: str = ""
    language: str = "en"
    history: Turns = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.responses:
            raise BadRecord("empty", "there are no responses")
        _refuse_empty(prompt=self.prompt, **{f"response {n}": text for n, text in enumerate(self.responses, 1)})
        if self.truth is not None and len(self.truth) != len(self.responses):
            raise BadRecord("malformed", f"{len(self.truth)} scores for {len(self.responses)} responses")
        if self.truth is not None and not all(map(math.isfinite, self.truth)):
            raise BadRecord("malformed", "a score is not a finite number")

    @property
    def best(self) -> int | None:
        """The place of the strictly best response; None when it is not known or shared."""
        if self.truth is None or self.truth.count(max(self.truth)) > 1:
            return None
        return self.truth.index(max(self.truth))

    def pair(self) -> PreferencePair:
        """The best response against the worst, as one pair for each prompt; earlier ones win ties.

        Raises BadRecord when there is no truth, when all are equally good, and as PreferencePair does.
        """
        if self.truth is None or len(self.responses) < 2:
            raise BadRecord("malformed", "a pair needs two responses with scores")
        best, worst = self.truth.index(max(self.truth)), self.truth.index(min(self.truth))
        if best == worst:
            raise BadRecord("tied", "all responses are equally good")
        return PreferencePair(
            id=self.id,
            prompt=self.prompt,
            chosen=self.responses[best],
            rejected=self.responses[worst],
            gap=self.truth[best] - self.truth[worst],
            source=self.source,
            language=self.language,
            history=self.history,
            metadata=self.metadata,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyLabel(_Asked):
    """One response, whole with its reasoning, and whether it is safe by written guidelines. Raises BadRecord.

    With JUDGEMENT in its metadata the response is a judgement, and `safe` says that it is right.
    """

    id: str
    prompt: str
    response: str
    safe: bool
    source: str = ""
    language: str = "en"
    history: Turns = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse_empty(prompt=self.prompt, response=self.response)

    @property
    def is_of_a_judgement(self) -> bool:
        return JUDGEMENT.items() <= self.metadata.items()


Preference = PreferencePair | RankedResponses | SafetyLabel
AnyPreference = TypeVar("AnyPreference", PreferencePair, RankedResponses, SafetyLabel)
SCHEMAS: dict[type, pa.Schema] = {
    PreferencePair: PAIR_SCHEMA,
    RankedResponses: RANKED_SCHEMA,
    SafetyLabel: SAFETY_SCHEMA,
}


def preference_row(record: Preference) -> dict[str, Any]:
    """A row of the record's SCHEMAS entry. Metadata is a JSON string, so that all rows have one schema."""
    row = {name: getattr(record, name) for name in SCHEMAS[type(record)].names}
    row["history"] = [dict(turn) for turn in record.history]
    row["metadata"] = json.dumps(record.metadata, ensure_ascii=False, sort_keys=True)
    return row


def from_row(kind: type[AnyPreference], row: Mapping[str, Any]) -> AnyPreference:
    """The inverse of `preference_row`. Raises BadRecord for what the record refuses."""
    values: dict[str, Any] = {name: row[name] for name in SCHEMAS[kind].names}
    values["history"] = tuple(dict(turn) for turn in row["history"])
    values["metadata"] = json.loads(row["metadata"])
    for name in ("responses", "truth"):
        if values.get(name) is not None:
            values[name] = tuple(values[name])
    return kind(**values)


def about(problem: Problem) -> dict[str, Any]:
    """What a record made from `problem` is built with: its prompt, history, language and, as metadata, the problem."""
    return {
        "prompt": problem.question,
        "history": tuple(dict(turn) for turn in problem.messages[:-1]),
        "language": problem.language,
        "metadata": {"problem": problem_to_row(problem)},
    }


def record_texts(record: Preference) -> list[str]:
    """All that was said: the turns up to the response, then the responses."""
    if isinstance(record, RankedResponses):
        responses = record.responses
    else:
        responses = (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.response,)
    return [*(turn["content"] for turn in record.messages), *responses]


def _refuse_empty(**texts: str) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            raise BadRecord("malformed", f"{name} is {type(text).__name__}, not text")
        if not text.strip():
            raise BadRecord("empty", f"{name} is empty")

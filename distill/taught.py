"""What teachers tell about tokens, and rows of tokens with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from data.packing import best_fit
from sft.batch import EMPTY, Example, Row, row_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A teacher's distribution over the next token at N places: its most likely tokens, or its final hidden states,
    from which its head makes all logits."""

    ids: np.ndarray | None = None  # [N, K] int32, different ones at each place
    logprobs: np.ndarray | None = None  # [N, K] float32, over its whole vocabulary
    hidden: np.ndarray | None = None  # [N, E] float32

    def __len__(self) -> int:
        return len(next(array for array in (self.hidden, self.ids) if array is not None))

    @classmethod
    def joined(cls, parts: Sequence["Told"]) -> "Told":
        """One after the other; all of one kind."""
        arrays = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        return cls(**{name: None if found[0] is None else np.concatenate(found) for name, found in arrays.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lecture:
    """What one teacher says, with one weight, about some of a row's predicted tokens."""

    teacher: str
    weight: float
    places: np.ndarray  # [N] int64: which of the row's C predicted tokens
    told: Told


@dataclass(frozen=True, slots=True, kw_only=True)
class TaughtRow(Row):
    lectures: tuple[Lecture, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """A sample, and what each teacher says about its predicted tokens, with its weight."""

    example: Example
    told: Mapping[str, tuple[Told, float]]

    def __len__(self) -> int:
        return len(self.example.token_ids)


NO_LECTURE = TaughtRow(**{field.name: getattr(EMPTY, field.name) for field in fields(Row)})


def target_places(example: Example) -> np.ndarray:
    """Places of the tokens that a teacher is asked about, int64 [C], ascending; the first token is never one."""
    places = np.flatnonzero(example.loss_mask)
    return places[places > 0]


def pack_taught(samples: Sequence[Taught], capacity: int) -> list[TaughtRow]:
    """Rows of at most `capacity` tokens; a longer sample is a row of its own."""
    return [_taught_row([samples[i] for i in members]) for members in best_fit([len(s) for s in samples], capacity)]


def _taught_row(samples: Sequence[Taught]) -> TaughtRow:
    row = row_of([sample.example for sample in samples])
    lectures = tuple(_lectures(samples))
    return TaughtRow(**{field.name: getattr(row, field.name) for field in fields(Row)}, lectures=lectures)


def _lectures(samples: Sequence[Taught]) -> Iterator[Lecture]:
    said: dict[tuple[str, float], list[tuple[int, Told]]] = {}
    start = 0
    for sample in samples:
        for teacher, (told, weight) in sample.told.items():
            said.setdefault((teacher, weight), []).append((start, told))
        start += len(target_places(sample.example))
    for (teacher, weight), parts in said.items():
        places = np.concatenate([np.arange(start, start + len(told)) for start, told in parts])
        told = Told.joined([told for _, told in parts])
        yield Lecture(teacher=teacher, weight=weight, places=places, told=told)

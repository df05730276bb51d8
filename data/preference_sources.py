"""Preference data from files and hub datasets, read one record at a time; what is left out is counted and named.

tally = Tally()
for pair in read_pairs(PreferenceSource(path="ultrafeedback.parquet"), tally): ...
tally.refused                    {"identical": 12, "tied": 3041}
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

from data.config import PreferenceSource
from data.preference_layouts import EXPECTED, READERS, fitting_layout
from data.preferences import BadRecord, Preference, PreferencePair, RankedResponses, SafetyLabel
from data.schemas import SourceError, detect_language
from data.sources import PlacedRow, placed_rows

HONEST = ("tied", "unlabelled")  # reasons to leave a row out although nothing is wrong with it
Wanted = TypeVar("Wanted", PreferencePair, RankedResponses, SafetyLabel)


@dataclass(slots=True)
class Tally:
    """What became of the rows of one source, or of several."""

    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # BadRecord's reasons -> rows
    examples: dict[str, str] = field(default_factory=dict)  # the same -> "train.jsonl line 12: chosen is empty"

    def refuse(self, place: str, fault: BadRecord) -> None:
        self.refused[fault.reason] += 1
        self.examples.setdefault(fault.reason, f"{place}: {fault}")

    def add(self, other: "Tally") -> None:
        """Count the rows of another source as well."""
        self.kept += other.kept
        self.refused += other.refused
        self.examples = other.examples | self.examples

    @property
    def faulty_share(self) -> float:
        """Of all rows, those that should not be there."""
        faulty = self.refused.total() - sum(self.refused[reason] for reason in HONEST)
        return faulty / max(1, self.kept + self.refused.total())


def read_pairs(source: PreferenceSource, tally: Tally | None = None) -> Iterator[PreferencePair]:
    """Pairs; of ranked responses, the best against the worst. Raises SourceError (see `_read`)."""
    return _read(source, _as_pair, "preference pairs", tally or Tally())


def read_ranked(source: PreferenceSource, tally: Tally | None = None) -> Iterator[RankedResponses]:
    """Ranked responses; of a pair, chosen before rejected with truth 1 and 0. Raises SourceError."""
    return _read(source, _as_ranked, "ranked responses", tally or Tally())


def read_safety_labels(source: PreferenceSource, tally: Tally | None = None) -> Iterator[SafetyLabel]:
    """Safety labels. Raises SourceError."""
    return _read(source, _as_label, "safety labels", tally or Tally())


def check_first_preference(source: PreferenceSource) -> None:
    """Read the first row of a local source. Raises SourceError when it is of no known layout."""
    path = Path(source.path).expanduser()
    if path.exists():
        next(_layout_rows(source), None)


def _read(
    source: PreferenceSource, convert: Callable[[Preference], Wanted | None], wanted: str, tally: Tally
) -> Iterator[Wanted]:
    """Raises SourceError when the layout is unknown or holds other records, when nothing is left, and, once all rows
    are read, when more than `bad_row_limit` of them had to be left out. `tally` grows when the reading ends."""
    own = Tally()  # the limit is a share of this source's rows, whatever else the caller counts
    try:
        yield from islice(_converted(source, convert, wanted, own), source.limit)
    finally:
        tally.add(own)
    named = "; ".join(f"{count} {reason} ({own.examples[reason]})" for reason, count in own.refused.most_common())
    if not own.kept:
        raise SourceError(f"{source.path}: there are no {wanted}{f': {named}' if named else ''}")
    if own.faulty_share > source.bad_row_limit:
        raise SourceError(
            f"{source.path}: {own.faulty_share:.0%} of the rows had to be left out, more than bad_row_limit "
            f"{source.bad_row_limit:g}: {named}; mend the file, name its row_schema, or raise bad_row_limit"
        )


def _converted(
    source: PreferenceSource, convert: Callable[[Preference], Wanted | None], wanted: str, tally: Tally
) -> Iterator[Wanted]:
    for place, layout, row, common in _layout_rows(source):
        try:
            found = convert(_record(READERS[layout], row, common))
        except BadRecord as fault:
            tally.refuse(place, fault)
            continue
        if found is None:
            raise SourceError(f"{place}: rows of layout {layout} hold no {wanted}")
        tally.kept += 1
        yield found


def _record(read: Callable[[Any, Any], Preference], row: Any, common: Any) -> Preference:
    try:
        return read(row, common)
    except BadRecord:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRecord("malformed", f"{type(error).__name__}: {error}") from None


def _layout_rows(source: PreferenceSource) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(place, layout, row, what the reader knows of it)."""
    rows = placed_rows(source)
    first = next(rows, None)
    if first is None:
        raise SourceError(f"{source.path}: there are no rows")
    layout = fitting_layout(first[1]) if source.row_schema == "auto" else source.row_schema
    if layout is None:
        known = "; ".join(f"{name} ({columns})" for name, columns in EXPECTED.items())
        found = ", ".join(sorted(first[1]))
        raise SourceError(f"{first[0]}: fits no known layout (columns found: {found}); expected one of {known}")
    stem = Path(source.path).name.split(".", 1)[0]
    every = _chain(first, rows)
    for number, (place, row) in enumerate(_merged(every) if layout == "helpsteer2" else every, start=1):
        language = detect_language(_asked_text(row)) if source.language == "auto" else source.language
        yield place, layout, row, {"id": f"{stem}-{number}", "source": stem, "language": language}


def _chain(first: PlacedRow, rows: Iterator[PlacedRow]) -> Iterator[PlacedRow]:
    yield first
    yield from rows


def _asked_text(row: dict[str, Any]) -> str:
    """What the user says in a row; as much as can be found."""
    asked = row.get("prompt") or row.get("instruction") or row.get("chosen")
    if isinstance(asked, list):
        turns = [turn for turn in asked if isinstance(turn, dict) and turn.get("role") == "user"]
        return "\n".join(str(turn.get("content")) for turn in turns)
    return asked if isinstance(asked, str) else ""


def _merged(rows: Iterator[PlacedRow]) -> Iterator[PlacedRow]:
    """HelpSteer2: rows of one prompt that follow each other, as one row with lists."""
    for prompt, group in groupby(rows, key=lambda placed: placed[1].get("prompt")):
        members = list(group)
        columns = {name: [row.get(name) for _, row in members] for name in ("response", "helpfulness")}
        yield members[0][0], {"prompt": prompt, **columns}


def _as_pair(record: Preference) -> PreferencePair | None:
    return (
        record.pair() if isinstance(record, RankedResponses) else record if isinstance(record, PreferencePair) else None
    )


def _as_ranked(record: Preference) -> RankedResponses | None:
    if isinstance(record, PreferencePair):
        return RankedResponses(
            id=record.id,
            prompt=record.prompt,
            responses=(record.chosen, record.rejected),
            truth=(1.0, 0.0),
            source=record.source,
            language=record.language,
            history=record.history,
            metadata=record.metadata,
        )
    return record if isinstance(record, RankedResponses) else None


def _as_label(record: Preference) -> SafetyLabel | None:
    return record if isinstance(record, SafetyLabel) else None

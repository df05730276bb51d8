"""Recorded rollout batches: which groups there are, and everything about one of them.

A stage leaves `groups/step_00000005.parquet` per batch, one row per completion; the number is the first optimizer step
that trains on it. Columns are listed in docs/viewing.md.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from viewing.flags import NO_SIGNAL, completion_flags, has_signal, learned_parts
from viewing.follow import Follower
from viewing.runs import GROUPS, METRICS, description

PAGE = 20  # groups
_LIGHT = (
    "step", "group", "problem_id", "domain", "language", "question",
    "text", "finish_reason", "reward", "verdict", "parts",
)  # fmt: skip
_CACHED_FILES = 4000  # summaries of so many files are kept; one is about 50 KB


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    step: int
    group: str
    problem_id: str
    domain: str
    language: str
    question: str
    rewards: list[float | None]
    passed: int
    flags: dict[str, int] = field(default_factory=dict)  # flag -> completions that have it; the group's own: all


class GroupBrowser:
    """The groups of one stage."""

    def __init__(self, stage: Path) -> None:
        self.stage = stage
        self._lock = Lock()
        self._summaries: dict[Path, tuple[tuple[int, int], list[GroupSummary]]] = {}
        self._watch = Follower(stage / METRICS)
        self._parted: list[tuple[int, bool]] = []  # by step, what the watch said

    def files(self) -> dict[int, Path]:
        """First step -> file, in order."""
        found = (self.stage / GROUPS).glob("step_*.parquet")
        return {int(path.stem[5:]): path for path in sorted(found) if path.stem[5:].isdigit()}

    def find(self, step: int | None, domain: str, flags: Collection[str]) -> tuple[list[GroupSummary], list[str]]:
        """(groups of one batch, or of all from the last on, that have all the flags; sentences on unreadable files)."""
        files = self.files()
        chosen = [files[step]] if step in files else [] if step is not None else list(files.values())[::-1]
        found, unreadable = [], []
        with self._lock:
            self._refresh_watch()
            for path in chosen:
                try:
                    found += self._of_file(path)
                except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                    unreadable.append(f"{path.name} cannot be read: {error}")
        kept = [g for g in found if (not domain or g.domain == domain) and all(flag in g.flags for flag in flags)]
        return kept, unreadable

    def domains(self, step: int | None) -> list[str]:
        return sorted({summary.domain for summary in self.find(step, "", ())[0]})

    def completions(self, step: int, group: str) -> list[dict[str, Any]]:
        """All rows of one group with their `flags`, by `sample`; [] when there is no such group."""
        path = self.files().get(step)
        if path is None:
            return []
        rows = pq.read_table(path, filters=[("group", "==", group)]).to_pylist()
        learned = learned_parts(description(self.stage).get("config") or {})
        with self._lock:
            self._refresh_watch()
            parted = self._was_parted(step)
        for row in rows:
            row["parts"] = dict(row["parts"] or ())
            row["flags"] = completion_flags(row, learned, parted)
        return sorted(rows, key=lambda row: row["sample"])

    def _of_file(self, path: Path) -> list[GroupSummary]:
        stat = path.stat()
        mark = (stat.st_mtime_ns, stat.st_size)
        known = self._summaries.get(path)
        if known is None or known[0] != mark:
            if len(self._summaries) >= _CACHED_FILES:
                self._summaries.pop(next(iter(self._summaries)))
            known = self._summaries[path] = (mark, self._summarised(path))
        return known[1]

    def _summarised(self, path: Path) -> list[GroupSummary]:
        rows = pq.read_table(path, columns=list(_LIGHT)).to_pylist()
        learned = learned_parts(description(self.stage).get("config") or {})
        by_group: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            row["parts"] = dict(row["parts"] or ())
            by_group.setdefault(row["group"], []).append(row)
        parted = self._was_parted(int(path.stem[5:]))
        return [_summary(group, learned, parted) for group in by_group.values()]

    def _refresh_watch(self) -> None:
        rows, restarted = self._watch.new_rows()
        if restarted:
            self._parted = []
        said = [(row["step"], row["watch/parted"] == 1) for row in rows if "watch/parted" in row]
        self._parted += said
        if restarted or said:
            self._summaries.clear()  # their flags may be others now

    def _was_parted(self, step: int) -> bool:
        before = bisect_right(self._parted, step, key=lambda check: check[0])
        return before > 0 and self._parted[before - 1][1]


def _summary(rows: Sequence[Mapping[str, Any]], learned: Collection[str], parted: bool) -> GroupSummary:
    flags = Counter(flag for row in rows for flag in completion_flags(row, learned, parted))
    rewards = [row["reward"] for row in rows]
    if not has_signal(rewards):
        flags[NO_SIGNAL] = len(rows)
    first = rows[0]
    return GroupSummary(
        step=first["step"],
        group=first["group"],
        problem_id=first["problem_id"],
        domain=first["domain"],
        language=first["language"],
        question=first["question"],
        rewards=rewards,
        passed=sum(row["verdict"] == "pass" for row in rows),
        flags=dict(flags),
    )

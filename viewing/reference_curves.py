"""The file of a stage's expected curves (`recipes/tiny/curves/zero.json`), and a running stage beside it."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from viewing.bands import Band, Curve, Departure, departure
from viewing.log_columns import LogColumns
from viewing.runs import METRICS, read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a stage is expected to log, and under which settings that was seen."""

    config: Mapping[str, Any]  # of the stage, without settings that say only how it is run
    runs: Sequence[Mapping[str, Any]]  # seed, created, content_hash of each run behind it
    bands: Mapping[str, Band] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        bands = {name: _short(asdict(band)) for name, band in self.bands.items()}
        data = {"runs": self.runs, "config": self.config, "bands": bands}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Reference | None":
        """None for a file that is not there, or is none."""
        data = read_json(path)
        try:
            bands = {name: Band(**band) for name, band in data["bands"].items()}
            return cls(config=data["config"], runs=data["runs"], bands=bands)
        except (KeyError, TypeError, AttributeError):
            return None


class CurveWatch:
    """Says once when a quantity of a stage leaves its band."""

    def __init__(self, stage: Path, reference: Reference) -> None:
        self._stage, self._reference = stage, reference
        self._log = LogColumns(stage / METRICS)
        self._seen = -1  # version of the log
        self._left: dict[str, Departure] = {}

    def departures(self) -> list[Departure]:
        """Those quantities that have left their band so far, by what the log says now."""
        if (version := self._log.refresh()) != self._seen:
            self._seen = version
            curves = {name: self._log.curve(name, points=1 << 30) for name in self._reference.bands}
            self._left = dict(departures_of(self._reference, curves))
        return list(self._left.values())

    def catch_up(self) -> None:
        """Log a warning for each new one."""
        before = set(self._left)
        for found in self.departures():
            if found.quantity not in before:
                runs = len(self._reference.runs)
                logger.warning("%s: %s, from %d runs of this recipe", self._stage.name, found, runs)


def departures_of(reference: Reference, curves: Mapping[str, Curve]) -> Iterator[tuple[str, Departure]]:
    for name, band in reference.bands.items():
        found = departure(name, band, curves[name])
        if found is not None:
            yield name, found


def changed_settings(expected: Any, actual: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of settings that differ from those expected. A key that is only in the actual ones is newer."""
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for key, value in expected.items():
            yield from changed_settings(value, actual.get(key), f"{prefix}.{key}" if prefix else key)
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for place, (before, now) in enumerate(zip(expected, actual, strict=True)):
            yield from changed_settings(before, now, f"{prefix}[{place}]")
    elif expected != actual:
        yield prefix


def _short(band: dict[str, Any]) -> dict[str, Any]:
    """Five digits are more than a band knows."""
    ends = {name: [float(f"{value:.5g}") for value in band[name]] for name in ("low", "high")}
    return {**band, "steps": [int(step) for step in band["steps"]], **ends}

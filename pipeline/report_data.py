"""Everything the report shows, read from a run folder. A file may be missing; a broken one is named, not fatal."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from pipeline.artifact import SET_ASIDE
from pipeline.curves import references_of
from pipeline.eval_compare import asked
from viewing.bands import Band
from viewing.runs import Run

REPORT = "report.html"
DIGEST_META = "r1-artifacts"  # name of the meta tag that says which artifacts a report shows

STAGE_ORDER = (
    "base",
    "zero",
    "cold_start_data",
    "cold_start_sft",
    "reasoning_rl",
    "rejection_sampling",
    "curated_sft",
    "preference_data",
    "safety_data",
    "helpful_rm",
    "safety_rm",
    "general_rl",
    "student_base",
    "distill",
    "student_rl",
    "evaluate",
)
CHECKPOINT_ORDER = ("base", "zero", "dev1", "dev2", "dev3", "r1", "student_base", "student", "student_rl")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFiles:
    """What one stage left. Empty lists and None where the file is not there."""

    name: str
    manifest: Mapping[str, Any] | None  # None: the stage is not finished
    metrics: list[dict[str, Any]] = field(default_factory=list)  # one record per step
    samples: list[dict[str, Any]] = field(default_factory=list)
    data_card: Mapping[str, Any] | None = None
    expected: Mapping[str, Band] = field(default_factory=dict)  # of a logged quantity, where its recipe has one

    @property
    def parents(self) -> Mapping[str, Mapping[str, str]]:
        """Role -> {"path", "content_hash"}."""
        return (self.manifest or {}).get("parents") or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    name: str  # the pipeline's name: that of the folder
    stages: list[StageFiles]  # in pipeline order, then others by name
    results: Mapping[str, Any] | None  # results.json of the evaluate stages
    completions: list[dict[str, Any]]  # rows of completions.parquet
    unreadable: list[str]  # one sentence per broken file

    @property
    def checkpoint_of(self) -> dict[str, str]:
        """Stage -> name its checkpoint is evaluated under ({"reasoning_rl": "dev2"}), from the evaluation's inputs."""
        names = {}
        for stage in self.stages:
            if (stage.manifest or {}).get("kind") == "scores":
                for role, parent in stage.parents.items():
                    names[PurePath(str(parent.get("path", ""))).name] = role.rpartition(".")[2]
        return names

    def label(self, stage: str) -> str:
        """The stage's name, with that of its checkpoint where it differs."""
        checkpoint = self.checkpoint_of.get(stage, stage)
        return stage if checkpoint == stage else f"{stage} ({checkpoint})"

    @property
    def checkpoints(self) -> list[str]:
        """Names in the results, in the order of the paper's table, then others as they come."""
        names = list((self.results or {}).get("checkpoints", {}))
        return [n for n in CHECKPOINT_ORDER if n in names] + [n for n in names if n not in CHECKPOINT_ORDER]


def read_run(run_folder: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        FileNotFoundError: when there is no such folder.
    """
    if not run_folder.is_dir():
        raise FileNotFoundError(f"{run_folder} is not a run folder; `r1 run RECIPE` makes one under runs/")
    reader = _Reader()
    found = _stage_folders(run_folder)
    order = [name for name in STAGE_ORDER if name in found] + sorted(found.keys() - set(STAGE_ORDER))
    evaluations = [found[name] for name in order if (found[name] / "results.json").is_file()]
    results, completions = reader.evaluations(evaluations)
    references = references_of(Run(run_folder.name, run_folder))
    expected = {name: reference.bands for name, (reference, _) in references.items() if reference}
    return RunFiles(
        name=run_folder.resolve().name,
        stages=[replace(reader.stage(found[name]), expected=expected.get(name, {})) for name in order],
        results=results,
        completions=completions,
        unreadable=reader.unreadable,
    )


def _stage_folders(run_folder: Path) -> dict[str, Path]:
    return {path.name: path for path in run_folder.iterdir() if path.is_dir() and not SET_ASIDE.search(path.name)}


def artifacts_digest(stages: Iterable[StageFiles]) -> str:
    """Hex digest of the names and content hashes of the finished stages."""
    hashes = sorted((stage.name, str(stage.manifest.get("content_hash"))) for stage in stages if stage.manifest)
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def is_current(run_folder: Path) -> bool:
    """Whether the folder has a report, and it shows the artifacts that are there now."""
    try:
        with (run_folder / REPORT).open(encoding="utf-8") as page:
            head = page.read(4096)
    except (OSError, UnicodeDecodeError):
        return False
    reader = _Reader()
    folders = _stage_folders(run_folder).items()
    stages = [StageFiles(name=name, manifest=reader.json(folder / "manifest.json")) for name, folder in folders]
    return f'name="{DIGEST_META}" content="{artifacts_digest(stages)}"' in head


class _Reader:
    def __init__(self) -> None:
        self.unreadable: list[str] = []

    def stage(self, folder: Path) -> StageFiles:
        return StageFiles(
            name=folder.name,
            manifest=self.json(folder / "manifest.json"),
            metrics=self.json_lines(folder / "metrics.jsonl"),
            samples=self.json_lines(folder / "samples.jsonl"),
            data_card=self.json(folder / "data_card.json"),
        )

    def evaluations(self, folders: Iterable[Path]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """results.json and the completions of the first one, with those checkpoints that only later ones have."""
        results: dict[str, Any] | None = None
        completions: list[dict[str, Any]] = []
        for folder in folders:
            own = self.json(folder / "results.json")
            if own is None:
                continue
            if results is None:
                results = {**own, "checkpoints": {}}
            elif asked(own) != asked(results):
                self.unreadable.append(f"{folder.name} is left out of the scores: its problems or settings are others")
                continue
            scores = own.get("checkpoints", {})
            new = scores.keys() - results["checkpoints"].keys()
            results["checkpoints"] |= {name: scores[name] for name in scores if name in new}
            completions += [r for r in self.parquet(folder / "completions.parquet") if r.get("checkpoint") in new]
        return results, completions

    def json(self, path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            self._note(path, error)
            return None
        if isinstance(data, dict):
            return data
        self._note(path, "expected a JSON object")
        return None

    def json_lines(self, path: Path) -> list[dict[str, Any]]:
        if not path.is_file():
            return []
        records, broken = [], 0
        # Not splitlines(): it also breaks at U+2028 and friends, which JSON strings may hold.
        lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
        for i, line in enumerate(lines):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                records.append(record)
            elif i < len(lines) - 1:  # a cut last line only means that the stage still runs
                broken += 1
        if broken:
            self._note(path, f"{broken} of {len(lines)} lines are not JSON objects")
        return records

    def parquet(self, path: Path) -> list[dict[str, Any]]:
        if not path.is_file():
            return []
        import pyarrow as pa  # slow to import; only a run with an evaluation needs it
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            self._note(path, error)
            return []

    def _note(self, path: Path, why: object) -> None:
        self.unreadable.append(f"{path.parent.name}/{path.name} could not be read: {why}")

"""Expected curves of recipes: which of them a stage is compared with, and how they are made from finished runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel

from data.config import OPERATIONAL
from pipeline.artifact import read_manifest
from pipeline.config import Pipeline, installed
from pipeline.errors import RecipeError
from pipeline.stages import KINDS
from viewing.bands import LEAST_POINTS, LEAST_RUNS, QUANTITIES, make_band
from viewing.log_columns import LogColumns
from viewing.reference_curves import CurveWatch, Reference, changed_settings
from viewing.runs import METRICS, Run, description, read_json

FOLDER = "curves"  # beside the recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A stage as far as comparing it needs to know: its settings, and the stages it was made from."""

    config: Mapping[str, Any]
    parents: Collection[str]


def reference_in(folder: Path, stage: str, stages: Mapping[str, Made]) -> tuple[Reference | None, str]:
    """(expected curves of a stage, "") or (None, why it has none: "" where nobody has made any).

    They hold for a stage with the settings that they were made with, made from stages of which the same is true.
    """
    reference = Reference.read(folder / f"{stage}.json")
    if reference is None:
        return None, ""
    for name in _with_ancestors(stage, stages):
        known = Reference.read(folder / f"{name}.json")
        if known and (changed := list(changed_settings(known.config, stages[name].config))):
            return None, f"{name} has other settings than the runs behind them: {', '.join(changed[:3])}"
    return reference, ""


def reference_of(pipeline: Pipeline, stage: str) -> Reference | None:
    """Expected curves of a stage that is about to run."""
    stages = {
        name: Made(config=known.record, parents=[i.stage for i in known.inputs if i.stage])
        for name, known in pipeline.stages.items()
    }
    return reference_in(pipeline.file.parent / FOLDER, stage, stages)[0]


def references_of(run: Run) -> dict[str, tuple[Reference | None, str]]:
    """The same for all stages of a run folder that have begun."""
    recipe = read_json(run.folder / "pipeline.json").get("recipe")
    if not isinstance(recipe, str):
        return {}
    stages = {}
    for name, folder in run.stages().items():
        told = description(folder)
        paths = [PurePath(str(parent.get("path"))) for parent in (told.get("parents") or {}).values()]
        stages[name] = Made(config=told.get("config") or {}, parents=[path.name for path in paths])
    folder = installed(Path(recipe)).parent / FOLDER
    return {name: reference_in(folder, name, stages) for name in stages}


def compare(run: Run) -> tuple[list[str], bool]:
    """(a sentence per stage that has expected curves, whether any of them was left)."""
    said, left = [], False
    for stage, (reference, reason) in references_of(run).items():
        if reference is None:
            said += [f"{stage}: not compared: {reason}"] if reason else []
            continue
        found = CurveWatch(run.stage(stage), reference).departures()
        left |= bool(found)
        runs = f"{len(reference.runs)} runs of this recipe"
        said += [f"{stage}: {departure} from {runs}" for departure in found]
        if not found:
            said.append(f"{stage}: as expected from {runs}: {', '.join(reference.bands)}")
    return said or ["this recipe has no expected curves; r1 save-curves makes them from finished runs"], left


def save(runs: Sequence[Run], folder: Path) -> dict[str, int]:
    """Write the expected curves of every stage that all runs have finished; returns stage -> number of bands.

    Raises RecipeError when there are fewer than LEAST_RUNS runs, or their settings differ.
    """
    if len(runs) < LEAST_RUNS:
        raise RecipeError(f"{LEAST_RUNS} finished runs or more make expected curves, got {len(runs)}")
    written = {}
    for stage in runs[0].stages():
        if not all((run.folder / stage / METRICS).exists() for run in runs):
            continue
        reference = _reference(stage, [run.folder / stage for run in runs])
        if reference is not None and reference.bands:
            reference.write(folder / f"{stage}.json")
            written[stage] = len(reference.bands)
    if not written:
        raise RecipeError(f"no stage that all of these runs have finished logged {LEAST_POINTS} points of a quantity")
    return written


def _reference(stage: str, folders: Sequence[Path]) -> Reference | None:
    manifests = [read_manifest(folder) for folder in folders]
    finished = [manifest for manifest in manifests if manifest is not None]
    if len(finished) < len(folders) or finished[0].stage_kind not in KINDS:
        return None
    model = KINDS[finished[0].stage_kind].config_class()
    configs = [_without_operational(model, manifest.config) for manifest in finished]
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        if changed := list(changed_settings(configs[0], config)):
            raise RecipeError(f"{folder} has other settings than {folders[0]}: {', '.join(changed[:3])}")
    if len({manifest.seed for manifest in finished}) < len(finished):
        raise RecipeError(f"{stage}: two of the runs have the same seed, so their curves say nothing about chance")
    logs = [LogColumns(folder / METRICS) for folder in folders]
    for log in logs:
        log.refresh()
    curves = {name: [log.curve(name, points=1 << 30) for log in logs] for name in QUANTITIES}
    bands = {name: band for name, found in curves.items() if (band := make_band(found)) is not None}
    told = [{"seed": m.seed, "created": m.created, "content_hash": m.content_hash} for m in finished]
    return Reference(config=configs[0], runs=told, bands=bands)


def _without_operational(model: type[BaseModel], config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in config.items():
        field = model.model_fields.get(key)
        if field is None or OPERATIONAL in field.metadata:  # a key of an older version says nothing now
            continue
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping)
        kept[key] = _without_operational(inner, value) if nested else value  # type: ignore[arg-type]
    return kept


def _with_ancestors(stage: str, stages: Mapping[str, Made]) -> list[str]:
    found = [stage]
    for name in found:
        found += [parent for parent in stages[name].parents if parent in stages and parent not in found]
    return found

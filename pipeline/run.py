"""Walk the stages: skip what is made, resume what was cut off, make the rest, refuse what does not fit."""

import json
import logging
import os
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.running import running
from pipeline import provenance
from pipeline.artifact import (
    ERROR_LOG,
    PLAN,
    HashCache,
    Manifest,
    hash_payload,
    payload_files,
    read_manifest,
    sync_payload,
    write_json,
)
from pipeline.clock import StageClock
from pipeline.config import Pipeline, Stage
from pipeline.curves import reference_of
from pipeline.errors import RecipeError, did_you_mean, stage_errors
from pipeline.lock import hold
from pipeline.mirror import copy_if_asked
from pipeline.placement import placed
from pipeline.progress import Progress
from pipeline.redo import forget, move_aside, read_redo
from pipeline.report_data import REPORT, is_current
from pipeline.shared_check import check_shared
from pipeline.stages import KINDS, StageKind
from pipeline.state import Standing, State, parent_hashes, standing_of, survey
from training.stage import StageContext, StageError
from viewing.tracking import tracking

PIPELINE_FILE = "pipeline.json"  # in the run folder: which stages there are, for status and report
_RESUME = "; run the same command again to resume it"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do: the standing of every stage, and which ones take part."""

    pipeline: Pipeline
    standings: dict[str, Standing]
    chosen: list[str]
    asked: tuple[str, ...]  # stages the user wants made again

    @property
    def redo(self) -> list[str]:
        """Those of them that are still to be moved aside."""
        return [name for name in self.asked if self.standings[name].state is State.REDO]

    @property
    def refused(self) -> list[str]:
        return [name for name in self.chosen if self.standings[name].state is State.REFUSED]


def make_plan(pipeline: Pipeline, redo: Sequence[str] = (), redo_from: Sequence[str] = ()) -> Plan:
    """Survey the run folder. Writes nothing. Raises RecipeError for an unknown stage name."""
    return _plan(pipeline, redo, redo_from, HashCache(_hash_file(pipeline)))


def _plan(pipeline: Pipeline, redo: Sequence[str], redo_from: Sequence[str], hashes: HashCache) -> Plan:
    again = read_redo(pipeline.folder, _stages_to_redo(pipeline, redo, redo_from))
    chosen = [pipeline.only] if pipeline.only else list(pipeline.stages)
    standings = survey(pipeline, hashes, again.waiting, again.begun)
    return Plan(pipeline=pipeline, standings=standings, chosen=chosen, asked=again.asked)


def run(
    pipeline: Pipeline,
    *,
    redo: Sequence[str] = (),
    redo_from: Sequence[str] = (),
    progress: Progress | None = None,
    kinds: Mapping[str, StageKind] = KINDS,
) -> list[str]:
    """Make every stage that is not made; returns the names of those it made.

    Raises RecipeError before anything starts when a stage is refused, StageError when a stage fails.
    """
    shown = progress or Progress(pipeline)
    with hold(pipeline.folder):
        hashes = HashCache(_hash_file(pipeline))
        plan = _plan(pipeline, redo, redo_from, hashes)
        _check_startable(plan)
        check_shared(pipeline, [name for name in plan.chosen if plan.standings[name].state is not State.MADE])
        write_json(pipeline.folder / PIPELINE_FILE, _summary(pipeline))
        move_aside(pipeline.folder, plan.asked, plan.redo)
        standings, made = dict(plan.standings), []
        with shown:
            for name in plan.chosen:
                stage = pipeline.stages[name]
                parents = parent_hashes(stage, standings, hashes)
                standing = standing_of(pipeline, stage, parents, hashes)  # parents may have come out differently
                if standing.state is State.REFUSED:
                    raise RecipeError(f"stage '{name}' is refused: {standing.reason}")
                if standing.state is State.MADE:
                    shown.skip(name, _wall_time(stage.folder))
                    standings[name] = standing
                    continue
                resumed = standing.state is State.RESUME
                shown.start(name, resumed=resumed)
                manifest = _make(stage, parents, kinds[stage.kind], shown, hashes, pipeline, resumed)
                hashes.save()
                shown.finish(name, manifest.wall_time_s)
                copy_if_asked(stage.folder, pipeline.cluster.mirror)
                standings[name] = Standing(state=State.MADE, content_hash=manifest.content_hash)
                made.append(name)
        hashes.save()
        forget(pipeline.folder, plan.chosen)
    return made


def _stages_to_redo(pipeline: Pipeline, redo: Sequence[str], redo_from: Sequence[str]) -> list[str]:
    for name in (*redo, *redo_from):
        if name not in pipeline.stages:
            raise RecipeError(f"--redo: {pipeline.file} has no stage '{name}'{did_you_mean(name, pipeline.stages)}")
        if pipeline.only and name != pipeline.only:
            raise RecipeError(f"--redo {name}: only stage '{pipeline.only}' runs here; run the pipeline instead")
    if pipeline.only:
        return [pipeline.only] if redo or redo_from else []
    again, downstream = set(redo), set(redo_from)
    for name, stage in pipeline.stages.items():  # parents come first
        if any(item.stage in downstream for item in stage.inputs):
            downstream.add(name)
    return [name for name in pipeline.stages if name in again | downstream]


def _check_startable(plan: Plan) -> None:
    problems = [f"stage '{name}' is refused: {plan.standings[name].reason}" for name in plan.refused]
    only = plan.pipeline.only
    for item in plan.pipeline.stages[only].inputs if only else ():
        parent = plan.standings[item.stage] if item.stage else None
        if parent is not None and parent.state is not State.MADE:
            why = f" ({parent.reason})" if parent.reason else ""
            problems.append(
                f"stage '{only}' needs '{item.stage}', which is not made in {plan.pipeline.folder}: "
                f"{parent.state}{why}; run the pipeline, or make '{item.stage}' first"
            )
    if problems:
        raise RecipeError(dict.fromkeys(problems))


def _make(
    stage: Stage,
    parents: Mapping[str, str | None],
    kind: StageKind,
    shown: Progress,
    hashes: HashCache,
    pipeline: Pipeline,
    resumed: bool,
) -> Manifest:
    """Run one stage in its folder and write its manifest."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    recorded = {
        item.role: {"path": _from_artifact(item.path, stage.folder), "content_hash": str(parents[item.role])}
        for item in stage.inputs
    }
    identity = {"stage_kind": stage.kind, "config": stage.record, "seed": stage.seed, "parents": recorded}
    attempts = _begin(stage, identity, resumed)
    clock = StageClock(stage.folder, lambda event: shown.event(stage.name, event))
    context = StageContext(
        name=stage.name,
        inputs={item.role: item.path.resolve() for item in stage.inputs},  # absolute: workers may start elsewhere
        output=stage.folder.resolve(),
        seed=stage.seed,
        report=clock.report,
    )
    try:
        with (
            tracking(stage.folder, pipeline.name, pipeline.tracking, reference_of(pipeline, stage.name)),
            stage_errors(f"stage '{stage.name}' failed", stage.folder / ERROR_LOG, _RESUME),
            running(context.output, pipeline.cluster, clock.last_event) as here,
            placed(here, stage.config, context.inputs),
        ):
            kind.run_function()(stage.config, context)
    except StageError as error:
        clock.failed(error)
        raise
    finally:
        with suppress(OSError):  # a full disk, of which the error tells
            clock.save()
    if not payload_files(stage.folder):
        raise StageError(f"stage '{stage.name}' failed: it left nothing in {stage.folder}")
    sync_payload(stage.folder)
    content_hash, files = hash_payload(stage.folder, hashes)
    stats = _read_json(stage.folder / "stats.json")
    manifest = Manifest(
        kind=stage.leaves,
        stage=stage.name,
        **identity,
        content_hash=content_hash,
        files=files,
        **attempts[-1],
        earlier_versions=attempts[:-1],
        device=str(stats.pop("device", "") or provenance.device()),
        wall_time_s=round(clock.seconds(), 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        counts=stats,
    )
    manifest.write(stage.folder)
    return manifest


def _begin(stage: Stage, identity: Mapping[str, Any], resumed: bool) -> list[dict[str, Any]]:
    """Write down what the stage is made from, and by which versions; returns those of its attempts, this one last.

    Attempts of the same versions in a row count as one. A change since the last attempt is reported in the log.
    """
    plan = (_read_json(stage.folder / PLAN) if resumed else {}) or {"stage": stage.name, **identity}
    attempts = list(plan.get("attempts", []))
    versions = provenance.versions() | provenance.reward_versions(stage.config)
    now = {"code_version": provenance.code_version(), "versions": versions}
    changes = changed_versions(attempts[-1], now) if attempts else []
    if changes:
        sentence = "stage '%s' goes on with other versions than before: %s; its manifest will list both"
        logger.warning(sentence, stage.name, ", ".join(changes))
    elif attempts:
        attempts.pop()
    attempts.append(now)
    write_json(stage.folder / PLAN, {**plan, "attempts": attempts})
    return attempts


def changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """["code 3f2a91c07d11 -> 88e0b14a2c5d", "torch 2.13.0 -> 2.13.1"]; another commit of the same code is no change."""
    old, new = ({"code": made["code_version"]["sources"][:12], **made["versions"]} for made in (before, now))
    names = dict.fromkeys([*old, *new])
    return [f"{n} {old.get(n, 'none')} -> {new.get(n, 'none')}" for n in names if old.get(n) != new.get(n)]


def write_report(pipeline: Pipeline, made: Sequence[str]) -> Path:
    """The run's report: written again when a stage was made or when it is not of the artifacts there are now.

    Returns its path.
    """
    if not made and is_current(pipeline.folder):
        return pipeline.folder / REPORT
    try:
        return import_module("pipeline.report").write_report(pipeline.folder)
    except Exception as error:  # the artifacts are whole: say so instead of ending a long run with a traceback
        log = pipeline.folder / ".report_error.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        raise StageError(
            f"every stage is made, but the report could not be written: {type(error).__name__}: {error} "
            f"(traceback in {log}); r1 report {pipeline.folder} tries again"
        ) from error


def only_stage(pipeline: Pipeline, name: str) -> Pipeline:
    """The same pipeline, of which one stage is to run."""
    if name not in pipeline.stages:
        raise RecipeError(f"--only: {pipeline.file} has no stage '{name}'{did_you_mean(name, pipeline.stages)}")
    return replace(pipeline, only=name)


def _summary(pipeline: Pipeline) -> dict[str, Any]:
    return {
        "name": pipeline.name,
        "seed": pipeline.seed,
        "recipe": str(pipeline.file),
        "stages": {
            name: {"kind": stage.kind, "leaves": stage.leaves, "inputs": {i.role: i.written for i in stage.inputs}}
            for name, stage in pipeline.stages.items()
        },
    }


def _from_artifact(path: Path, artifact: Path) -> str:
    """Relative within the run folder, so that a run can be moved; absolute outside it."""
    inside = path.resolve().is_relative_to(artifact.parent.resolve())
    return Path(os.path.relpath(path, artifact)).as_posix() if inside else str(path.resolve())


def _hash_file(pipeline: Pipeline) -> Path:
    return pipeline.folder / ".hashes.json"


def _wall_time(folder: Path) -> float:
    manifest = read_manifest(folder)
    return manifest.wall_time_s if manifest else 0.0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}

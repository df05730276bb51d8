"""`r1 doctor RUN`: where a run stands, what went wrong, why it stalled, and what to do next. Reads files alone."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.running import MEMORY, STALLS
from data.durable import full_disk
from fp8.config import AUDIT
from pipeline.clock import PROGRESS_FILE, read_progress
from pipeline.errors import printable
from pipeline.lock import holder
from pipeline.progress import duration
from pipeline.run import PIPELINE_FILE
from pipeline.stall_causes import awaited, causes
from pipeline.status import StageStatus, status
from training.run_log import METRICS, read_log

_SHOWN_STALLS = 3  # the last ones of a stage
_FAILURES = ("_errors", "_timeouts", "_unreadable")  # ends of reward/ metrics that count what could not be judged


def diagnose(run: Path) -> Iterator[str]:
    """Lines of text about a run. Raises RecipeError where `run` is no run folder."""
    stages, writer = status(run), holder(run)
    made = sum(stage.state == "made" for stage in stages)
    yield f"{run}: {made} of {len(stages)} stages made" + (f"; process {writer} is at it" if writer else "")
    for stage in stages:
        if stage.state != "to make":
            yield from _about(run / stage.name, stage)
    yield ""
    yield f"next: {_next(run, stages, writer)}"


def _about(folder: Path, stage: StageStatus) -> Iterator[str]:
    progress, facts = read_progress(folder), [stage.state]
    if stage.step is not None:
        facts.append(f"step {stage.step}" + (f" of {stage.total_steps}" if stage.total_steps else ""))
    if stage.resumes_from is not None:
        facts.append(f"goes on from step {stage.resumes_from}")
    if stage.wall_time_s is not None:
        facts.append(f"{duration(stage.wall_time_s)} of work")
    if progress.get("starts", 1) > 1:
        facts.append(f"started {progress['starts']} times")
    if stage.state == "running" and (folder / PROGRESS_FILE).exists():
        facts.append(f"last heard of {duration(time.time() - (folder / PROGRESS_FILE).stat().st_mtime)} ago")
    yield f"\n{stage.name} ({stage.kind}): {', '.join(facts)}"
    if stage.state != "made" and (said := (progress.get("error") or {}).get("said")):
        yield f"  last error ({progress['error'].get('at')}): {printable(said)}"
    elif stage.state == "cut off":
        phase = progress.get("event", {}).get("phase", "before the first step")
        full = full_disk(folder)  # where no error could be written down
        yield f"  {'it ended' if full else 'it was killed'} in the phase '{phase}'{full and f', and {full}; make room'}"
    yield from (f"  {line}" for line in (*_precisions(folder), *_left_out(folder), *_memory(folder), *_stalls(folder)))


def _precisions(folder: Path) -> Iterator[str]:
    """What the weights are multiplied in, where FP8 is among it."""
    if not (folder / AUDIT).exists():
        return
    try:
        layers = json.loads((folder / AUDIT).read_text(encoding="utf-8"))
        total = sum(layer["parameters"] for layer in layers)
        for precision in dict.fromkeys(layer["computes_in"] for layer in layers):
            own = [layer for layer in layers if layer["computes_in"] == precision]
            names = ", ".join(dict.fromkeys(layer["module"].rpartition(".")[2] for layer in own))
            share = sum(layer["parameters"] for layer in own) / total
            yield f"computed in {precision}: {share:.1%} of the weights, {len(own)} layers: {printable(names)}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        yield f"{folder / AUDIT} cannot be read ({type(error).__name__}: {error})"


def _left_out(folder: Path) -> Iterator[str]:
    """What was sampled and could not be trained on."""
    total: Counter[str] = Counter()
    for row in read_log(folder / METRICS):
        counted = {k: v for k, v in row.items() if k.startswith("experience/") or k.endswith(_FAILURES)}
        total.update({key: value for key, value in counted.items() if isinstance(value, int | float)})
    sampled, unscorable = total["experience/sampled"], total["experience/unscorable"]
    if sampled:
        yield f"completions: {sampled:.0f} sampled, {unscorable:.0f} unscorable ({unscorable / sampled:.1%})"
    if total["experience/prompts_too_long"]:
        yield f"prompts that fill the context: {total['experience/prompts_too_long']:.0f}"
    failures = {key.removeprefix("reward/"): n for key, n in total.items() if key.endswith(_FAILURES) and n}
    if failures:
        yield "judgements that failed: " + ", ".join(f"{name} {n:.0f}" for name, n in failures.items())


def _memory(folder: Path) -> Iterator[str]:
    """The largest process of each class, over all looks."""
    largest: dict[str, float] = {}
    for line in _lines(folder / MEMORY):
        for name, sizes in line.get("actors", {}).items():
            largest[name] = max(largest.get(name, 0.0), sizes["largest_pss_mib"])
    if largest:
        yield "most memory: " + ", ".join(f"{name} {mib:,.0f} MiB" for name, mib in sorted(largest.items()))


def _stalls(folder: Path) -> Iterator[str]:
    paths = sorted((folder / STALLS).glob("*.json"))
    if len(paths) > _SHOWN_STALLS:
        yield f"{len(paths)} stalls, of which the last {_SHOWN_STALLS}:"
    for path in paths[-_SHOWN_STALLS:]:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            yield from _explained(path, report)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield f"{path} cannot be read ({type(error).__name__}: {error})"


def _explained(path: Path, report: dict[str, Any]) -> Iterator[str]:
    who = ", ".join(f"{actor['name']} {actor['pid']}" for actor in awaited(report)) or "processes that are gone"
    yield f"stalled since {report['since']}: {report['phase']}, {report['deadline_s']:.0f} s without {who}"
    for cause in causes(report):
        yield f"  {printable(cause.says)}"
        yield f"    -> {printable(cause.do)}"
    yield f"  all of it: {path.with_suffix('.txt')}"


def _next(run: Path, stages: list[StageStatus], writer: int | None) -> str:
    recipe = json.loads((run / PIPELINE_FILE).read_text(encoding="utf-8")).get("recipe", "")
    damaged = [stage.name for stage in stages if stage.state == "damaged"]
    unfinished = [stage.name for stage in stages if stage.state != "made"]
    if writer:
        return f"it runs; r1 status {run} says where it is"
    if damaged:
        return f"the artifact of {damaged[0]} is damaged: the same command with --redo-from {damaged[0]} makes it again"
    if unfinished:
        failed = read_progress(run / unfinished[0]).get("error") or {}
        first = f"mend the last error of {unfinished[0]}; then " if failed.get("retry") is False else ""
        return f"{first}the command that started it (r1 run {recipe} ...) goes on with {unfinished[0]}"
    return f"nothing: everything is made; r1 report {run} shows it"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # a half-written last line

"""Tables for people: the plan of a dry run, the status of a run, the meaning of keys."""

import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.explain import KeyDoc
from pipeline.progress import duration
from pipeline.run import Plan
from pipeline.stages import KINDS, Many, StageKind
from pipeline.status import StageStatus

_STATUS_METRICS = 4  # last metrics shown per stage


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def print_plan(plan: Plan, *, verbose: bool = False) -> None:
    """What a run would do; with `verbose` also every setting of each stage."""
    console = _console()
    table = _table("stage", "kind", "inputs", "output", "status")
    for name in plan.chosen:
        stage, standing = plan.pipeline.stages[name], plan.standings[name]
        inputs = ", ".join(f"{item.role}={item.stage or item.path}" for item in stage.inputs)
        state = f"{standing.state}: {standing.reason}" if standing.reason else str(standing.state)
        table.add_row(*map(escape, (name, stage.kind, inputs, str(stage.folder), state)))
    console.print(f"{plan.pipeline.name}, seed {plan.pipeline.seed}, in {plan.pipeline.folder}", markup=False)
    console.print(table)
    for name in plan.chosen if verbose else ():
        stage = plan.pipeline.stages[name]
        console.print(f"\n{name} ({stage.kind}, {stage.recipe}, seed {stage.seed})", markup=False)
        for line in _settings(stage.record):
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _settings(record: Mapping, prefix: str = "") -> list[str]:
    lines = []
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            lines.extend(_settings(value, f"{prefix}{key}."))
        else:
            lines.append(f"{prefix}{key}: {json.dumps(value, ensure_ascii=False)}")
    return lines


def print_status(stages: Sequence[StageStatus]) -> None:
    table = _table("stage", "kind", "state", "step", "wall time", "last metrics")
    for stage in stages:
        total = f"/{stage.total_steps}" if stage.total_steps else ""
        ahead = f", goes on from {stage.resumes_from}" if stage.resumes_from is not None else ""
        metrics = "  ".join(f"{key} {value:.4g}" for key, value in list(stage.metrics.items())[:_STATUS_METRICS])
        table.add_row(
            stage.name,
            stage.kind,
            stage.state,
            f"{stage.step}{total}{ahead}" if stage.step is not None else "",
            duration(stage.wall_time_s) if stage.wall_time_s is not None else "",
            escape(metrics),
        )
    _console().print(table)


def print_meanings(meanings: Sequence[tuple[KeyDoc, list[str]]]) -> None:
    for i, (doc, kinds) in enumerate(meanings):
        lines = [doc.key, f"  {doc.description}", f"  type: {doc.type}", f"  default: {doc.default}"]
        lines += [f"  range: {doc.range}"] if doc.range else []
        lines.append(f"  in: {', '.join(kinds)}")
        print(("\n" if i else "") + "\n".join(lines))


def print_keys(place: str, keys: Sequence[tuple[KeyDoc, bool]]) -> None:
    """One line for each key of a kind, or of a mapping in it."""
    table = _table("key", "default", "meaning")
    for doc, has_keys in keys:
        table.add_row(*map(escape, (f"{doc.key} ..." if has_keys else doc.key, doc.default, doc.description)))
    _console().print(table)
    kind, mappings = place.partition(".")[0], [doc.key for doc, has_keys in keys if has_keys]
    if mappings:
        print(f"\n...: has keys of its own, which are listed by e.g. r1 explain {kind}.{mappings[0]}")


def print_kinds(kinds: Mapping[str, StageKind] = KINDS) -> None:
    table = _table("stage kind", "takes", "leaves", "what it does")
    for name, kind in kinds.items():
        roles = (
            f"{'perhaps ' if r in kind.optional else ''}{r}: {f'several {k.kind}s' if isinstance(k, Many) else k}"
            for r, k in kind.roles.items()
        )
        what = (kind.config_class().__doc__ or "").strip().split("\n")[0]
        table.add_row(name, ", ".join(roles) or "nothing", kind.leaves, escape(what))
    _console().print(table)

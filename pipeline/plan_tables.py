"""The tables of `r1 plan`."""

import json
import shutil
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.plan_command import PipelinePlan
from planning.devices import GIB
from planning.plan import PHASES, StagePlan

_WIDE = 100  # columns below which the table leaves out what --json has
_LEAST_SHARE = 0.005  # phases below this share of a stage are not named


def print_plan(made: PipelinePlan, *, verbose: bool) -> None:
    console = Console(highlight=False, width=None if Console().is_terminal else max(80, _columns()))
    console.print(f"{made.name} on {made.cluster}", markup=False)
    planned = [stage for stage in made.stages if stage.model]
    console.print(_stages(made, planned, narrow=console.width < _WIDE))
    _totals(console, made)
    for stage in planned:
        _remarks(console, made, stage, verbose)
    _idle(console, made)
    _assumptions(console, made, planned, verbose)
    if made.absent:
        console.print(
            f"models or data sets that are not here: {len(made.absent)}; published shapes and assumed sizes stand in",
            markup=False,
        )


def _columns() -> int:
    return shutil.get_terminal_size((100, 25)).columns


def _stages(made: PipelinePlan, planned: list[StagePlan], narrow: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("stage", no_wrap=True)
    last = "device-h" if made.devices > 1 else "step"
    for heading in ("memory", "sampled", "trained", *(() if narrow else ("FLOPs",)), "time", last):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("most of it" if narrow else "of it", overflow="fold")
    for stage in planned:
        step = span(stage.step_s) if stage.steps else ""
        last = count(made.device_hours(stage.total_s)) if made.devices > 1 else step
        cells = [escape(stage.name), _memory(stage), *(count(stage.tokens.get(t, 0)) for t in ("sampled", "trained"))]
        cells += [] if narrow else [f"{stage.flops:.1e}"]
        table.add_row(*cells, span(stage.total_s), last, _phases(stage, 1 if narrow else len(PHASES)))
    return table


def _memory(stage: StagePlan) -> str:
    shown = size(stage.peak.total)
    return shown if stage.fits else f"[red]{shown}![/]"


def _phases(stage: StagePlan, most: int) -> str:
    """The phases that take most, in their order."""
    longest = sorted(stage.seconds, key=lambda phase: -stage.seconds[phase])[:most]
    spent = [(phase, stage.seconds[phase] / stage.total_s) for phase in PHASES if phase in longest]
    return ", ".join(f"{phase} {share:.0%}" for phase, share in spent if share > _LEAST_SHARE)


def _totals(console: Console, made: PipelinePlan) -> None:
    hours = made.device_hours(made.total_s)
    cost = f", {made.price * hours:,.0f} at {made.price:g} an hour" if made.price is not None else ""
    per_device = f", {hours:,.0f} device-hours on {made.devices} devices" if made.devices > 1 else ""
    console.print(f"in all {span(made.total_s)}{per_device}{cost}", markup=False)


def _remarks(console: Console, made: PipelinePlan, stage: StagePlan, verbose: bool) -> None:
    over = [moment for moment, memory in stage.moments.items() if not memory.fits(stage.room)]
    lines = [f"{moment}: {memory}" for moment, memory in stage.moments.items() if verbose or moment in over]
    if not stage.fits:
        change = made.changes.get(stage.name)
        with_it = f"the stage does with {change}" if change else "no change of settings that was tried mends it"
        verb = "does" if len(over) == 1 else "do"
        lines.append(f"{' and '.join(over)} {verb} not fit in {size(stage.room)}: {with_it}")
    lines += stage.notes
    if lines:
        console.print(f"\n{stage.name} ({stage.model})", markup=False)
        for line in lines:
            console.print(f"  {line}", markup=False)


def _idle(console: Console, made: PipelinePlan) -> None:
    idle = [stage.name for stage in made.stages if not stage.model]
    if idle:
        console.print(f"\nwithout a model of ours to run, so not counted: {', '.join(idle)}", markup=False)


def _assumptions(console: Console, made: PipelinePlan, planned: list[StagePlan], verbose: bool) -> None:
    fields = type(made.assumed).model_fields
    asked = {name for stage in planned for name in stage.taken_for_granted}
    changed = made.assumed.changed()
    names = [name for name in fields if verbose or name in asked or name in changed]
    if not names:
        return
    console.print("\nassumed (--assume NAME=VALUE; -v has all):", markup=False)
    for name in names:
        set_here = " (set here)" if name in changed else ""
        console.print(f"  {name} = {getattr(made.assumed, name)}{set_here}", markup=False)
        if verbose:
            console.print(f"    {fields[name].description}", markup=False)


def print_calibration(found: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.model_dump(), indent=1))
        return
    from planning.calibration import calibration_file

    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "processor": f"{found.machine.get('cpu')}, {found.cores} cores, {size(found.memory_bytes)}",
        "large product, one thread": f"{found.gemm_flops / 1e9:.1f} GFLOP/s",
        "all cores to one thread": f"{found.thread_gain:.2f}{'' if found.thread_gain_measured else ' (a guess: busy)'}",
        "copy": f"{found.copy_bytes_per_s / 1e9:.1f} GB/s",
        "linear layers in training": _rate(found.training.dense_flop),
        "experts in training": _rate(found.training.expert_flop),
        "a layer, forward": _fixed(found.forward),
        "a layer, decoding": _fixed(found.decoding),
        "a completion, decoding": f"{found.decoding.slot * 1e6:.0f} us a token",
        "a trainer's process": size(found.process_bytes),
        "memory of a pass": f"{found.heap_factor:.2f} times its tensors",
        "fit of the constants": ", ".join(f"{name} {error:.0%}" for name, error in found.residuals.items()),
        "load of the machine": f"{found.machine.get('load_average')}",
    }
    for row in rows.items():
        table.add_row(*row)
    console.print(table)
    console.print(f"stored in {calibration_file()}", markup=False)


def _rate(seconds_per_flop: float) -> str:
    return f"{1e-9 / seconds_per_flop:.1f} GFLOP/s" if seconds_per_flop else "not told apart"


def _fixed(costs: Any) -> str:
    return f"{costs.layer * 1e6:.0f} us, {costs.moe_layer * 1e6:.0f} more with experts"


def size(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / 2**20:.0f} MiB"


def count(number: float) -> str:
    """1.2B, 340K, 12: three digits at most."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}" if number else ""


def span(seconds: float) -> str:
    """A duration in the unit that fits: 0.25 s, 12.3 min, 4.5 h, 8.2 d."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"

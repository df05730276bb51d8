"""`r1 plan`: what a recipe will take on a cluster, before it runs."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import RecipeError
from pipeline.yaml_source import parse_yaml

if TYPE_CHECKING:
    from pipeline.config import Pipeline
    from planning.assumptions import Assumptions
    from planning.fit import Change
    from planning.machines import Machine
    from planning.plan import StagePlan

_PAPER = "paper"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """The plans of all stages, and what they rest on."""

    name: str
    cluster: str
    devices: int  # held for as long as the pipeline runs
    stages: "list[StagePlan]"
    changes: "dict[str, Change | None]"  # of stages that do not fit
    assumed: "Assumptions"
    price: float | None = None  # per device and hour
    absent: list[str] = field(default_factory=list)

    def device_hours(self, seconds: float) -> float:
        return seconds * self.devices / 3600

    @property
    def total_s(self) -> float:
        return sum(stage.total_s for stage in self.stages)


def plan(
    recipe: Annotated[Path | None, typer.Argument(help="pipeline.yaml, or the recipe of one stage")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as r1 run takes them")] = None,
    cluster: Annotated[str, typer.Option(help="nodes x devices x name, as 64x8xH800; local: this machine")] = "local",
    assume: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, e.g. completion_share=0.5; paper: as DeepSeek serves")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of one device for an hour, in any currency")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="measure this machine first; a minute or two")] = False,
    simulate: Annotated[
        Path | None, typer.Option(help="write a page on how asynchronous RL scales over 64 to 4,096 devices")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="everything as JSON on stdout")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="memory by part, and every assumption")] = False,
) -> None:
    """Say what a recipe will take: memory per device, tokens, time by phase and cost. Nothing is run."""
    from pipeline.plan_tables import print_calibration, print_plan

    if calibrate:
        found = measure_machine()
        if recipe is None:
            print_calibration(found, as_json)
            return
    if recipe is None:
        raise RecipeError("say what to plan: r1 plan RECIPE; without one there is only r1 plan --calibrate")
    assumed = read_assumptions(assume or ())
    pipeline, absent = read_pipeline(recipe, overrides or ())
    made = make_plan(pipeline, cluster, assumed, price, absent)
    if as_json:
        print(json.dumps(as_data(made), indent=1))
    else:
        print_plan(made, verbose=verbose)
    if simulate is not None:
        from pipeline.plan_scaling import write_scaling

        print(f"scaling: {write_scaling(pipeline, cluster, assumed, simulate)}", file=sys.stderr)


def read_pipeline(recipe: Path, overrides: Iterable[str]) -> "tuple[Pipeline, list[str]]":
    """The pipeline, and what of its user's is not there. Raises RecipeError."""
    from pipeline.config import load

    absent: list[str] = []
    return load(recipe, list(overrides), absent=absent), absent


def make_plan(
    pipeline: "Pipeline", cluster: str, assumed: "Assumptions", price: float | None = None, absent: Iterable[str] = ()
) -> PipelinePlan:
    """Raises RecipeError for a cluster or a model that nothing is known of."""
    from pipeline.plan_requests import Requests
    from planning.fit import smallest_change
    from planning.plan import plan_stage

    machine, name = open_machine(cluster, assumed)
    requests, stages, changes = Requests(pipeline), [], {}
    for stage, request in requests:
        planned = plan_stage(request, machine, assumed)
        requests.learnt(stage, planned.leaves)
        stages.append(planned)
        if not planned.fits:
            changes[stage.name] = smallest_change(request, machine, assumed)
    return PipelinePlan(
        name=pipeline.name, cluster=name, devices=machine.devices, stages=stages, changes=changes, assumed=assumed,
        price=price, absent=list(absent),
    )  # fmt: skip


def read_assumptions(arguments: Iterable[str]) -> "Assumptions":
    from planning.assumptions import PAPER, Assumptions, BadAssumption

    given: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if argument == _PAPER:
            given |= PAPER
        elif not equals:
            raise RecipeError(f"--assume {argument}: write NAME=VALUE, or {_PAPER}; r1 plan RECIPE -v lists them all")
        else:
            given[name] = parse_yaml(text, f"--assume {name}").data
    try:
        return Assumptions.parse(given)
    except BadAssumption as error:
        raise RecipeError(str(error)) from None


def open_machine(cluster: str, assumed: "Assumptions") -> "tuple[Machine, str]":
    """The machine to plan for, and what to call it."""
    from planning.calibration import Calibration, calibration_file
    from planning.devices import LOCAL, UnknownCluster, parse_cluster
    from planning.machines import GpuMachine, LocalMachine

    if cluster == LOCAL:
        file = calibration_file()
        found = Calibration.read(file)
        if found is None:
            raise RecipeError(
                f"this machine has not been measured ({file} is not there, or of another version): "
                "r1 plan --calibrate does so once; or name a cluster, e.g. --cluster 8xH100"
            )
        return LocalMachine(found), f"this machine ({found.machine.get('cpu', '')}, {found.cores} cores)"
    try:
        parsed = parse_cluster(cluster)
    except UnknownCluster as error:
        raise RecipeError(str(error)) from None
    return GpuMachine(parsed, assumed), str(parsed)


def measure_machine() -> Any:
    """Measure in a process of its own, so that nothing of this one is in the figures, and store what was found."""
    import subprocess

    from planning.calibration import Calibration, calibration_file

    print("measuring this machine, one or two minutes", file=sys.stderr)
    file = calibration_file()
    done = subprocess.run([sys.executable, "-m", "planning.measure", str(file)], capture_output=True, text=True)
    found = Calibration.read(file)
    if done.returncode or found is None:
        raise RecipeError(f"the measurement failed: {done.stderr.strip().splitlines()[-1:] or ['no output']}")
    return found


def as_data(made: PipelinePlan) -> dict[str, Any]:
    """Plain data: seconds, bytes, tokens, FLOPs."""
    stages = []
    for stage in made.stages:
        change = made.changes.get(stage.name)
        stages.append(
            {
                "stage": stage.name,
                "kind": stage.kind,
                "model": stage.model,
                "devices": stage.devices,
                "steps": stage.steps,
                "flops": stage.flops,
                "tokens": dict(stage.tokens),
                "seconds": dict(stage.seconds),
                "total_s": stage.total_s,
                "step_s": stage.step_s,
                "device_hours": made.device_hours(stage.total_s),
                "memory_bytes": {moment: dict(memory.parts) for moment, memory in stage.moments.items()},
                "room_bytes": stage.room,
                "fits": stage.fits,
                "change": str(change) if change else None,
                "notes": list(stage.notes),
                "leaves": asdict(stage.leaves) if stage.leaves else None,
                "assumptions": list(stage.taken_for_granted),
            }
        )
    hours = made.device_hours(made.total_s)
    return {
        "pipeline": made.name,
        "cluster": made.cluster,
        "devices": made.devices,
        "stages": stages,
        "total_s": made.total_s,
        "device_hours": hours,
        "cost": hours * made.price if made.price is not None else None,
        "assumptions": made.assumed.model_dump(),
        "absent": made.absent,
    }

"""`r1 replay`: recorded steps of a GRPO stage again, or the place where two runs of it part."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import provenance
from pipeline.artifact import PLAN
from pipeline.errors import RecipeError, did_you_mean, stage_errors
from pipeline.run import changed_versions
from training.stage import StageContext

_MOST = 12  # differing numbers to print of one step


def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder, e.g. runs/tiny")],
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="a stage of kind grpo, e.g. zero")],
    step: Annotated[int | None, typer.Option(min=1, help="the optimizer step to take again, up to it")] = None,
    against: Annotated[Path | None, typer.Option(help="another run folder: say where the two part")] = None,
) -> None:
    """Take recorded steps again, bit for bit, or say where two runs part. Exit code 1: something differs.

    Only the trainer runs: on the batches in STAGE/groups, from the newest checkpoint before the step on.
    """
    plan, folder = _grpo_plan(run, stage), run / stage
    if (step is None) == (against is None):
        raise RecipeError("say either --step N, to take that step again, or --against RUN, to find where two runs part")
    if against is not None:
        other = _grpo_plan(against, stage)
        _print_changes(other, plan["attempts"][-1], other["attempts"][-1], "the other run")
        _compare(folder, against / stage)
        return
    assert step is not None
    _print_changes(plan, plan["attempts"][-1], _now(plan), "now")
    log = Path(".r1_replay_error.log")
    with tempfile.TemporaryDirectory(prefix="r1-replay-") as scratch, stage_errors("the replay failed", log, again=""):
        differing = _rerun(plan, folder, step, Path(scratch))
    if differing:
        raise typer.Exit(1)


def _grpo_plan(run: Path, stage: str) -> dict[str, Any]:
    """What a stage was made from. Raises RecipeError when there is no such stage, or it is of another kind."""
    file = run / stage / PLAN
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = sorted(path.parent.name for path in run.glob(f"*/{PLAN}"))
        what = f"{run} has no stage '{stage}' that was begun" if run.is_dir() else f"there is no run folder {run}"
        raise RecipeError(f"{what}{did_you_mean(stage, known)}") from None
    if plan["stage_kind"] != "grpo":
        raise RecipeError(f"'{stage}' is of kind {plan['stage_kind']}; stages of kind grpo keep what they train on")
    return plan


def _now(plan: Mapping[str, Any]) -> dict[str, Any]:
    from rl.config import GRPOConfig

    rewards = provenance.reward_versions(GRPOConfig.model_validate(plan["config"]))
    return {"code_version": provenance.code_version(), "versions": provenance.versions() | rewards}


def _print_changes(plan: Mapping[str, Any], before: dict[str, Any], after: dict[str, Any], when: str) -> None:
    changes = changed_versions(before, after)
    if changes:
        print(f"{plan['stage']}: other versions {when}, so the last digits may differ: {', '.join(changes)}")


def _rerun(plan: Mapping[str, Any], folder: Path, step: int, scratch: Path) -> bool:
    """Print how each step compares; whether any differs."""
    from cluster.actors import start_ray
    from rl.config import GRPOConfig
    from rl.rerun import rerun

    config = GRPOConfig.model_validate(plan["config"])
    if step > config.steps:
        raise RecipeError(f"--step {step}: '{folder.name}' has {config.steps} steps")
    inputs = {role: (folder / parent["path"]).resolve() for role, parent in plan["parents"].items()}
    if not inputs["policy"].is_dir():
        raise RecipeError(f"the policy that '{folder.name}' began with, {inputs['policy']}, is not there")
    context = StageContext(name=folder.name, inputs=inputs, output=scratch, seed=plan["seed"])
    start_ray()
    differing = False
    for taken in rerun(config, context, folder.resolve(), step):
        if not taken.recorded:
            raise RecipeError(f"--step {step}: '{folder.name}' has not logged step {taken.step}")
        numbers = len(taken.again) - 1  # the step itself is one
        if not taken.differing:
            print(f"step {taken.step}: as recorded, all {numbers} numbers")
            continue
        differing = True
        print(f"step {taken.step}: {len(taken.differing)} of {numbers} numbers differ")
        for name in taken.differing[:_MOST]:
            print(f"  {name}: {taken.recorded.get(name)} recorded, {taken.again[name]} now")
    return differing


def _compare(one: Path, other: Path) -> None:
    from rl.parting import first_difference

    parting, compared = first_difference(one, other)
    if parting is None and not compared:
        raise RecipeError(f"{one} and {other} have no logged step in common")
    if parting is None:
        print(f"{one} and {other} are equal in all that is recorded, up to step {compared}")
        return
    where = f" ({parting.where})" if parting.where else ""
    print(f"{one} and {other} part at step {parting.step}: {parting.what}{where}")
    print(f"  {one}: {parting.one}")
    print(f"  {other}: {parting.other}")
    print(f"  suspect {parting.suspect}; everything before it is equal")
    raise typer.Exit(1)

"""The `r1` command. Starts fast: nothing here imports torch, ray or transformers; stages import them when they run.

Exit codes: 0 done, 1 a stage failed, 2 bad input, 130 interrupted.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.running import StageStopped
from pipeline.chat_command import chat
from pipeline.doctor_command import doctor
from pipeline.errors import RecipeError, disk_errors
from pipeline.eval_command import evaluate
from pipeline.export_command import export
from pipeline.mirror_command import pull_run, push_run
from pipeline.plan_command import plan
from pipeline.replay_command import replay
from pipeline.reward_command import audit_reward, try_cases
from pipeline.sandbox_command import doctor as sandbox_doctor
from pipeline.sandbox_command import run as run_in_sandbox
from pipeline.sandbox_command import sandbox
from pipeline.sandbox_command import serve as serve_sandbox
from pipeline.serve_command import serve
from pipeline.view_command import save_curves, trace, view
from training.stage import StageError

if TYPE_CHECKING:
    from pipeline.config import Pipeline

main = typer.Typer(
    name="r1",
    help="The complete DeepSeek-R1 post-training pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def plain_errors(again: str = "") -> Iterator[None]:
    """Errors of the user and of stages as sentences on stderr, with their exit codes; never a traceback.

    `again` says how to go on after an interruption.
    """
    try:
        yield
    except RecipeError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(2) from None
    except (StageError, StageStopped) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:  # a full disk, a folder without permission
        print(f"{error}{again}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"interrupted{again}", file=sys.stderr)
        raise typer.Exit(130) from None


@main.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="pipeline.yaml, or the recipe of one stage")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. seed=1 zero.optimizer.lr=1e-4")] = None,
    only: Annotated[str, typer.Option(help="run this stage of the pipeline alone")] = "",
    redo: Annotated[list[str] | None, typer.Option(help="make this stage again; the old one is kept")] = None,
    redo_from: Annotated[list[str] | None, typer.Option(help="this stage and all that follow from it")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="with --dry-run: all settings of each stage")
    ] = False,
) -> None:
    """Run a recipe: skip what is made, resume what was cut off, make the rest."""
    resumes = "; the same command resumes"
    with plain_errors(resumes):
        from pipeline import run as runner
        from pipeline.config import load

        pipeline = load(recipe, overrides or ())
        pipeline = runner.only_stage(pipeline, only) if only else pipeline
        if dry_run:
            from pipeline.show import print_plan

            plan = runner.make_plan(pipeline, redo or (), redo_from or ())
            print_plan(plan, verbose=verbose)
            if plan.refused:
                raise RecipeError(f"nothing would be made, since these stages are refused: {', '.join(plan.refused)}")
            return
        from pipeline.progress import open_progress

        _check_models(pipeline, again=bool(redo or redo_from))
        with disk_errors(pipeline.folder, resumes):
            made = runner.run(pipeline, redo=redo or (), redo_from=redo_from or (), progress=open_progress(pipeline))
            print(f"report: {runner.write_report(pipeline, made)}")


def _check_models(pipeline: "Pipeline", again: bool) -> None:
    """Refuse engines that are not there and folders whose model nothing can load. That imports torch, so only for
    stages that may have to be made."""
    from pipeline.artifact import MANIFEST
    from pipeline.inputs import engine_problems, model_problems

    chosen = [stage for stage in pipeline.stages.values() if pipeline.only in (None, stage.name)]
    waiting = [stage for stage in chosen if again or not (stage.folder / MANIFEST).exists()]
    problems = [*engine_problems(waiting), *model_problems(waiting)]
    if problems:
        raise RecipeError(problems)


@main.command()
def status(folder: Annotated[Path, typer.Argument(metavar="RUN", help="run folder, e.g. runs/tiny")]) -> None:
    """Show where a run stands."""
    with plain_errors():
        from pipeline.show import print_status
        from pipeline.status import status as read_status

        print_status(read_status(folder))


@main.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="run folder, e.g. runs/tiny")],
    compare: Annotated[bool, typer.Option("--compare", help="with the recipe's expected curves instead")] = False,
) -> None:
    """Write the HTML report of a run again and say where it is. With --compare, exit code 1 when a curve has left."""
    with plain_errors():
        from pipeline.status import status as read_status

        read_status(folder)  # refuses what is no run folder
        if compare:
            from pipeline.view_command import print_comparison

            return print_comparison(folder)
        print(import_module("pipeline.report").write_report(folder))


@main.command()
def explain(
    key: Annotated[
        str, typer.Argument(help="e.g. grpo.optimizer.lr, or group_size; or a kind of stage, e.g. grpo")
    ] = "",
) -> None:
    """Say what a recipe key means, or which keys a kind of stage has; without either, list the kinds."""
    with plain_errors():
        from pipeline import show
        from pipeline.explain import explain as meanings_of
        from pipeline.explain import keys_of

        if not key:
            return show.print_kinds()
        meanings, keys = meanings_of(key), keys_of(key)
        show.print_meanings(meanings)
        if keys:
            print("\n" if meanings else "", end="")
            show.print_keys(key, keys)
        elif not meanings:
            print(f"{key} has no keys")


main.command()(plain_errors()(chat))
main.command()(plain_errors()(serve))
main.command()(plain_errors()(export))
main.command()(plain_errors()(doctor))
main.command("push")(plain_errors()(push_run))
main.command("pull")(plain_errors()(pull_run))
main.command()(plain_errors()(view))
main.command()(plain_errors()(trace))
main.command("save-curves")(plain_errors()(save_curves))
main.command()(plain_errors()(replay))
main.command()(plain_errors()(plan))
main.command("eval")(plain_errors()(evaluate))
sandbox.command("doctor")(plain_errors()(sandbox_doctor))
sandbox.command("run")(plain_errors()(run_in_sandbox))
sandbox.command("serve")(plain_errors()(serve_sandbox))
main.add_typer(sandbox, name="sandbox")

reward = typer.Typer(help="Try a reward on cases, or attack it with known hacks.", no_args_is_help=True)
reward.command("test")(plain_errors()(try_cases))
reward.command("audit")(plain_errors()(audit_reward))
main.add_typer(reward, name="reward")


if __name__ == "__main__":
    main()

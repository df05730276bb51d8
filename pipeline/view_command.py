"""`r1 view`: the live page of one run or several. `r1 trace`: a run's timeline for Perfetto."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from viewing.runs import Run


def view(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, e.g. runs/tiny")],
    host: Annotated[str, typer.Option(help="address to listen at; others than loopback ask for a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 takes a free one")] = 8090,
    token: Annotated[bool, typer.Option("--token", help="ask for a token on loopback too")] = False,
) -> None:
    """Show runs in a browser while they go on: curves, sampled groups, timeline, cluster. Until interrupted."""
    runs = _runs(folders)
    from pipeline.curves import references_of
    from viewing.access import Access
    from viewing.answers import Answers
    from viewing.server import make_server

    access = Access(host, with_token=token)
    try:
        server = make_server(Answers(runs, describe, references_of), access, host, port)
    except OSError as error:
        raise RecipeError(
            f"cannot listen at {host}, port {port}: {error.strerror}; --port 0 takes a free one"
        ) from None
    named = f"[{host}]" if ":" in host else host
    query = f"/?token={access.token}" if access.token else "/"
    print(f"http://{named}:{server.server_address[1]}{query} shows {', '.join(runs)}; Ctrl-C ends", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()


def trace(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="run folder, e.g. runs/tiny")],
    file: Annotated[Path, typer.Argument(help="file to write, e.g. trace.json")],
) -> None:
    """Write the timeline of a run as a trace that ui.perfetto.dev and chrome://tracing open."""
    (run,) = _runs([folder]).values()
    from viewing.trace import trace as traced

    written = traced(run)
    file.write_text(json.dumps(written), encoding="utf-8")
    print(f"{file}: {len(written['traceEvents'])} events; open it at ui.perfetto.dev")


def save_curves(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="finished runs of one recipe, by seed")],
    to: Annotated[Path, typer.Option(help="folder curves/ beside the recipe, e.g. recipes/tiny/curves")],
) -> None:
    """Make the expected curves of a recipe from finished runs of it with different seeds."""
    from pipeline.curves import save

    for stage, count in save(list(_runs(folders).values()), to).items():
        print(f"{to / stage}.json: {count} quantities")


def print_comparison(folder: Path) -> None:
    """Say how a run stands to the expected curves of its recipe; exit code 1 when it has left one."""
    from pipeline.curves import compare

    (run,) = _runs([folder]).values()
    said, left = compare(run)
    print("\n".join(said))
    if left:
        raise typer.Exit(1)


def describe(folder: Path) -> dict[str, Any]:
    """What the page says of a run folder besides its logs: who holds it, and where its stages stand."""
    from pipeline.lock import holder
    from pipeline.status import status

    try:
        stages = status(folder)
    except RecipeError:  # a folder of stages without a pipeline: its logs are shown all the same
        stages = []
    return {
        "process": holder(folder),
        "stages": [
            {"stage": s.name, "kind": s.kind, "state": s.state, "step": s.step, "total_steps": s.total_steps,
             "wall_time_s": s.wall_time_s}
            for s in stages
        ],
    }  # fmt: skip


def _runs(folders: list[Path]) -> "dict[str, Run]":
    """Raises RecipeError for a folder that holds no stage and no pipeline."""
    from viewing.runs import name_runs

    runs = name_runs(folders)
    for run in runs.values():
        if not run.stages() and not (run.folder / "pipeline.json").is_file():
            raise RecipeError(f"{run.folder} is not a run folder: it holds neither pipeline.json nor a stage")
    return runs

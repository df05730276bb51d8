"""`r1 eval`: the evaluate stage on any checkpoints, as a table. Starts fast: the stage is imported when it runs."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.chat import Layout, Template
from pipeline.checkpoint_paths import label_checkpoints
from pipeline.errors import RecipeError, near_miss, stage_errors
from pipeline.inputs import loadable_checkpoint
from pipeline.lock import hold

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.evaluate_config import EvaluateConfig


def evaluate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... [KEY=VALUE]...",
            help="folders, and evaluate settings; with --compare also files that --output wrote",
        ),
    ],
    suite: Annotated[
        str, typer.Option(help="evaluate settings: a YAML file, or one of recipes/suites, e.g. math_500")
    ] = "",
    problems: Annotated[int | None, typer.Option(help="held-out reasoning problems [default: 500]")] = None,
    samples: Annotated[int | None, typer.Option(help="completions per problem [default: 4]")] = None,
    template: Annotated[Template | None, typer.Option(help="prompt of all checkpoints [default: by name]")] = None,
    layout: Annotated[Layout | None, typer.Option(help="format of all checkpoints [default: by name]")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for the scores; completions go beside it")] = None,
    seed: Annotated[int, typer.Option(help="seed of the sampling; the problems stay the same")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="each with the first, problem by problem")] = False,
) -> None:
    """Score checkpoints on held-out problems: pass@1 and more, with 95 % intervals.

    By name: base, zero, student_base and student_rl get the plain prompt and answer tags, others the chat template.
    """
    settings = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    named = [Path(argument) for argument in arguments if argument not in settings]
    if not named:
        raise RecipeError("name at least one checkpoint folder, e.g. r1 eval runs/tiny/zero")
    if compare and len(named) < 2:
        raise RecipeError("--compare: name two or more checkpoints, or files that --output wrote")
    saved = [path for path in named if path.suffix == ".json"]
    if saved:
        given = [*settings, *filter(None, (suite, problems, samples, template, layout, output))]
        return _compare_files(saved, named, given, compare)
    if output is not None and not output.parent.is_dir():
        raise RecipeError(f"--output: the folder {output.parent} does not exist")
    if output is not None and (output.suffix != ".json" or output.is_dir()):
        raise RecipeError(f"--output: name a file that ends in .json, not {output}")
    options = {"num_problems": problems, "samples": samples}
    given = {key: value for key, value in options.items() if value is not None}
    config = build_config(settings, given, find_suite(suite) if suite else None)
    checkpoints = label_checkpoints([loadable_checkpoint(path) for path in named])
    config = _with_prompting(config, checkpoints, template, layout)
    log = (output.parent if output else Path()) / ".r1_eval_error.log"
    with _work_folder(output, _asked(config, checkpoints, seed)) as folder:
        with stage_errors("the evaluation failed", log, again=""):
            results, rows = _evaluate(config, checkpoints, seed, folder, keep_rows=compare)
        if output:
            os.replace(folder / "completions.parquet", output.with_suffix(".parquet"))
            os.replace(folder / "results.json", output)
    _print_results(results)
    if compare:
        _print_comparison(rows)


def _compare_files(files: list[Path], named: list[Path], settings: list[Any], compare: bool) -> None:
    from pipeline.eval_compare import read_results

    if not compare:
        raise RecipeError(f"{files[0]} is a file; name checkpoint folders, or compare such files with --compare")
    if len(files) < len(named) or settings:
        raise RecipeError("--compare: name checkpoints or result files, not both; files take no settings")
    results, rows = read_results(files)
    _print_results(results)
    _print_comparison(rows)


def _print_comparison(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console

    from pipeline.eval_compare import compare, comparison_table

    Console().print(comparison_table(compare(rows)))


def find_suite(name: str) -> Path:
    """The file of a suite. Raises RecipeError when there is none, with the shipped one that is nearest."""
    shipped = Path(str(files("recipes"))) / "suites"
    for path in (Path(name), shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in shipped.glob("*.yaml"))
    raise RecipeError(f"--suite: there is no {name}; shipped are {', '.join(known)}{near_miss(name, known)}")


def build_config(settings: Sequence[str], options: dict[str, Any], suite: Path | None = None) -> "EvaluateConfig":
    """The evaluate settings from a suite, from `key=value` arguments and from options, later over earlier. Raises
    RecipeError."""
    from pipeline.evaluate_config import EvaluateConfig
    from pipeline.recipe_checks import settings_problems
    from pipeline.schema import check, resolve_paths
    from pipeline.yaml_source import Document, Place, parse_yaml, read_yaml

    document = Document({}, {(): Place("command line")})
    faults: list[str] = []
    if suite is not None:
        written = read_yaml(suite)
        if written.data.get("stage") != "evaluate":
            raise RecipeError(f"{written.place(('stage',))}: {suite} is no suite: it has no `stage: evaluate`")
        held = written.without("stage")
        document = Document(resolve_paths(EvaluateConfig, held.data, suite.parent), held.places)
    for setting in settings:
        key, _, text = setting.partition("=")
        value = parse_yaml(text, f"command line, {key}").data
        document = Document(value, {(): Place(f"command line, {setting}")}).nested_under(key.split(".")).over(document)
    for key, value in options.items():
        document = Document(value, {(): Place("command line")}).nested_under([key]).over(document)
    config = check(EvaluateConfig, document, "evaluate", faults)
    if config is not None:
        faults += settings_problems("eval", config, document, ())
    if config is None or faults:
        raise RecipeError(faults)
    return config


def _with_prompting(
    config: "EvaluateConfig", checkpoints: dict[str, Path], template: Template | None, layout: Layout | None
) -> "EvaluateConfig":
    """The config with an entry for every checkpoint: by label, else by the name of its folder, then the options."""
    prompting = dict(config.prompting)
    for label, folder in checkpoints.items():
        given = config.prompting_of(label if label in prompting else folder.name)
        changes = {"template": template, "layout": layout}
        prompting[label] = given.model_copy(update={key: value for key, value in changes.items() if value})
    return config.model_copy(update={"prompting": prompting})


def _asked(config: "EvaluateConfig", checkpoints: dict[str, Path], seed: int) -> str:
    """Stands for all that an answer depends on; of checkpoints, the names, sizes and times of their files."""
    from pipeline.config_record import config_record

    digest = hashlib.sha256(json.dumps([config_record(config), seed]).encode())
    for label, folder in checkpoints.items():
        kept = [(str(file), file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
        digest.update(repr((label, [(name, found.st_size, found.st_mtime_ns) for name, found in kept])).encode())
    return digest.hexdigest()[:12]


@contextmanager
def _work_folder(output: Path | None, asked: str) -> Iterator[Path]:
    """Where the stage works. With an output it is beside that, stays when something was sampled before a cut, and is
    found again by the same command."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="r1-eval-") as scratch:
            yield Path(scratch)
        return
    folder = output.parent / f".{output.stem}.r1_eval_{asked}"
    with hold(folder, choose="--output PATH"):
        try:
            yield folder
        except BaseException:
            if any(file.stat().st_size for file in folder.glob("checkpoints/*")):
                print(f"what was sampled is kept in {folder}; the same command goes on from there", file=sys.stderr)
            else:
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _evaluate(
    config: "EvaluateConfig", checkpoints: dict[str, Path], seed: int, folder: Path, keep_rows: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """results.json, and the rows of completions.parquet if they are wanted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline import evaluate as stage
    from pipeline.completions import load_rows
    from training.stage import StageContext

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def report(event: dict[str, Any]) -> None:
            name = event.get("phase", "")
            shown = f"{name} pass@1 {event['accuracy']:.1%}" if "accuracy" in event else name
            progress.update(task, completed=event["step"], total=event["total_steps"], description=shown)

        inputs = {f"checkpoints.{label}": path for label, path in checkpoints.items()}
        context = StageContext(name="eval", inputs=inputs, output=folder, seed=seed, report=report)
        stage.run(config, context)
        results = json.loads((context.output / stage.RESULTS).read_text(encoding="utf-8"))
        rows = load_rows(context.output / stage.COMPLETIONS) if keep_rows else []
    return results, rows


def _print_results(results: dict[str, Any]) -> None:
    from rich.console import Console

    suite = results["suite"]
    console = Console()
    often = sorted(set(suite.get("general_samples", suite["samples"]).values()))
    console.print(
        f"{suite['problems']} held-out problems, and {suite['general_problems']} general ones shown apart, answered "
        f"{', '.join(map(str, often))} times each; "
        f"temperature {suite['temperature']}, top-p {suite['top_p']}; "
        "shares in percent, with 95 % intervals over problems"
    )
    console.print(_score_table(results["checkpoints"]))


def _score_table(checkpoints: dict[str, Any]) -> "Table":
    """One column per checkpoint: the quantities, then pass@1 by domain."""
    from rich.table import Table
    from rich.text import Text

    table = Table("")
    for label in checkpoints:
        table.add_column(Text(label), justify="right")
    rows = [scores["overall"] for scores in checkpoints.values()]
    table.add_row("pass@1", *(_interval(row["pass@1"]) for row in rows))
    for k in sorted({int(k) for row in rows for k in row["pass@k"]}):
        table.add_row(f"pass@{k}", *(_percent(row["pass@k"].get(str(k))) for row in rows))
    table.add_row("cons@k", *(f"{_percent(row['cons@k'])} (k = {row['k']})" for row in rows))
    table.add_row("language consistency", *(_interval(row["language_consistency"]) for row in rows))
    table.add_row("format", *(_percent(row["format_rate"]) for row in rows))
    table.add_row(
        "length, tokens", *("-" if row["length_mean"] is None else f"{row['length_mean']:.0f}" for row in rows)
    )
    table.add_row("cut off, unscorable", *(f"{row['truncated']}, {row['unscorable']}" for row in rows))
    table.add_section()
    domains = [scores["by_domain"] for scores in checkpoints.values()]
    for name in sorted({name for scores in domains for name in scores}):
        cells = (_interval(scores[name]["pass@1"]) if name in scores else "-" for scores in domains)
        table.add_row(Text(f"pass@1, {name}"), *cells)
    rates = [scores["overall"].get("instructions") or {} for scores in checkpoints.values()]
    for key in ("prompt_loose", "instruction_strict", "instruction_loose"):
        if any(rates):
            table.add_row(f"IFEval, {key.replace('_', ' level, ')}", *(_percent(row.get(key)) for row in rates))
    utilities = [scores.get("general", {}).get("utility") for scores in domains]
    if any(utilities):
        table.add_row("true utility, general", *map(_interval, utilities))
    return table


def _interval(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate['mean']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"

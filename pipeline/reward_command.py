"""`r1 reward test` and `r1 reward audit`: try a reward on cases, and attack it with known hacks."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import RecipeError, unreadable
from pipeline.inputs import loadable_checkpoint

if TYPE_CHECKING:
    from data.problems import Problem

_OPTIONS = typer.Option("--option", "-o", help="option of the reward as KEY=VALUE, e.g. layout=summary; repeat")
_INPUTS = typer.Option("--input", "-i", help="checkpoint of a judge that the reward asks, as ROLE=PATH, e.g. grm=PATH")


def try_cases(
    file: Annotated[Path, typer.Argument(help="cases: YAML or JSONL")],
    use: Annotated[str, typer.Option("--reward", "-r", help="import path module:name [default: the file's]")] = "",
    options: Annotated[list[str] | None, _OPTIONS] = None,
    inputs: Annotated[list[str] | None, _INPUTS] = None,
) -> None:
    """Score the cases of a file and show which differ from what they should get. Exit code 1 when any does.

    A case is {completion, expect, gold, question?, checker?, domain?, language?, name?}; expect is pass, fail, error
    or a value.
    """
    from rewards.testing import load_cases, run_cases

    try:
        cases, settings = load_cases(file)
    except OSError as error:
        raise RecipeError(unreadable(file, error)) from None
    except ValueError as error:
        raise RecipeError(str(error)) from None
    path = use or settings.get("reward")
    if not path:
        raise RecipeError(f"{file} names no reward; add --reward module:name, or `reward: module:name` to the file")
    with _loaded(str(path), {**(settings.get("options") or {}), **_read_options(options)}, inputs) as judged:
        outcomes = run_cases(judged, cases)
    wrong = [outcome for outcome in outcomes if not outcome.ok]
    _print_table(
        ("case", "should", "got", "why"),
        [(o.case.name, _short(o.case.expect), o.got, o.score.detail) for o in wrong],
    )
    print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} cases as expected")
    if wrong:
        raise typer.Exit(1)


def audit_reward(
    use: Annotated[str, typer.Argument(metavar="REWARD", help="import path module:name")],
    problems: Annotated[
        Path | None, typer.Option(help="JSONL of {question, gold, checker?, domain?, language?}")
    ] = None,
    options: Annotated[list[str] | None, _OPTIONS] = None,
    inputs: Annotated[list[str] | None, _INPUTS] = None,
    layout: Annotated[str, typer.Option(help="answer_tags or summary [default: the reward's]")] = "",
    everything: Annotated[bool, typer.Option("--all", help="show the attacks that fail, too")] = False,
) -> None:
    """Attack a reward with known hacks and show which of them pay. Exit code 1 when any does.

    Also when an honest right answer does not pass, or an honest wrong one gets no score: then it cannot judge.
    """
    from rewards.audit import audit, misjudged, paying, problems_for

    if layout not in ("", "answer_tags", "summary"):
        raise RecipeError(f"--layout is answer_tags or summary, not {layout!r}")
    given = None if problems is None else _read_problems(problems)
    with _loaded(use, _read_options(options), inputs) as judged:
        asked = problems_for(judged) if given is None else given
        try:
            findings = audit(judged, asked, layout or None)
        except ValueError as error:
            raise RecipeError(f"{use}: {error}") from None
    paid, blind = paying(findings), misjudged(findings)
    shown = findings if everything else blind + paid
    _print_table(
        ("attack", "problem", "got", "should", "why"),
        [(f.attack.name, f.problem.question[:40], f.got, f.should, f.score.detail) for f in shown],
    )
    print(f"{sum(bool(finding.attack.breaks) for finding in findings)} attacks, {len(paid)} pay")
    if blind:
        problems_missed = len({id(finding.problem) for finding in blind})
        print(f"The reward cannot judge these problems: {problems_missed} of {len(asked)}")
    if paid or blind:
        raise typer.Exit(1)


@contextmanager
def _loaded(use: str, options: dict[str, Any], inputs: list[str] | None) -> Iterator[Any]:
    """The reward, with the judges that it asks, whose processes end with it."""
    from rewards.combine import load_reward

    if os.getcwd() not in sys.path:  # the user's own module is where the user is
        sys.path.append(os.getcwd())
    with _served(inputs or []) as judges:
        try:
            judged = load_reward(use, options, judges)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        try:
            yield judged
        finally:
            close = getattr(judged, "close", None)
            if close is not None:
                close()


@contextmanager
def _served(inputs: list[str]) -> Iterator[dict[str, Any]]:
    """Role -> handle of the judges in ROLE=PATH. Starts Ray only where there are any."""
    from data.config import JUDGE_ROLES
    from rollouts.config import JudgeServiceConfig

    folders = {}
    for given in inputs:
        role, equals, path = given.partition("=")
        if not equals or role not in JUDGE_ROLES:
            raise RecipeError(f"--input {given}: expected ROLE=PATH with role {' or '.join(JUDGE_ROLES)}")
        folders[role] = loadable_checkpoint(Path(path))
    if not folders:
        yield {}
        return
    from cluster.actors import start_ray
    from rollouts.judge import start_judges, stop_judges

    start_ray()
    handles = start_judges(folders, JudgeServiceConfig())
    try:
        yield handles
    finally:
        stop_judges(handles)


def _read_options(options: list[str] | None) -> dict[str, Any]:
    from pipeline.yaml_source import parse_yaml

    values = {}
    for option in options or ():
        key, equals, text = option.partition("=")
        if not equals:
            raise RecipeError(f"--option {option}: expected KEY=VALUE")
        values[key] = parse_yaml(text, f"command line, {key}").data
    return values


def _read_problems(path: Path) -> "list[Problem]":
    from rewards.testing import read_problem

    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        problems = [read_problem(row) for row in rows]
    except OSError as error:
        raise RecipeError(unreadable(path, error)) from None
    except RecursionError:
        raise RecipeError(f"{path}: not JSONL of problems: nested too deeply") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not JSONL of problems: {error}") from None
    if not problems:
        raise RecipeError(f'{path} holds no problem; write one JSON object per line, e.g. {{"gold": "4"}}')
    return problems


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header)
    for row in rows:
        table.add_row(*(Text(_short(cell)) for cell in row))
    Console().print(table)


def _short(cell: object) -> str:
    text = f"{cell:g}" if isinstance(cell, float) else str(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""`r1 eval --compare`: checkpoints against the first one, problem by problem, also from earlier result files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from rich.table import Table

# Keys of a suite that may differ where problems and sampling are the same.
_OF_CHECKPOINTS = ("samples", "general_samples", "prompting", "from")  # and where equal problems were read from

_PROBLEMS = "problems_sha256"


def asked(results: Mapping[str, Any]) -> dict[str, Any]:
    """What every checkpoint of an evaluation was asked, and how; equal where scores can be compared."""
    return {key: value for key, value in (results.get("suite") or {}).items() if key not in _OF_CHECKPOINTS}


def read_results(files: Sequence[Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of several `--output` files as one, and the rows of the completions beside them.

    A checkpoint that two files name alike is called by its file as well. Raises RecipeError when a file is no result of
    `r1 eval --output`, or two were asked otherwise.
    """
    together: dict[str, Any] = {"suite": {}, "checkpoints": {}}
    rows: list[dict[str, Any]] = []
    first: Path | None = None
    for file in files:
        found, own = _read(file)
        if first is None:
            together["suite"], first = found["suite"], file
        here, there = asked(found), asked(together)
        for key in here | there:
            if key == _PROBLEMS and not (key in here and key in there):
                continue  # a file from before it was written down
            if here.get(key) != there.get(key):
                raise RecipeError(
                    f"{file}: {key} is {here.get(key)}, and {there.get(key)} in {first}; only scores on the same "
                    "problems, sampled alike, can be compared"
                )
        names = {name: _unused(name, file, together["checkpoints"]) for name in found["checkpoints"]}
        together["checkpoints"] |= {names[name]: scores for name, scores in found["checkpoints"].items()}
        rows += [{**row, "checkpoint": names[row["checkpoint"]]} for row in own]
    return together, rows


def _unused(name: str, file: Path, taken: Mapping[str, Any]) -> str:
    choices = chain((name, f"{file.stem}:{name}"), (f"{file}:{name}{' again' * times}" for times in count()))
    return next(choice for choice in choices if choice not in taken)


def _read(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from pipeline.completions import load_rows

    beside = file.with_suffix(".parquet")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        is_result = {"suite", "checkpoints"} <= found.keys()
    except (OSError, ValueError, AttributeError):
        is_result = False
    if not is_result:
        raise RecipeError(f"{file} is no result of `r1 eval --output FILE`")
    try:
        return found, load_rows(beside)
    except (OSError, ValueError):
        raise RecipeError(f"{file}: its completions, {beside}, are missing or cannot be read") from None


def compare(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each checkpoint against the first in the rows, on the reasoning problems both answered.

    Returns one record each: checkpoint, against, n_problems, difference of pass@1 (mean, low, high), p (sign_flip_p),
    and how many problems it is better and worse on. Raises RecipeError when two have no such problem in common.
    """
    from pipeline.findings import Measurements
    from pipeline.statistics import paired_difference, sign_flip_p

    measured = Measurements(tuple(rows))
    first, *others = dict.fromkeys(row["checkpoint"] for row in measured.rows)
    before = measured.of(first, "pass@1")
    found = []
    for name in others:
        after = measured.of(name, "pass@1")
        if not after.keys() & before.keys():
            raise RecipeError(f"--compare: {name} and {first} have no reasoning problem in common that both answered")
        difference = paired_difference(after, before)
        moved = [after[problem] - before[problem] for problem in after.keys() & before.keys()]
        found.append(
            {
                "checkpoint": name,
                "against": first,
                "n_problems": difference.n_problems,
                "difference": difference.as_row(),
                "p": sign_flip_p(after, before),
                "better": sum(change > 0 for change in moved),
                "worse": sum(change < 0 for change in moved),
            }
        )
    return found


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="pass@1 against the first, in points, paired by problem")
    for name in ("checkpoint", "against", "difference [95 %]", "p", "better, worse", "problems"):
        table.add_column(name, justify="left" if name in ("checkpoint", "against") else "right")
    for row in comparisons:
        low, mean, high = (100 * row["difference"][key] for key in ("low", "mean", "high"))
        table.add_row(
            Text(row["checkpoint"]), Text(row["against"]), f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]",
            "< 0.0001" if row["p"] < 1e-4 else f"{row['p']:.4f}", f"{row['better']}, {row['worse']}",
            str(row["n_problems"]),
        )  # fmt: skip
    return table

"""GRPO stages trained in FP8 beside the curves that float32 runs of the same recipe lead to expect: inside or not.

for N in 1 2 3: r1 run recipes/tiny/pipeline.yaml --only zero seed=N output=runs/fp8_N zero.trainer.precision=fp8
python benchmarks/fp8_grpo.py runs/fp8_1 runs/fp8_2 runs/fp8_3 --json docs/results/fp8_grpo.json

A band is where one more float32 run would be, by three of them (viewing.bands, recipes/tiny/curves); `r1 report
--compare` uses the same, but compares runs of equal settings alone.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from conditions import conditions
from rich.console import Console
from rich.table import Table

from viewing.bands import Band, departure, trailing_mean
from viewing.log_columns import LogColumns
from viewing.reference_curves import Reference

REPO = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of different seeds")
    parser.add_argument("--stage", default="zero")
    parser.add_argument("--curves", type=Path, default=REPO / "recipes" / "tiny" / "curves")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    reference = Reference.read(arguments.curves / f"{arguments.stage}.json")
    if reference is None:
        raise SystemExit(f"{arguments.curves} has no expected curves of the stage {arguments.stage}")
    stages = [run / arguments.stage for run in arguments.runs]
    lines = [compare(stage, name, band) for name, band in reference.bands.items() for stage in stages]
    result = conditions("torch", "transformers", "ray") | {
        "stage": arguments.stage,
        "float32_runs": reference.runs,
        "mismatch_abs_mean": [max(curve(stage, "mismatch/abs_mean")[1]) for stage in stages],
        "lines": lines,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("quantity", "run", "points", "outside", "left the band", "mean distance, half widths", "most")
    for line in lines:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for k, v in line.items() if k != "values"))
    Console().print(table)


def compare(stage: Path, quantity: str, band: Band) -> dict[str, Any]:
    """One quantity of one run. Its distance from the middle of the band is signed, and 1 at the edge."""
    steps, values = curve(stage, quantity)
    smoothed = dict(zip(steps, trailing_mean(values, band.window), strict=True))
    places = [
        (2 * smoothed[step] - low - high) / (high - low) if high > low else 0.0
        for step, low, high in zip(band.steps, band.low, band.high, strict=True)
    ]
    return {
        "quantity": quantity,
        "run": stage.parent.name,
        "points": len(places),
        "outside": sum(abs(place) > 1 for place in places),
        "left": str(departure(quantity, band, (steps, values)) or "no"),
        "mean": fmean(places),
        "most": max(places, key=abs),
        "values": values,
    }


def curve(stage: Path, quantity: str) -> tuple[list[float], list[float]]:
    log = LogColumns(stage / "metrics.jsonl")
    log.refresh()
    steps, values = log.curve(quantity, points=1 << 30)
    return list(steps), list(values)


if __name__ == "__main__":
    main()

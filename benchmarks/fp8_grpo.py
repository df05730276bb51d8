"""GRPO stages trained in FP8 beside float32 ones of the same seeds, and beside the recipe's expected curves.

for N in 1 2 3; do
    r1 run recipes/tiny/pipeline.yaml --only zero seed=$N output=runs/f32_$N
    r1 run recipes/tiny/pipeline.yaml --only zero seed=$N output=runs/fp8_$N zero.trainer.precision=fp8
done
python benchmarks/fp8_grpo.py --fp8 runs/fp8_? --float32 runs/f32_? --json docs/results/fp8_grpo.json

Pairs have the same prompts and begin alike; after some steps they are two runs. So what is compared is the mean of the
second half of the stage: FP8 less float32, by seed, with the 95 % interval of its mean (Student's t). The bands are
where one more float32 run would be (viewing.bands, recipes/tiny/curves), and are wide.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from conditions import conditions
from rich.console import Console
from rich.table import Table

from viewing.bands import Band, departure, student_quantile, trailing_mean
from viewing.log_columns import LogColumns
from viewing.reference_curves import Reference, changed_settings

REPO = Path(__file__).parents[1]
_ALLOWED = ("trainer.precision",)  # what may differ between the runs of a pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fp8", type=Path, nargs="+", required=True, help="run folders, one per seed")
    parser.add_argument("--float32", type=Path, nargs="+", required=True, help="run folders of the same seeds in order")
    parser.add_argument("--stage", default="zero")
    parser.add_argument("--curves", type=Path, default=REPO / "recipes" / "tiny" / "curves")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    reference = Reference.read(arguments.curves / f"{arguments.stage}.json")
    if reference is None:
        raise SystemExit(f"{arguments.curves} has no expected curves of the stage {arguments.stage}")
    fp8, float32 = ([run / arguments.stage for run in runs] for runs in (arguments.fp8, arguments.float32))
    check_pairs(fp8, float32)
    lines = [compare(name, band, fp8, float32) for name, band in reference.bands.items()]
    result = conditions("torch", "transformers", "ray") | {
        "stage": arguments.stage,
        "seeds": [manifest(stage)["seed"] for stage in fp8],
        "mismatch_abs_mean": [max(curve(stage, "mismatch/abs_mean")[1]) for stage in fp8],
        "lines": lines,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("quantity, second half", "float32", "FP8", "difference", "95 %", "points outside the band")
    for line in lines:
        outside = f"{sum(line['outside'])} of {line['points'] * len(fp8)}"
        means = (f"{fmean(line[kind]):.3f}" for kind in ("float32", "fp8"))
        table.add_row(line["quantity"], *means, f"{line['difference']:+.3f}", f"± {line['half_interval']:.3f}", outside)
    Console().print(table)


def check_pairs(fp8: Sequence[Path], float32: Sequence[Path]) -> None:
    """Ends with a sentence where runs are no pairs."""
    if len(fp8) != len(float32) or len(fp8) < 2:
        raise SystemExit(f"{len(fp8)} runs in FP8 and {len(float32)} in float32; give two pairs or more")
    for one, other in zip(fp8, float32, strict=True):
        (a, b) = (manifest(stage) for stage in (one, other))
        if a["seed"] != b["seed"]:
            raise SystemExit(f"{one} and {other} have different seeds; give the runs in the same order")
        if changed := sorted(set(changed_settings(a["config"], b["config"])) - set(_ALLOWED)):
            raise SystemExit(f"{one} and {other} differ in {', '.join(changed)}; only {_ALLOWED[0]} may")


def compare(quantity: str, band: Band, fp8: Sequence[Path], float32: Sequence[Path]) -> dict[str, Any]:
    curves = {stage: curve(stage, quantity) for stage in (*fp8, *float32)}
    if short := [stage for stage, (steps, _) in curves.items() if list(steps) != band.steps]:
        raise SystemExit(f"{short[0]} has no {quantity} at all steps of the expected curve; let it finish")
    late = {stage: fmean(values[len(values) // 2 :]) for stage, (_, values) in curves.items()}
    differences = [late[one] - late[other] for one, other in zip(fp8, float32, strict=True)]
    quantile = student_quantile(0.975, len(differences) - 1)
    return {
        "quantity": quantity,
        "points": len(band.steps),
        "float32": [late[stage] for stage in float32],
        "fp8": [late[stage] for stage in fp8],
        "difference": fmean(differences),
        "half_interval": quantile * stdev(differences) / math.sqrt(len(differences)),
        "outside": [outside(band, curves[stage][1]) for stage in fp8],
        "left": [str(departure(quantity, band, curves[stage]) or "no") for stage in fp8],
        "values": [curves[stage][1] for stage in fp8],
    }


def outside(band: Band, values: Sequence[float]) -> int:
    """Points of the smoothed curve."""
    smoothed = trailing_mean(values, band.window)
    return sum(not low <= value <= high for value, low, high in zip(smoothed, band.low, band.high, strict=True))


def curve(stage: Path, quantity: str) -> tuple[list[float], list[float]]:
    log = LogColumns(stage / "metrics.jsonl")
    log.refresh()
    steps, values = log.curve(quantity, points=1 << 30)
    return list(steps), list(values)


def manifest(stage: Path) -> dict[str, Any]:
    try:
        return json.loads((stage / "manifest.json").read_text(encoding="utf-8"))
    except OSError:
        raise SystemExit(f"{stage} has no manifest.json: it is not there, or did not finish") from None


if __name__ == "__main__":
    main()

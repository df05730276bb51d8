"""The reward of a GRPO stage trained in FP8 beside that of float32 runs with several seeds: inside their band or not.

r1 run recipes/tiny/pipeline.yaml --only zero seed=N output=runs/seedN       # N = 0, 1, 2
r1 run recipes/tiny/pipeline.yaml --only zero output=runs/fp8 zero.trainer.precision=fp8
python benchmarks/fp8_grpo.py runs/fp8 runs/seed0 runs/seed1 runs/seed2 --json docs/results/fp8_grpo.json
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from conditions import conditions
from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp8", type=Path)
    parser.add_argument("float32", type=Path, nargs="+")
    parser.add_argument("--stage", default="zero")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    fp8 = read(arguments.fp8 / arguments.stage)
    others = [read(run / arguments.stage) for run in arguments.float32]
    lines = [
        compare(step, reward, [other["reward"][step] for other in others]) for step, reward in fp8["reward"].items()
    ]
    result = conditions("torch", "transformers", "ray") | {
        "stage": arguments.stage,
        "mismatch_abs_mean": {"fp8": fp8["mismatch"], "float32": max(other["mismatch"] for other in others)},
        "lines": lines,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("step", "fp8", "float32: least", "most", "distance from their mean, in their sd")
    for line in lines:
        table.add_row(*(f"{value:.3g}" for value in line.values()))
    Console().print(table)


def read(stage: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return {
        "reward": {row["step"]: row["reward/mean"] for row in rows if "reward/mean" in row},
        "mismatch": max(row["mismatch/abs_mean"] for row in rows if "mismatch/abs_mean" in row),
    }


def compare(step: int, reward: float, others: list[float]) -> dict[str, float]:
    return {
        "step": step,
        "fp8": reward,
        "least": min(others),
        "most": max(others),
        "distance_sd": (reward - mean(others)) / stdev(others) if len(others) > 1 else float("nan"),
    }


if __name__ == "__main__":
    main()

"""The gains of the chain over several seeds, from finished runs: `python benchmarks/chain_seeds.py RUN... --json FILE`.

Each run is one `r1 run recipes/tiny/pipeline.yaml seed=S output=RUN`; only checkpoints that all of them evaluated are
compared. Prints per seed the pass@1 of every checkpoint
with its 95 % interval, the paired differences that the README states and what the reward models are worth; writes the
same to FILE.
"""

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq
from conditions import conditions
from rich.console import Console
from rich.table import Table

from pipeline.findings import Measurements
from pipeline.statistics import paired_difference

GAINS = (
    ("zero", "base", "pass@1", 0.25),
    ("dev2", "dev1", "pass@1", 0.10),
    ("r1", "dev1", "pass@1", 0.10),
    ("student", "student_rl", "pass@1", 0.0),
    ("r1", "dev3", "utility", 0.10),
    ("r1", "dev3", "pass@1", -0.02),  # a loss that is allowed, by the mean; gains must lie outside their interval
)
REWARD_MODELS = ("helpful_rm", "safety_rm")


def evaluated(run: Path) -> dict:
    """The scores of each checkpoint."""
    return json.loads((run / "evaluate" / "results.json").read_text(encoding="utf-8"))["checkpoints"]


def read(run: Path, shared: set[str]) -> dict:
    """Scores, gains and wall time of one run, of the checkpoints that all runs share."""
    results = {name: scores for name, scores in evaluated(run).items() if name in shared}
    rows = pq.read_table(run / "evaluate" / "completions.parquet").to_pylist()
    measured = Measurements(tuple(rows))
    gains = {}
    for higher, lower, quantity, target in GAINS:
        if not {higher, lower} <= shared:
            continue
        difference = paired_difference(measured.of(higher, quantity), measured.of(lower, quantity))
        met = difference.mean >= target and (target < 0 or difference.low > 0)
        gains[f"{higher} - {lower}, {quantity}"] = difference.as_row() | {"target": target, "met": met}
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob("*/manifest.json"))]
    return {
        "run": run.name,
        "checkpoints": {name: scores["overall"] for name, scores in results.items()},
        "general": {name: scores["by_domain"].get("general") for name, scores in results.items()},
        "gains": gains,
        "reward_models": {name: json.loads((run / name / "reward_model.json").read_text()) for name in REWARD_MODELS},
        "wall_time_s": sum(manifest["wall_time_s"] for manifest in manifests),
    }


def show(runs: list[dict]) -> None:
    console = Console()
    scores = Table(title="pass@1, % (95 % interval)")
    scores.add_column("checkpoint")
    for run in runs:
        scores.add_column(run["run"], justify="right")
    for name in runs[0]["checkpoints"]:
        cells = [run["checkpoints"][name]["pass@1"] for run in runs]
        scores.add_row(name, *(f"{100 * c['mean']:.1f} ({100 * c['low']:.1f}-{100 * c['high']:.1f})" for c in cells))
    shared = runs[0]["checkpoints"]
    for name in (name for name in ("zero", "dev1", "dev2", "r1") if name in shared):
        cells = [run["checkpoints"][name]["language_consistency"]["mean"] for run in runs]
        scores.add_row(f"{name}: language consistency", *(f"{100 * cell:.1f}" for cell in cells))
    for name in (name for name in ("dev3", "r1") if name in shared):
        cells = [run["general"][name]["utility"] for run in runs]
        texts = [f"{100 * c['mean']:.1f} ({100 * c['low']:.1f}-{100 * c['high']:.1f})" for c in cells]
        scores.add_row(f"{name}: utility of general answers", *texts)
    for name in REWARD_MODELS:
        cells = [run["reward_models"][name]["held_out"]["accuracy"] for run in runs]
        scores.add_row(f"{name}: held-out accuracy", *(f"{100 * cell:.1f}" for cell in cells))
    console.print(scores)
    gains = Table(title="gain in points (95 % interval), and whether the target is met outside it")
    gains.add_column("comparison")
    for run in runs:
        gains.add_column(run["run"], justify="right")
    for name in runs[0]["gains"]:
        cells = [run["gains"][name] for run in runs]
        texts = [f"{100 * c['mean']:+.1f} ({100 * c['low']:+.1f} to {100 * c['high']:+.1f})" for c in cells]
        marks = ["met" if cell["met"] else "missed" for cell in cells]
        gains.add_row(name, *(f"{text} {mark}" for text, mark in zip(texts, marks, strict=True)))
    console.print(gains)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shared = set.intersection(*(set(evaluated(run)) for run in arguments.runs))
    runs = [read(run, shared) for run in arguments.runs]
    show(runs)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {**conditions("torch", "transformers", "ray"), "runs": runs}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

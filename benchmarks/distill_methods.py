"""The student by text, probabilities, on policy and RL alone, over several seeds, from finished runs:
`python benchmarks/distill_methods.py RUN... --json FILE`.

Each run is one `r1 run recipes/tiny/distill_compare.yaml seed=S output=RUN`. Prints per seed each method's pass@1 with
its 95 % interval and the tokens that it learnt from, and the paired differences to the paper's way, text.
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

METHODS = {
    "text": "student_text",
    "logits": "student_logits",
    "on_policy": "student_on_policy",
    "student_rl": "student_rl",
}


def read(run: Path) -> dict:
    scores, rows = {}, []
    for results in sorted(run.glob("evaluate*/results.json")):
        scores |= json.loads(results.read_text(encoding="utf-8"))["checkpoints"]
        rows += pq.read_table(results.parent / "completions.parquet").to_pylist()
    measured = Measurements(tuple(row for row in rows if row["checkpoint"] in METHODS))
    text = measured.of("text", "pass@1")
    methods = {}
    for method, stage in METHODS.items():
        counts = json.loads((run / stage / "stats.json").read_text(encoding="utf-8"))
        methods[method] = {
            "pass@1": scores[method]["overall"]["pass@1"],
            "minus_text": paired_difference(measured.of(method, "pass@1"), text).as_row(),
            "tokens": counts.get("tokens_trained", counts["tokens"]),
        }
    return {"run": run.name, "methods": methods}


def show(runs: list[dict]) -> None:
    table = Table(title="pass@1, % (95 % interval); tokens learnt from; points above text")
    table.add_column("method")
    for run in runs:
        table.add_column(run["run"], justify="right")
    for method in METHODS:
        cells = []
        for found in (run["methods"][method] for run in runs):
            score, gain = found["pass@1"], found["minus_text"]
            interval = f"{100 * score['mean']:.1f} ({100 * score['low']:.1f}-{100 * score['high']:.1f})"
            cells.append(f"{interval}; {found['tokens']:,}; {100 * gain['mean']:+.1f}")
        table.add_row(method, *cells)
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = [read(run) for run in arguments.runs]
    show(runs)
    if arguments.json:
        result = {**conditions("torch", "transformers", "ray"), "runs": runs}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

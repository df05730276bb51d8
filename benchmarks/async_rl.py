"""What it gains and costs to let rollouts run ahead of the trainer: tiny RL, same model, problems, seeds and steps.

    python benchmarks/async_rl.py --steps 24 --rounds 1 --json docs/results/async_rl.json

turns       sampling and training take turns, one core each: what devices of their own do without running ahead
both        the same, but each phase uses both cores: what devices that are shared can do
ahead_S     max_staleness S, one core each

Ways alternate within a round. A rate is samples trained on per second, from the second rollout batch on (the first
waits for engines to start). Accuracy is pass@1 of the policy at the end on held-out problems, with its 95 % interval.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from conditions import conditions

ROOT = Path(__file__).resolve().parents[1]
R1 = [sys.executable, "-m", "pipeline.cli"]
APART = ("sample_in_trainer=false", "generator.replicas=1", "generator.threads=1", "trainer.threads=1")
WAYS: dict[str, tuple[str, ...]] = {
    "turns": APART,
    "both": ("sample_in_trainer=false", "generator.replicas=2", "trainer.threads=2"),
    "ahead_1": (*APART, "max_staleness=1", "objective.correction=tis_token"),
    "ahead_2": (*APART, "max_staleness=2", "objective.correction=tis_token", "generator.max_slots=96"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--problems", type=int, default=200, help="held-out problems of the evaluation")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    head = conditions("torch", "ray", "transformers")
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in range(options.rounds):
        for way, settings in WAYS.items():
            with tempfile.TemporaryDirectory(prefix="r1-async-") as scratch:
                found = measure(Path(scratch), settings, options.steps, options.problems, seed)
            runs[way].append({"seed": seed} | found)
            print(way, json.dumps(runs[way][-1]), flush=True)
    rates = {way: statistics.median(run["samples_per_s"] for run in found) for way, found in runs.items()}
    gains = {way: round(rate / rates["turns"], 3) for way, rate in rates.items()}
    result = head | {"steps": options.steps, "settings": WAYS, "runs": runs, "rate_over_turns": gains}
    print(json.dumps(gains, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, settings: tuple[str, ...], steps: int, problems: int, seed: int) -> dict[str, Any]:
    command = [*R1, "run", "recipes/tiny/zero.yaml", f"output={folder}", f"seed={seed}", f"steps={steps}", *settings]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    stage = folder / "zero"
    timings, timeline, metrics = (
        [json.loads(line) for line in (stage / f"{name}.jsonl").read_text().splitlines()]
        for name in ("timings", "timeline", "metrics")
    )
    batches = [row for row in metrics if "experience/sampled" in row]
    phases = [{key: value for key, value in row.items() if key.startswith("time/")} for row in timings]
    begin = min(span["start"] for span in timeline if span["step"] >= batches[1]["step"])
    seconds = max(span["start"] + span["seconds"] for span in timeline) - begin  # by the clock, waits and all
    scores = folder / "scores.json"
    subprocess.run(
        [*R1, "eval", str(stage), f"--problems={problems}", "--samples=4", "--template=plain", "--layout=answer_tags",
         f"--output={scores}"],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (overall,) = [found["overall"]["pass@1"] for found in json.loads(scores.read_text())["checkpoints"].values()]
    return {
        "samples_per_s": round(sum(row["experience/trained"] for row in batches[1:]) / seconds, 3),
        "seconds_by_phase": {key: round(sum(row.get(key, 0.0) for row in phases[1:]), 1) for key in phases[0]},
        "staleness_mean": round(statistics.mean(row.get("staleness/mean", 0.0) for row in batches), 3),
        "interrupted": round(statistics.mean(row.get("rollout/interrupted", 0.0) for row in batches), 4),
        "pass@1": {name: round(overall[name], 4) for name in ("mean", "low", "high")},
    }


if __name__ == "__main__":
    main()

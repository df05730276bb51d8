"""A hundred random kills of a tiny RL stage: the same weights, log and counters as of a run that nothing happened to.

    python benchmarks/rl_soak.py --kills 100 --json docs/results/rl_soak.json

A kill is a SIGKILL of a generator, a reward worker, the trainer or the driver, at random times. A run that ended by it
is started again by the same command, as a user would. Prints what was killed and how long the run took to log its next
step, and compares the two runs at the end. Exit code 1 when they differ.
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil
from conditions import conditions

ROOT = Path(__file__).resolve().parents[1]
R1 = [sys.executable, "-m", "pipeline.cli", "run", "recipes/tiny/zero.yaml"]
STAGE = (
    "questions_per_step=2", "group_size=4", "mini_batches=2", "reference_every=20", "sample_in_trainer=false",
    "rollout.max_new_tokens=32", "generator.replicas=1", "trainer.checkpoint_every=2", "trainer.threads=1",
)  # fmt: skip
# What runs in a Ray worker shows its name; the share of kills that each gets.
VICTIMS = {"TransformersGenerator": 0.4, "RewardWorker": 0.3, "PolicyTrainer": 0.15, "driver": 0.15}
EQUAL = ("model.safetensors", "metrics.jsonl", "samples.jsonl", "stats.json")
PATIENCE_S = 300.0  # without a new step: then the run hangs, and that is the finding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=0, help="of the stage; 4 per kill unless given")
    parser.add_argument("--mean-s", type=float, default=3.0, help="mean time from a logged step to the next kill")
    parser.add_argument("--max-staleness", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    head = conditions("ray", "torch", "transformers")
    steps = options.steps or 4 * options.kills
    settings = [*STAGE, f"steps={steps}", f"max_staleness={options.max_staleness}"]
    with tempfile.TemporaryDirectory(prefix="r1-soak-") as scratch:
        kept, killed = Path(scratch) / "kept", Path(scratch) / "killed"
        started = time.monotonic()
        subprocess.run([*R1, f"output={kept}", *settings], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        undisturbed_s = time.monotonic() - started
        soak = Soak([*R1, f"output={killed}", *settings], killed, options.kills, options.mean_s, options.seed)
        started = time.monotonic()
        soak.run()
        facts = soak.facts() | _compared(kept, killed)
        facts |= {"undisturbed_s": round(undisturbed_s, 1), "with_kills_s": round(time.monotonic() - started, 1)}
    result = head | {"settings": settings, "mean_s": options.mean_s, "seed": options.seed} | facts
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(not all(facts["equal"].values()))


class Soak:
    def __init__(self, command: list[str], folder: Path, kills: int, mean_s: float, seed: int):
        self.command, self.folder, self.left, self.mean_s = command, folder, kills, mean_s
        self.random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.starts = 0
        self.recovery: dict[str, list[float]] = defaultdict(list)  # victim -> seconds to the next logged step

    def run(self) -> None:
        while not (self.folder / "zero" / "manifest.json").exists():
            self.starts += 1
            driver = subprocess.Popen(
                self.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                self._disturb(psutil.Process(driver.pid), driver)
            finally:
                _end(driver)

    def _disturb(self, process: psutil.Process, driver: subprocess.Popen) -> None:
        """Kill, and wait for the next step, until the driver ends."""
        if not self._next_step(driver, time.monotonic(), "start"):
            return
        while self.left:
            time.sleep(self.random.expovariate(1 / self.mean_s))
            victim = self.random.choices([*VICTIMS], [*VICTIMS.values()])[0]
            found = [process] if victim == "driver" else _workers(process, victim)
            if driver.poll() is not None:
                return
            if not found:
                continue
            begun = time.monotonic()
            self.random.choice(found).kill()
            self.left -= 1
            self.kills[victim] += 1
            print(f"{self.left:4d} left: {victim} killed at step {self._step()}", flush=True)
            if not self._next_step(driver, begun, victim):
                return
        driver.wait()

    def _next_step(self, driver: subprocess.Popen, begun: float, after: str) -> bool:
        """Wait for a step that is not logged yet; False when the driver ends before."""
        step = self._step()
        while self._step() == step:
            if driver.poll() is not None:
                return False
            if time.monotonic() - begun > PATIENCE_S:
                sys.exit(f"no step for {PATIENCE_S:.0f} s after: {after}; the run hangs")
            time.sleep(0.05)
        self.recovery[after].append(time.monotonic() - begun)
        return True

    def _step(self) -> int:
        log = self.folder / "zero" / "metrics.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def facts(self) -> dict[str, Any]:
        seconds = {
            victim: {"n": len(found), "median": round(statistics.median(found), 2), "max": round(max(found), 2)}
            for victim, found in self.recovery.items()
        }
        return {"kills": dict(self.kills), "starts": self.starts, "seconds_to_the_next_step": seconds}


def _workers(driver: psutil.Process, name: str) -> list[psutil.Process]:
    """Of this driver's own Ray, by the name that Ray gives to the title of their processes."""
    found = []
    for child in driver.children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue  # it has just ended
    return found


def _end(driver: subprocess.Popen) -> None:
    if driver.poll() is None:
        driver.send_signal(signal.SIGTERM)
        driver.wait(60)


def _compared(kept: Path, killed: Path) -> dict[str, Any]:
    one, other = kept / "zero", killed / "zero"
    counts = {
        name: json.loads((folder / "stats.json").read_text()) for name, folder in (("kept", one), ("killed", other))
    }
    return {
        "equal": {name: (one / name).read_bytes() == (other / name).read_bytes() for name in EQUAL},
        "counters": counts["killed"],
        "metrics_that_differ": _differences(one / "metrics.jsonl", other / "metrics.jsonl"),
    }


def _differences(one: Path, other: Path) -> dict[str, Any]:
    """Lines of each log, and of every quantity the steps in which they differ, with the first two values."""
    logs = [[json.loads(line) for line in path.read_text().splitlines()] for path in (one, other)]
    found: dict[str, Any] = {}
    if len(logs[0]) != len(logs[1]):
        found["lines"] = [len(log) for log in logs]
    for a, b in zip(*logs, strict=False):
        for key in sorted(a.keys() | b.keys()):
            if a.get(key) != b.get(key):
                known = found.setdefault(key, {"steps": [], "first": [a.get(key), b.get(key)]})
                known["steps"].append(a.get("step"))
    return found


if __name__ == "__main__":
    main()

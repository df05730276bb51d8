"""A GRPO step (generate, reward, update) of ours beside TRL's GRPOTrainer, on the same tiny model and prompts.

    python benchmarks/grpo_step.py                 # all of it: alternates fresh processes, prints a table, writes JSON
    python benchmarks/grpo_step.py ours --json     # one measured unit, by itself (or: trl)

Needs the `bench` extra (TRL). Each unit is a whole process: set-up, one untimed GRPO step, then `--steps` timed ones.
Units alternate ours, trl, ours, trl, so that a machine that slows down slows both. Memory is that of the whole process
tree while the steps are timed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from conditions import conditions
from grpo_workload import PHASES, Workload, choose_checkpoint
from memory_watch import MemoryWatch
from rich.console import Console
from rich.table import Table

SIDES = ("ours", "trl")
REPO = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "trl", "accelerate", "ray", "numpy")
TUNABLE = ("prompts", "group_size", "max_new_tokens", "updates", "steps", "threads", "seed", "trl_experts")


def main() -> None:
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="grpo_step_") as scratch:
        checkpoint = arguments.checkpoint or choose_checkpoint(Path(scratch) / "checkpoint")
        workload = Workload(checkpoint=checkpoint, **{name: getattr(arguments, name) for name in TUNABLE})
        if arguments.side:
            print(json.dumps(run_unit(arguments.side, workload, scratch), indent=None if arguments.json else 2))
        else:
            compare(workload, arguments, Path(scratch))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", nargs="?", choices=SIDES, help="run one unit of this side and print its numbers")
    parser.add_argument("--json", action="store_true", help="with a side: the result as the last line of the output")
    parser.add_argument("--n", type=int, default=5, help="measured units per side")
    parser.add_argument("--warmup", type=int, default=1, help="units per side that are run and thrown away")
    parser.add_argument("--checkpoint", help="model folder; the committed tiny base, or a random model of its shape")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "grpo_step.json")
    for name in TUNABLE:
        default = Workload.__dataclass_fields__[name].default
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{default}")
    return parser


def run_unit(side: str, workload: Workload, scratch: str) -> dict[str, Any]:
    """One measured unit, in this process."""
    import resource

    if side == "ours":
        from grpo_ours import run
    else:
        from grpo_trl import run
    result = asdict(run(workload, str(Path(scratch) / "run")))
    used = {"self": resource.RUSAGE_SELF, "children": resource.RUSAGE_CHILDREN}
    # Of the children it is the largest one, and only of those that have ended.
    return result | {"max_rss_mib": {name: resource.getrusage(who).ru_maxrss / 1024 for name, who in used.items()}}


def compare(workload: Workload, arguments: argparse.Namespace, scratch: Path) -> None:
    console = Console()
    head = conditions(*PACKAGES)
    units: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(arguments.warmup + arguments.n):
        for side in SIDES:
            unit = _fresh_process(side, workload, scratch / f"{turn}_{side}")
            measured = turn >= arguments.warmup
            if measured:
                units[side].append(unit)
            what = f"{turn - arguments.warmup + 1}/{arguments.n}" if measured else "warm-up"
            console.print(f"{side:>4} {what}: {_throughput(unit, workload):.1f} samples/s, {_pss(unit):,.0f} MiB")
    _check_same_prompts(units)
    record = {
        **head,
        "workload": asdict(workload)
        | {
            "checkpoint": os.path.relpath(workload.checkpoint),
            "samples_per_step": workload.samples,
            "mini_batch": workload.mini_batch,
        },
        "n": arguments.n,
        "warmup": arguments.warmup,
        "summary": summary(units, workload),
        "units": units,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    show(console, record)
    console.print(f"written to {arguments.out}")


def _fresh_process(side: str, workload: Workload, scratch: Path) -> dict[str, Any]:
    """Run one unit in a process of its own and watch the memory of everything it starts."""
    scratch.mkdir()
    command = [sys.executable, __file__, side, "--json", "--checkpoint", workload.checkpoint]
    command += [f"--{name.replace('_', '-')}={getattr(workload, name)}" for name in TUNABLE]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(scratch)}
    # Idle OpenMP threads sleep instead of spinning. Ours does so by itself; without it TRL loses most of its time as
    # soon as anything else runs on the machine. Set the variable yourself to measure otherwise.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    output, errors = scratch / "stdout", scratch / "stderr"
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        with MemoryWatch(process.pid) as memory:
            code = process.wait()
    if code:
        raise SystemExit(f"{side} ended with code {code}:\n{errors.read_text()[-3000:]}")
    unit = json.loads(output.read_text().splitlines()[-1])
    unit["memory_timed"] = memory.peak(unit["timed_from"], unit["timed_to"])
    unit["memory_whole_run"] = memory.peak(0, float("inf"))
    unit["largest_processes_pss_mib"] = memory.largest_processes(12)
    return unit


def _check_same_prompts(units: dict[str, list[dict[str, Any]]]) -> None:
    hashes = {unit["prompts_hash"] for side in SIDES for unit in units[side]}
    if len(hashes) > 1:
        raise SystemExit(f"the two sides sampled from different prompt tokens: {sorted(hashes)}")


def _throughput(unit: dict[str, Any], workload: Workload) -> float:
    """Samples per second over the timed GRPO steps of a unit."""
    return workload.samples * len(unit["seconds"]) / sum(unit["seconds"])


def _pss(unit: dict[str, Any]) -> float:
    return unit["memory_timed"]["pss_mib"]


def summary(units: dict[str, list[dict[str, Any]]], workload: Workload) -> dict[str, Any]:
    """Min, median and max over units, per side and of the ratios ours / trl of neighbouring units."""
    quantities = {
        "samples_per_s": lambda unit: _throughput(unit, workload),
        "peak_pss_mib": _pss,
        "peak_rss_mib": lambda unit: unit["memory_timed"]["rss_mib"],
        "processes": lambda unit: unit["memory_timed"]["processes"],
        "mean_completion_tokens": lambda unit: mean(unit["mean_completion_tokens"]),
        "truncated_share": lambda unit: mean(unit["truncated_share"]),
        "mean_reward": lambda unit: mean(unit["mean_reward"]),
    }
    quantities |= {f"{phase}_s": _phase_mean(phase) for phase in PHASES}
    sides = {
        side: {name: _spread([value(unit) for unit in units[side]]) for name, value in quantities.items()}
        for side in SIDES
    }
    pairs = list(zip(units["ours"], units["trl"], strict=True))
    ratios = {
        name: _spread([quantities[name](ours) / quantities[name](trl) for ours, trl in pairs])
        for name in ("samples_per_s", "peak_pss_mib", "peak_rss_mib")
    }
    return sides | {"ours_over_trl": ratios}


def _phase_mean(phase: str):
    return lambda unit: mean(step[phase] for step in unit["phases"])


def _spread(values: list[float]) -> dict[str, Any]:
    return {"min": min(values), "median": median(values), "max": max(values), "all": values}


def show(console: Console, record: dict[str, Any]) -> None:
    shape, where, numbers = record["workload"], record["machine"], record["summary"]
    console.print(
        f"\nGRPO step: {shape['prompts']} prompts x {shape['group_size']} completions of at most "
        f"{shape['max_new_tokens']} tokens, {shape['updates']} updates of {shape['mini_batch']}\n"
        f"{shape['steps']} timed steps per process, n = {record['n']}"
    )
    console.print(f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB")
    console.print(f"load average before the start: {where['load_average_before']:.1f}")
    console.print(", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    table = Table("min / median / max", "ours", "trl", "ours / trl, per pair")
    for name in numbers["ours"]:
        ratio = numbers["ours_over_trl"].get(name)
        digits = 0 if name.endswith(("mib", "processes")) else 2
        cells = [_cell(numbers[side][name], digits) for side in SIDES]
        table.add_row(name.replace("_", " "), *cells, _cell(ratio, 2) if ratio else "")
    console.print(table)
    for side in SIDES:
        console.print(f"{side}: {record['units'][side][0]['notes']}")


def _cell(spread: dict[str, Any], digits: int) -> str:
    return " / ".join(f"{spread[key]:,.{digits}f}" for key in ("min", "median", "max"))


if __name__ == "__main__":
    main()

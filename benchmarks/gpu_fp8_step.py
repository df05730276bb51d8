"""Part of gpu_fp8.py: steps of the supervised trainer, in bfloat16 and in FP8, of a model with DeepSeek-V3's layers.

All is as in `r1 run`, but that weights are random and made on the device: a mesh of one rank, weights gathered by FSDP2
(so FP8 blocks are not kept), float32 weights and gradients, moments in bfloat16, the loss in chunks of the vocabulary,
deterministic algorithms, no MTP. Recomputation is --recompute's.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gpu_bench import Bench, Line, rate
from gpu_fp8_layers import SEQUENCES, active_parameters, attention_flops, random_weights, v3_config
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from sft.batch import Example, Row, pack_examples
from sft.trainer import SupervisedTrainer
from training.config import OptimizerConfig
from training.parallel import Precision

BASE = Path(__file__).parents[1] / "recipes" / "tiny" / "base"  # its tokenizer is that of a trainer that needs none
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "fp8")
# 2.95 billion parameters, 1.3 of them active. At rest they take 12 bytes each, 33 GiB; with gathered weights, a layer's
# gradients and activations 47 GiB by the reckoning of `r1 plan`, 54 without recomputation, and an H100 has 79. Experts
# are as wide as V3's and hidden states over half as wide, so that products are about as large. The vocabulary is small:
# the head, which is not in FP8, is 2 % of V3's active parameters, and with V3's vocabulary would be a third of these.
SHAPE: Line = {
    "num_hidden_layers": 6, "hidden_size": 4096, "intermediate_size": 10240, "n_routed_experts": 16,
    "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 32768,
}  # fmt: skip
SMALL_SHAPE: Line = {"num_hidden_layers": 3, "n_routed_experts": 8}
LEARNING_RATE = 1e-5


class RandomTrainer(SupervisedTrainer):
    """A trainer of a model that no checkpoint has."""

    def __init__(self, bench: Bench, config: Any, precision: Precision):
        self.bench, self.config = bench, config
        super().__init__(
            str(BASE),
            OptimizerConfig(moments="bfloat16", weight_decay=0.1),
            drop_mtp=True,
            device=bench.device.type,
            recompute=bench.recompute,
            precision=precision,
            fp8=bench.fp8,
        )

    def _load_model(self) -> Any:
        return random_weights(self.bench, lambda: v3.DeepseekV3ForCausalLM(self.config))


def training_step(bench: Bench) -> Iterator[Line]:
    """Several rows and one optimizer step: same weights, same batch, so that the first losses differ by rounding.

    FLOPs are 6 x active parameters x tokens, and attention's (gpu_fp8_layers); what is computed again does not count.
    """
    config = v3_config(bench, first_k_dense_replace=1, **(SMALL_SHAPE if bench.small else SHAPE))
    rows = _rows(config, count=2 if bench.small else 4, tokens=256 if bench.small else 8192)
    exact: Line = {}
    with _trainers_alone():
        for precision in PRECISIONS:  # one after the other: both together would not fit
            gc.collect()  # what came before: models hold themselves in circles
            torch.cuda.empty_cache()
            line = _steps(bench, config, rows, precision)
            exact = exact or line
            yield line | _gaps(line, exact)


def _rows(config: Any, count: int, tokens: int) -> list[Row]:
    rng, length = np.random.default_rng(0), tokens // SEQUENCES
    examples = [
        Example(token_ids=rng.integers(0, config.vocab_size, length), loss_mask=np.ones(length, bool))
        for _ in range(count * SEQUENCES)
    ]
    return pack_examples(examples, tokens)


@contextmanager
def _trainers_alone() -> Iterator[None]:
    """Takes back what a trainer sets for its process."""
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        if dist.is_initialized():
            dist.destroy_process_group()


def _steps(bench: Bench, config: Any, rows: list[Row], precision: Precision) -> Line:
    trainer, seen = RandomTrainer(bench, config, precision), []
    (line,) = bench.compare({precision: lambda: seen.append(trainer.step(rows, LEARNING_RATE, 0.0, 0.0))}).values()
    tokens, row = sum(len(row.input_ids) for row in rows), len(rows[0].input_ids)
    flops = 6 * active_parameters(trainer.policy, config) * tokens
    flops += len(rows) * config.num_hidden_layers * attention_flops(config, row)
    head = {
        "subject": precision,
        "recompute": bench.recompute,
        "parameters": sum(p.numel() for p in trainer.policy.parameters()),
        "active": active_parameters(trainer.policy, config),
        "tokens": tokens,
    }
    if bench.device.type == "cuda" and "error" not in line:  # of the last step, with all that rests on the device
        line["whole_peak_mib"] = (torch.cuda.max_memory_allocated() - bench.flushed.nbytes) / 2**20
    if seen:
        line |= {"loss": seen[0]["loss/nll"], "gradient_norm": seen[0]["optimizer/grad_norm"]}
    return head | line | rate(line, "tokens_per_s", tokens) | bench.tflops(precision, line, flops)


def _gaps(line: Line, exact: Line) -> Line:
    """Of the first step, relative to the first precision's."""
    return {
        f"{what}_gap": (line[what] - exact[what]) / exact[what]
        for what in ("loss", "gradient_norm")
        if what in line and what in exact
    }

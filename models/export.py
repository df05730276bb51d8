"""A checkpoint in another precision: bfloat16, or DeepSeek's FP8 blocks. Read and written one tensor at a time."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch

from fp8.quantize import BLOCK
from models import v4_names
from models.checkpoint import write_sharded
from models.fp8_checkpoint import SCALE_SUFFIX, TensorFiles, fp8_tensors, is_fp8, quantization_config

Precision = Literal["bfloat16", "fp8"]
_MERGED = ("q_proj", "k_proj", "gate_proj", "up_proj")
# What a checkpoint has besides config and weights; all else in an artifact's folder is about how it was made.
_BESIDE = (
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken"),
)


def export_checkpoint(source: Path, target: Path, precision: Precision, limit_bytes: int = 4 << 30) -> str:
    """Write the checkpoint `source` to the new folder `target`, as from_pretrained and vLLM load it. Returns "", or a
    sentence on what vLLM will not load.

    bfloat16 rounds every floating tensor but the selection bias, which stays float32; FP8 weights are multiplied out
    first. fp8 stores the listed linear layers in blocks of 128x128 (`fp8.convert.LINEARS`), all else in bfloat16; of a
    source that is FP8 already the blocks are copied bit for bit. The tensors of one file (`limit_bytes`) are in memory
    at a time.

    Raises ValueError for a source in another quantised format, or a model that is not written in FP8.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    already = is_fp8(SimpleNamespace(quantization_config=config.get("quantization_config")))
    if precision == "fp8" and config["model_type"] == v4_names.MODEL_TYPE:
        raise ValueError("DeepSeek-V4 is not written in FP8 here: export it in bfloat16")
    target.mkdir(parents=True)
    files = TensorFiles(source)
    weights = ((name, files.weight(name)) for name in sorted(files.names()))
    config["dtype"] = "bfloat16"
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)
    stored: dict[str, torch.Tensor] = {}
    if precision == "bfloat16":
        write_sharded(target, weights, torch.bfloat16, limit_bytes)
    else:
        write_sharded(target, _noted(fp8_tensors(weights, files if already else None), stored), None, limit_bytes)
        config["quantization_config"] = quantization_config(stored)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            shutil.copy(file, target)
    return _refused_by_vllm(stored)


def _noted(
    tensors: Iterator[tuple[str, torch.Tensor]], stored: dict[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Scales are kept, all else by its shape and dtype."""
    for name, tensor in tensors:
        stored[name] = tensor if name.endswith(SCALE_SUFFIX) else tensor.to("meta")
        yield name, tensor


def _refused_by_vllm(stored: dict[str, torch.Tensor]) -> str:
    """Of layers that it merges, only the last may have rows that are no multiple of a block."""
    for name, weight in stored.items():
        place, _, layer = name.removesuffix(".weight").rpartition(".")
        is_merged = layer in ("gate_proj", "up_proj") or f"{place}.v_proj.weight" in stored
        if layer in _MERGED and is_merged and name + SCALE_SUFFIX in stored and weight.shape[0] % BLOCK:
            return (
                f"vLLM will not load it: {name} has {weight.shape[0]} rows, no multiple of {BLOCK}, and is merged with "
                "others there; export bfloat16 for vLLM"
            )
    return ""

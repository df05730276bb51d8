"""Checkpoints in DeepSeek's FP8 format: read one tensor at a time, and written back.

As released (README_WEIGHTS of DeepSeek-V3): `<name>` in E4M3, `<name>_scale_inv` with one scale per block of 128x128,
rows and columns of any number, and in config.json

    quantization_config: {quant_method: fp8, fmt: e4m3, activation_scheme: dynamic, weight_block_size: [128, 128]}

with `scale_fmt: ue8m0` where scales are powers of two. transformers' own reader (5.19, 5.23) fails on
`kv_a_proj_with_mqa`, whose 576 rows are no multiple of 128.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fp8.convert import is_quantised
from fp8.quantize import BLOCK, SCALE_SUFFIX, dequantize_blocks, quantize_blocks, requantize_blocks

FORMAT = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}
_KEPT = "modules_to_not_convert"  # read by vLLM and transformers
_FLOAT = ("embed_tokens", "lm_head", "head", "eh_proj")  # float in every engine


def is_fp8(config: Any) -> bool:
    """Whether a transformers config describes this format. Raises ValueError for another quantised one."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is None:
        return False
    settings = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    method, block = settings.get("quant_method"), settings.get("weight_block_size")
    if method != FORMAT["quant_method"] or list(block or []) != FORMAT["weight_block_size"]:
        raise ValueError(
            f"this checkpoint is quantised by {method} with weight blocks {block}; read here are float32, bfloat16 and "
            f"float16 ones and DeepSeek's FP8 with blocks of {BLOCK}x{BLOCK}: convert it to one of these first"
        )
    return True


class TensorFiles:
    """The tensors of a folder's safetensors files by name, read when they are asked for; one file open at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                self._file_of |= dict.fromkeys(tensors.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self, prefix: str = "") -> list[str]:
        """Of weights: without the names of their scales."""
        return [n for n in self._file_of if n.startswith(prefix) and not n.endswith(SCALE_SUFFIX)]

    def stored(self, name: str) -> torch.Tensor:
        """As it is in the file. Raises KeyError naming the folder."""
        if name not in self:
            raise KeyError(f"{self.folder} has no tensor {name}")
        with safe_open(self._file_of[name], "pt") as tensors:
            return tensors.get_tensor(name)

    def weight(self, name: str) -> torch.Tensor:
        """An FP8 weight multiplied out to float32, all others as they are."""
        weight, scale = self.stored(name), self.scale(name)
        return weight if scale is None else dequantize_blocks(weight, scale)

    def scale(self, name: str) -> torch.Tensor | None:
        scaled = name + SCALE_SUFFIX in self
        return self.stored(name + SCALE_SUFFIX) if scaled else None


@torch.no_grad()
def read_into(views: Mapping[str, torch.Tensor], files: TensorFiles) -> None:
    """Copy weights of `files` into `views` (models.weight_names.hub_views); one tensor at a time is in memory twice.

    Raises KeyError or ValueError when one is missing or has another shape.
    """
    for name, view in views.items():
        weight = files.weight(name)
        if weight.shape != view.shape:  # copy_ would broadcast
            raise ValueError(f"{files.folder}: {name} has shape {tuple(weight.shape)}, the model {tuple(view.shape)}")
        view.copy_(weight)


def fp8_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], source: TensorFiles | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) as stored: listed weights in FP8 with their scales, the selection bias float32, the rest bfloat16.

    source: where the weights came from; blocks that have not changed since are written as they are there, bit for bit.
    """
    for name, tensor in tensors:
        if not (is_quantised(name) and tensor.ndim == 2):
            yield name, tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16()
            continue
        scale = source.scale(name) if source is not None else None
        quantised, new = quantize_blocks(tensor) if scale is None else requantize_blocks(tensor, scale)
        yield name, quantised
        yield name + SCALE_SUFFIX, new


def quantization_config(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What config.json says about stored tensors, of which all but the scales may be on the meta device.

    Layers that an engine might take for FP8, and that are not, are listed: vLLM would leave scales of them unset.
    """
    scales = [tensor.float() for name, tensor in tensors.items() if name.endswith(SCALE_SUFFIX)]
    powers_of_two = all(bool((scale.frexp().mantissa == 0.5).all()) for scale in scales)
    kept = sorted(name.removesuffix(".weight") for name, tensor in tensors.items() if _is_kept_layer(name, tensor))
    biased = {name.removesuffix(".e_score_correction_bias") for name in tensors}  # V3's router, float in every engine
    listed = [layer for layer in kept if layer not in biased]
    return FORMAT | ({"scale_fmt": "ue8m0"} if powers_of_two else {}) | ({_KEPT: listed} if listed else {})


def _is_kept_layer(name: str, tensor: torch.Tensor) -> bool:
    layer = name.removesuffix(".weight").rpartition(".")[2]
    return name.endswith(".weight") and tensor.ndim == 2 and tensor.dtype != torch.float8_e4m3fn and layer not in _FLOAT

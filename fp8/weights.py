"""The FP8 blocks of weights, made where they are used and, where that is safe, kept until the weight changes."""

from dataclasses import replace

import torch

from fp8.config import Fp8Config
from fp8.gemm import choose
from fp8.quantize import SQUARE, Quantized, quantize


class WeightBlocks:
    """The quantised matrices of one module.

    keep: hold them from one use to the next, a byte per weight, until the tensor is written to. Not for weights that
    FSDP gathers: it hides from a tensor's version that its numbers have changed.
    """

    def __init__(self, config: Fp8Config, *, keep: bool = False):
        self.config, self.keep = config, keep
        self._kept: dict[int, tuple[tuple[int, int], list[Quantized]]] = {}  # halves: which numbers, their matrices

    def __call__(self, weight: torch.Tensor, halves: int = 1) -> list[Quantized]:
        """Of a matrix [N, K], or of each in a stack [E, halves * N, K]: expert 0's halves, expert 1's, ...

        A module may have one weight for each `halves`.
        """
        numbers = weight.data_ptr(), weight._version  # backward may be given another view of the same weight
        kept, matrices = self._kept.get(halves, (None, []))
        if kept != numbers:
            stack = weight.detach().reshape(-1, weight.shape[-2] // halves, weight.shape[-1])
            matrices = [self._quantize(matrix) for matrix in stack]
            if self.keep:
                self._kept[halves] = (numbers, matrices)
        return matrices

    def __deepcopy__(self, memo: dict[int, object]) -> "WeightBlocks":
        return WeightBlocks(self.config, keep=self.keep)  # the copy's weights are other tensors

    def _quantize(self, matrix_NK: torch.Tensor) -> Quantized:
        blocks = quantize(matrix_NK, SQUARE, scales=self.config.scales)
        if self.keep and choose(self.config.backend, matrix_NK.device) == "reference":
            # Multiplying out is the slow part of the reference; 4 bytes more per weight.
            blocks = replace(blocks, multiplied_out=blocks.dequantize())
        return blocks

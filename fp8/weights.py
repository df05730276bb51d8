"""The FP8 blocks of weights, made where they are used and, where that is safe, kept until the weight changes."""

from dataclasses import replace

import torch

from fp8.config import Fp8Config
from fp8.gemm import choose
from fp8.quantize import Quantized, Stack, quantize_stack
from fp8.rounding import rounding_sums


class WeightBlocks:
    """The quantised matrices of one module.

    keep: hold them, and their transposes, from one use to the next until the tensor is written to (not through `.data`,
    which its version does not tell): two bytes per weight on a GPU. Not for weights that FSDP gathers: it hides from a
    tensor's version that its numbers have changed.
    """

    def __init__(self, config: Fp8Config, *, keep: bool = False):
        self.config, self.keep = config, keep
        self.rounding: dict[str, torch.Tensor] | None = None  # by kind of tensor; None: nobody asks
        self._kept: dict[tuple[int, ...], _Kept] = {}  # by the shape of the weight; a module's are different

    def __call__(self, weight: torch.Tensor, halves: int = 1) -> list[Stack]:
        """For a stack [E, halves * N, K], or one matrix as E = 1: the E first halves [N, K], then the second ones."""
        return self._of(weight, halves).stacks

    def transposed(self, weight: torch.Tensor, halves: int = 1) -> list[Stack]:
        """The transposes [K, N] of the same."""
        kept = self._of(weight, halves)
        if kept.transposed is None:
            kept.transposed = [stack.transposed() for stack in kept.stacks]
        return kept.transposed

    def _of(self, weight: torch.Tensor, halves: int) -> "_Kept":
        shape, numbers = tuple(weight.shape), (weight.data_ptr(), weight._version)  # backward may be given another view
        kept = self._kept.get(shape)
        if kept is None or kept.numbers != numbers:
            stack = weight.detach().reshape(-1, *weight.shape[-2:])
            kept = _Kept(numbers, [self._quantize(half) for half in stack.chunk(halves, dim=1)])
            if self.keep:
                self._kept[shape] = kept
        return kept

    def note(self, kind: str, matrix: torch.Tensor, rows: Quantized, take: torch.Tensor | None = None) -> None:
        """What the rounding of a matrix took away, where somebody asks (fp8.rounding)."""
        if self.rounding is not None:
            sums = rounding_sums(matrix, rows, take)
            self.rounding[kind] = self.rounding[kind] + sums if kind in self.rounding else sums

    def __deepcopy__(self, memo: dict[int, object]) -> "WeightBlocks":
        return WeightBlocks(self.config, keep=self.keep)  # the copy's weights are other tensors

    def _quantize(self, matrices_ENK: torch.Tensor) -> Stack:
        stack = quantize_stack(matrices_ENK, scales=self.config.scales)
        if self.keep and choose(self.config.backend, matrices_ENK.device) == "reference":
            # Multiplying out is the slow part of the reference; 4 bytes more per weight.
            out = torch.stack([stack[index].dequantize() for index in range(len(stack))])
            stack = replace(stack, multiplied_out=out)
        return stack


class _Kept:
    def __init__(self, numbers: tuple[int, int], stacks: list[Stack]):
        self.numbers, self.stacks = numbers, stacks  # which storage and version; one stack for each half
        self.transposed: list[Stack] | None = None

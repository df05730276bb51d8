"""What E4M3 takes from the tensors of a step: numbers that become zero, and the error of what is left.

Of what linear layers and experts multiply: the activations that come in, and the gradients that come back. Not of what
lies between the products of an expert, which is never whole.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fp8.quantize import BLOCK, Quantized

_ROWS = 8 * BLOCK  # multiplied out at a time


class Rounding(NamedTuple):
    """Sums over numbers; those of several tensors or ranks add up."""

    nonzero: float
    zeroed: float  # of these
    error: float  # sum of (q * scale - x)^2
    size: float  # sum of x^2

    @classmethod
    def total(cls, parts: Iterable["Rounding"]) -> "Rounding":
        return cls(*map(sum, zip(*parts, strict=True)))

    @property
    def share_zeroed(self) -> float:
        return self.zeroed / self.nonzero if self.nonzero else 0.0

    @property
    def relative_error(self) -> float:
        """Norm of the error over that of the numbers: 0.026 for a normal distribution."""
        return (self.error / self.size) ** 0.5 if self.size else 0.0


@torch.no_grad()
def rounding_sums(matrix_RC: Tensor, rows: Quantized, take_P: Tensor | None = None) -> Tensor:
    """The numbers of a Rounding, float64 [4], on the device. take_P: as quantize_both was given it."""
    sums_4 = matrix_RC.new_zeros(4, dtype=torch.float64)
    for start in range(0, len(rows.values), _ROWS):
        end = min(start + _ROWS, len(rows.values))
        if take_P is None:
            given = matrix_RC[start:end].float()
        else:
            taken = take_P[start:end]
            given = torch.where((taken >= 0)[:, None], matrix_RC[taken.clamp(min=0)].float(), 0)
        got = rows.rows(start, end).dequantize()
        squares = (got - given).square().sum(dtype=torch.float64), given.square().sum(dtype=torch.float64)
        sums_4 += torch.stack([(given != 0).sum(), ((given != 0) & (got == 0)).sum(), *squares])
    return sums_4


def rounding_metrics(found: Iterable[Mapping[tuple[str, str], Rounding]]) -> dict[str, float]:
    """fp8/<kind>_zeroed and fp8/<kind>_error, shares, of all layers; with _max, of the layer that has the most.

    found: by kind of tensor ("activations", "gradients") and layer, of every rank.
    """
    layers: defaultdict[tuple[str, str], list[Rounding]] = defaultdict(list)
    for part in found:
        for key, rounding in part.items():
            layers[key].append(rounding)
    metrics: dict[str, float] = {}
    for kind in sorted({kind for kind, _ in layers}):
        own = [Rounding.total(parts) for key, parts in layers.items() if key[0] == kind]
        total = Rounding.total(own)
        metrics[f"fp8/{kind}_zeroed"] = total.share_zeroed
        metrics[f"fp8/{kind}_zeroed_max"] = max(rounding.share_zeroed for rounding in own)
        metrics[f"fp8/{kind}_error"] = total.relative_error
        metrics[f"fp8/{kind}_error_max"] = max(rounding.relative_error for rounding in own)
    return metrics

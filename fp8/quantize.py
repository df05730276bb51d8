"""E4M3 with one scale per tile (DeepSeek-V3, arXiv:2412.19437, section 3.3.2): the numeric definition of the FP8 stack.

    scale = max(max |x|, floor) / 448      q = e4m3(x / scale), to nearest, ties to even      x' = q * scale

Activations and gradients have tiles of 1x128 along the dimension that their GEMM sums over, weights blocks of 128x128.
Scales are float32 numbers, or the next power of two above (`ue8m0` in the released configs). Tiles at the edge of a
matrix are smaller, as if it were padded with zeros; row and column counts need not be multiples of 128.
"""

from dataclasses import dataclass

import torch

from fp8.config import Scales

BLOCK = 128
LARGEST = 448.0  # of float8_e4m3fn
SCALE_SUFFIX = "_scale_inv"  # a released checkpoint stores q as `<name>` and its scales as `<name>_scale_inv`

ROWS = (1, BLOCK)  # rows and columns of a tile
COLUMNS = (BLOCK, 1)
SQUARE = (BLOCK, BLOCK)

Tile = tuple[int, int]
ACTIVATION_FLOOR = 1e-4  # of max |x|, as in DeepSeek-V3's act_quant (inference/kernel.py); gradients need none


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix [R, C]: values float8_e4m3fn [R, C] and scales float32 [ceil(R / r), ceil(C / c)] of r x c tiles."""

    values: torch.Tensor
    scales: torch.Tensor
    tile: Tile
    multiplied_out: torch.Tensor | None = None  # float32 [R, C], where somebody keeps it

    @property
    def T(self) -> "Quantized":
        """The transposed matrix, as a view."""
        height, width = self.tile
        out = self.multiplied_out
        return Quantized(self.values.T, self.scales.T, (width, height), None if out is None else out.T)

    def rows(self, start: int, end: int) -> "Quantized":
        """Rows start..end as a view; both must be where tiles begin, or the end of the matrix."""
        height = self.tile[0]
        return Quantized(self.values[start:end], self.scales[start // height : -(-end // height)], self.tile)

    def dequantize(self) -> torch.Tensor:
        """float32 [R, C]."""
        if self.multiplied_out is not None:
            return self.multiplied_out
        return _unblocked(_blocked(self.values.float(), self.tile) * self._per_tile(), self.values.shape)

    def _per_tile(self) -> torch.Tensor:
        return self.scales[:, None, :, None]


def has_kernels(device: torch.device) -> bool:
    """Whether fp8.kernels run there: Triton writes E4M3 from compute capability 8.9 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize(
    matrix_RC: torch.Tensor,
    tile: Tile,
    *,
    scales: Scales = "float32",
    floor: float = 0.0,
    take: torch.Tensor | None = None,
) -> Quantized:
    """E4M3 values of a float matrix and one scale per tile; a tile of zeros has scale 1 when there is no floor.

    take: int64; instead of the matrix itself, the one whose row i is its row take[i], or zeros where that is -1. Not
    for tiles of 128x128.

    A tile with an infinity or a NaN becomes NaN as a whole: a bad value must not be hidden by saturation. On GPUs the
    kernels of fp8.kernels do the same.
    """
    if has_kernels(matrix_RC.device):
        from fp8 import kernels

        if tile == SQUARE:
            values, block_scales = kernels.quantize_stack(matrix_RC.contiguous()[None], scales, floor)
            return Quantized(values[0], block_scales[0], SQUARE)
        rows, columns = kernels.quantize_tiles(
            matrix_RC.contiguous(), scales, floor, take=take, want_rows=tile == ROWS, want_columns=tile == COLUMNS
        )
        return rows if tile == ROWS else columns
    if take is not None:
        matrix_RC = torch.where((take >= 0)[:, None], matrix_RC[take.clamp(min=0)], 0)
    blocks = _blocked(matrix_RC.float(), tile)
    scale = _scale(blocks.abs().amax(dim=(1, 3)), scales, floor)
    scaled = (blocks / scale[:, None, :, None]).clamp(-LARGEST, LARGEST)
    return Quantized(_unblocked(scaled, matrix_RC.shape).to(torch.float8_e4m3fn), scale, tile)


def quantize_both(
    matrix_RC: torch.Tensor, *, scales: Scales = "float32", floor: float = 0.0, take: torch.Tensor | None = None
) -> tuple[Quantized, Quantized]:
    """In tiles of 1x128 and of 128x1: what the products of a forward and a backward pass need of one matrix. take: as
    in `quantize`."""
    if has_kernels(matrix_RC.device):
        from fp8 import kernels

        return kernels.quantize_tiles(matrix_RC.contiguous(), scales, floor, take=take)
    rows, columns = (quantize(matrix_RC, tile, scales=scales, floor=floor, take=take) for tile in (ROWS, COLUMNS))
    return rows, columns


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices [R, C] of one shape, each in blocks of 128x128 from its own corner: what `Quantized` holds, times E."""

    values: torch.Tensor  # [E, R, C]
    scales: torch.Tensor  # [E, r, c]
    multiplied_out: torch.Tensor | None = None  # [E, R, C]

    def __getitem__(self, index: int) -> Quantized:
        out = self.multiplied_out
        return Quantized(self.values[index], self.scales[index], SQUARE, None if out is None else out[index])

    def __len__(self) -> int:
        return len(self.values)

    def transposed(self) -> "Stack":
        """The transposed matrices; on a GPU a copy, since its GEMMs read along the dimension that they sum over."""
        if self.values.device.type == "cuda":
            return Stack(self.values.view(torch.uint8).mT.contiguous().view(self.values.dtype), self.scales.mT)
        return Stack(self.values.mT, self.scales.mT, None if self.multiplied_out is None else self.multiplied_out.mT)


def quantize_stack(matrices_ERC: torch.Tensor, *, scales: Scales = "float32") -> Stack:
    """Each matrix in blocks of 128x128."""
    if has_kernels(matrices_ERC.device):
        from fp8 import kernels

        return Stack(*kernels.quantize_stack(matrices_ERC.contiguous(), scales, 0.0))
    made = [quantize(matrix, SQUARE, scales=scales) for matrix in matrices_ERC]
    return Stack(torch.stack([m.values for m in made]), torch.stack([m.scales for m in made]))


def _scale(largest: torch.Tensor, scales: Scales, floor: float) -> torch.Tensor:
    scale = largest.clamp(min=floor) / LARGEST
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # zeros, and what float32 cannot divide
    scale = torch.where(torch.isfinite(scale), scale, torch.full_like(scale, torch.nan))
    if scales == "float32":
        return scale
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2 ** exponent with mantissa in [0.5, 1)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype)).where(scale > 0, scale)


# --- weights of checkpoints and of the wire ---


def quantize_blocks(weight_RC: torch.Tensor, scales: Scales = "float32") -> tuple[torch.Tensor, torch.Tensor]:
    """(q float8_e4m3fn [R, C], scale float32 [ceil(R/128), ceil(C/128)]) of a weight.

    Raises ValueError for anything but a finite matrix.
    """
    if weight_RC.ndim != 2 or not torch.isfinite(weight_RC).all():
        raise ValueError(f"block quantisation takes a finite matrix, got shape {tuple(weight_RC.shape)}")
    quantised = quantize(weight_RC, SQUARE, scales=scales)
    return quantised.values, quantised.scales


def dequantize_blocks(weight_RC: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float32 [R, C]: undoes `quantize_blocks` up to its rounding. Raises ValueError for scales that do not fit."""
    if scale.shape != tuple(-(-size // BLOCK) for size in weight_RC.shape):
        raise ValueError(f"scales have shape {tuple(scale.shape)}, a weight {tuple(weight_RC.shape)} needs another")
    return Quantized(weight_RC, scale.float(), SQUARE).dequantize()


def requantize_blocks(weight_RC: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_blocks`, but with the scales that a weight came with wherever its blocks still hold their values.

    A block that was read as q * scale is written with the same q and scale, bit for bit; max |w| / 448 may be another
    number in the last place, or far away when the scale was no such quotient. Where all scales are powers of two, those
    of other blocks are too. weight_RC float32 or bfloat16; scales come back in the dtype of `scale`.
    """
    stored, scale = scale.dtype, scale.float()
    powers = bool((scale.frexp().mantissa == 0.5).all())
    fresh, fresh_scale = quantize_blocks(weight_RC, "power_of_two" if powers else "float32")
    given = (_blocked(weight_RC.float(), SQUARE) / scale[:, None, :, None]).clamp(-LARGEST, LARGEST)
    kept = Quantized(_unblocked(given, weight_RC.shape).to(torch.float8_e4m3fn), scale, SQUARE)
    differs = kept.dequantize().to(weight_RC.dtype) != weight_RC
    same = ~_blocked(differs.float(), SQUARE).bool().any(dim=3).any(dim=1)
    of_value = same.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: weight_RC.shape[0], : weight_RC.shape[1]]
    values = torch.where(of_value, kept.values.view(torch.uint8), fresh.view(torch.uint8)).view(torch.float8_e4m3fn)
    return values, torch.where(same, scale, fresh_scale).to(stored)


def _blocked(matrix_RC: torch.Tensor, tile: Tile) -> torch.Tensor:
    """[row tiles, r, column tiles, c], padded with zeros."""
    height, width = tile
    rows, columns = matrix_RC.shape
    padded = torch.nn.functional.pad(matrix_RC, (0, -columns % width, 0, -rows % height))
    return padded.reshape(-(-rows // height), height, -(-columns // width), width)


def _unblocked(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    flat = blocks.reshape(blocks.shape[0] * blocks.shape[1], blocks.shape[2] * blocks.shape[3])
    return flat[: shape[0], : shape[1]].contiguous()

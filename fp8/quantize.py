"""Block-wise E4M3: a weight and one scale per 128x128 block (DeepSeek-V3, arXiv:2412.19437, section 3.3.2).

    scale = max |w| / 448      q = e4m3(w / scale)      w' = q * scale

Names and layout are those of the released checkpoints: `<name>` holds q, `<name>_scale_inv` the scales in float32, with
ceil(rows / 128) x ceil(columns / 128) entries. Row and column counts need not be multiples of 128.
"""

import torch

BLOCK = 128
LARGEST = 448.0  # of float8_e4m3fn
SCALE_SUFFIX = "_scale_inv"


def quantize_blocks(weight_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(q float8_e4m3fn [R, C], scale float32 [ceil(R/128), ceil(C/128)]) of a float matrix; scale 1 for a zero block.

    Raises ValueError for anything but a finite matrix: an infinity would turn its whole block into NaN.
    """
    if weight_RC.ndim != 2 or not torch.isfinite(weight_RC).all():
        raise ValueError(f"block quantisation takes a finite matrix, got shape {tuple(weight_RC.shape)}")
    blocks = _blocked(weight_RC.float())
    largest = blocks.abs().amax(dim=(1, 3))
    scale = largest / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # zeros, and what float32 cannot divide
    scaled = (blocks / scale[:, None, :, None]).clamp(-LARGEST, LARGEST)
    return _unblocked(scaled, weight_RC.shape).to(torch.float8_e4m3fn).contiguous(), scale


def dequantize_blocks(weight_RC: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float32 [R, C]: the inverse of `quantize_blocks` up to its rounding."""
    blocks = _blocked(weight_RC.float())
    if scale.shape != (blocks.shape[0], blocks.shape[2]):
        raise ValueError(f"scales have shape {tuple(scale.shape)}, a weight {tuple(weight_RC.shape)} needs another")
    return _unblocked(blocks * scale[:, None, :, None], weight_RC.shape).contiguous()


def _blocked(weight_RC: torch.Tensor) -> torch.Tensor:
    """[row blocks, 128, column blocks, 128], padded with zeros."""
    rows, columns = weight_RC.shape
    padded = torch.nn.functional.pad(weight_RC, (0, -columns % BLOCK, 0, -rows % BLOCK))
    return padded.view(-(-rows // BLOCK), BLOCK, -(-columns // BLOCK), BLOCK)


def _unblocked(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return blocks.reshape(blocks.shape[0] * BLOCK, -1)[: shape[0], : shape[1]]

"""Mismatch: how far the generator's logprobs are from the trainer's for the same weights and tokens.

Both sides compute the same quantity with different kernels, precisions and expert choices. The difference is noise in
every importance ratio, and a growing one announces collapse, so it is always logged. Axis: T completion tokens.
"""

from typing import Literal

import torch
from torch import Tensor

from models.routing_replay import Routes
from rl.loss import kl_estimate


@torch.no_grad()
def mismatch_sums(old_T: Tensor, sampling_T: Tensor) -> dict[str, Tensor]:
    """Detached sums for `rl.metrics.combine`: |old - sampling| (sum and max, nats) and k3 of KL(sampling || old).

    Tokens were drawn by the generator, so the expectation is under `sampling`. Meaningful as numerical mismatch only
    when both come from the same policy version; otherwise it includes staleness. NaN and infinities show up as such.
    """
    if old_T.shape != sampling_T.shape:
        raise ValueError(f"old_T has shape {tuple(old_T.shape)}, but sampling_T has {tuple(sampling_T.shape)}")
    gap_T = (old_T - sampling_T).abs()
    return {
        "mismatch_tokens": gap_T.new_tensor(len(gap_T)),
        "mismatch_abs": gap_T.sum(),
        "mismatch_abs_max": gap_T.max() if len(gap_T) else gap_T.new_tensor(0.0),
        "mismatch_k3": kl_estimate(sampling_T, old_T, "k3").sum(),
    }


def routing_sums(routes: Routes, kind: Literal["own", "used"]) -> dict[str, int]:
    """Counts for `rl.metrics.combine`: pairs of token and MoE layer with given experts, and those where the same set
    was the router's `own` choice (for the inputs it got), or was `used`: what the layer's experts were called with.
    """
    equal, pairs = routes.agreement(getattr(routes, kind))
    return {f"routing_{kind}": equal, f"routing_{kind}_pairs": pairs}

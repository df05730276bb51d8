"""Aux-loss-free load balance of MoE routers (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def routers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The routers of a model, in layer order: modules that carry a selection bias."""
    for name, module in model.named_modules():
        if hasattr(module, "e_score_correction_bias") and hasattr(module, "top_k"):
            yield name, module


class LoadCounter:
    """Counts, per router, the tokens sent to each expert since the last `reset`."""

    def __init__(self, model: nn.Module):
        self._routers = dict(routers(model))
        self.counts = {
            name: torch.zeros(len(r.e_score_correction_bias), dtype=torch.int64) for name, r in self._routers.items()
        }
        self._hooks = [r.register_forward_hook(self._hook(name)) for name, r in self._routers.items()]

    def _hook(self, name: str):
        def count(module, args, output):
            if module.training:
                chosen = output[2].detach().flatten().cpu()
                self.counts[name] += torch.bincount(chosen, minlength=module.num_experts)

        return count

    def reset(self) -> None:
        for counts in self.counts.values():
            counts.zero_()

    def sum_over_ranks(self) -> None:
        """Make the counts those of the whole batch, equal on all ranks. Once per step, before they are read."""
        if dist.is_initialized():
            for counts in self.counts.values():
                dist.all_reduce(counts)

    def max_violation(self) -> float:
        """max over routers of (largest load / mean load - 1); 0 is perfect balance."""
        worst = 0.0
        for counts in self.counts.values():
            if counts.sum() > 0:
                worst = max(worst, float(counts.max() / counts.float().mean()) - 1)
        return worst

    @torch.no_grad()
    def update_bias(self, speed: float) -> None:
        """b_i += speed for experts below the mean load of the whole batch, -= speed above it; counts start anew."""
        for name, router in self._routers.items():
            load = self.counts[name].float()
            router.e_score_correction_bias += speed * torch.sign(load.mean() - load).to(router.e_score_correction_bias)
        self.reset()

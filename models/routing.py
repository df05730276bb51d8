"""Load balance of MoE routers: load metrics, the selection bias and the sequence-wise loss of DeepSeek-V3.

arXiv:2412.19437, section 2.1.2. Axes: T tokens of a packed row, S its sequences, R routers, E experts, K experts per
token. All routers of a model have equally many experts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.recompute import recomputing
from models.routing_replay import FORMS, scores


def routers(*models: nn.Module | None) -> Iterator[tuple[str, Any]]:
    """The routers of a model, then of its MTP block (named mtp.*), in layer order."""
    for prefix, model in zip(("", "mtp."), models, strict=False):
        for name, module in model.named_modules() if model is not None else ():
            if type(module).__name__ in FORMS:
                yield prefix + name, module


class RouterLoad(NamedTuple):
    """How evenly a router has spread its tokens."""

    violation: float  # largest load over mean load, minus 1
    dead_experts: int  # without a token
    bias_range: float | None  # largest selection bias minus smallest; None: the router has none

    @classmethod
    def of(cls, counts_E: Tensor, bias_E: Tensor | None) -> "RouterLoad":
        violation = float(counts_E.max() / counts_E.double().mean()) - 1
        apart = None if bias_E is None else float(bias_E.max() - bias_E.min())
        return cls(violation, int((counts_E == 0).sum()), apart)


def load_metrics(loads: Mapping[str, RouterLoad]) -> dict[str, float]:
    """Violation by router and overall, experts that no token was sent to, and how far biases have moved apart. By the
    routers' names; none for a model without any."""
    if not loads:
        return {}
    found = {"moe/max_violation": max(load.violation for load in loads.values())}
    found |= {f"moe/max_violation/{_short(name)}": load.violation for name, load in loads.items()}
    found["moe/dead_experts"] = float(sum(load.dead_experts for load in loads.values()))
    ranges = [load.bias_range for load in loads.values() if load.bias_range is not None]
    return found | ({"moe/bias_range": max(ranges)} if ranges else {})


def is_selection_bias(name: str) -> bool:
    """Whether a checkpoint name is that of a selection bias, which stays float32: a rounded one chooses otherwise."""
    return name.endswith(("e_score_correction_bias", ".ffn.gate.bias"))


class LoadCounter:
    """Counts, per router, the tokens sent to each expert since the last `reset`.

    Only passes in training mode count, and an activation that is computed again (models.recompute) counts once.
    """

    def __init__(self, *models: nn.Module | None):
        self._routers = dict(routers(*models))
        self._counts = {name: torch.zeros(r.num_experts, dtype=torch.int64) for name, r in self._routers.items()}
        self._on_device: dict[str, Tensor] = {}  # not yet in these: each pass would wait for its copy
        self._hooks = [r.register_forward_hook(self._hook(name)) for name, r in self._routers.items()]

    def _hook(self, name: str):
        def count(module, args, output):
            if module.training and not recomputing():
                chosen = output[2].detach().flatten()
                if name not in self._on_device:
                    self._on_device[name] = chosen.new_zeros(module.num_experts)
                self._on_device[name].index_add_(0, chosen, torch.ones_like(chosen))  # bincount would wait, too

        return count

    @property
    def counts(self) -> dict[str, Tensor]:
        """By router, int64 [E] on the CPU."""
        for name, counts in self._on_device.items():
            self._counts[name] += counts.cpu()
        self._on_device.clear()
        return self._counts

    def reset(self) -> None:
        for counts in self.counts.values():
            counts.zero_()

    def sum_over_ranks(self, group: dist.ProcessGroup) -> None:
        """Make the counts those of all rows of these ranks, which have the same routers. Once per step, before they are
        read."""
        for counts in self.counts.values():
            dist.all_reduce(counts, group=group)

    def loads(self) -> dict[str, "RouterLoad"]:
        """Of the routers that saw tokens, by name."""
        used = {name: counts for name, counts in self.counts.items() if counts.any()}
        return {name: RouterLoad.of(counts, _bias(self._routers[name])) for name, counts in used.items()}

    @torch.no_grad()
    def update_bias(self, speed: float) -> None:
        """b_i += speed for experts below the mean load of the whole batch, -= speed above it; counts start anew."""
        for name, router in self._routers.items():
            load_E, bias_E = self.counts[name].double(), _bias(router)
            if bias_E is not None and load_E.any():
                bias_E += speed * torch.sign(load_E.mean() - load_E).to(bias_E)
        self.reset()


class Spread(Protocol):
    """Ranks that have the same rows and other tokens of them, as training.context.ContextGroup."""

    def here(self, tokens: int) -> Tensor:
        """Which tokens of a row this rank has, int64 [N], in the order of its states; beyond the row: none of it."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the ranks, without gradient."""
        ...


class SequenceBalance:
    """The sequence-wise balance loss, V3's eq. 17-20, without its factor alpha:

        sum_i f_i P_i,   f_i = E / (K T_s) * #{t: i among the K experts of highest s},   P_i = mean_t s_it / sum_j s_jt

    per router and sequence of T_s tokens. The gradient reaches the router through P alone. As in the paper, f counts
    the highest scores themselves: neither the selection bias nor groups nor replayed routes have a part in it.
    """

    def __init__(self, *models: nn.Module | None, spread: Spread | None = None):
        self.spread = spread
        self._seen: list[tuple[Any, Tensor]] | None = None
        for _, router in routers(*models):
            if not hasattr(router, "tid2eid"):  # V4's first layers route by a table of tokens: nothing to balance
                router.register_forward_hook(self._note)

    @contextmanager
    def watch(self, lengths: Sequence[int], wanted: bool = True) -> Iterator[list[Tensor]]:
        """Over one forward pass of a packed row with gradient; `wanted` false: the list stays empty.

        lengths: tokens of each of its sequences. Yields a list that holds, once this closes, the loss of each router, a
        scalar: the sum over sequences of T_s times the above. Divided by the tokens of a batch, that is a mean in which
        a sequence weighs what it has tokens.
        """
        losses: list[Tensor] = []
        self._seen = [] if wanted else None
        try:
            yield losses
            # Only now: what is computed inside a layer would have to be computed again with it (models.recompute).
            for router, logits_TE in self._seen or ():
                losses.append(sequence_balance(scores(router, logits_TE), router.top_k, lengths, self.spread))
        finally:
            self._seen = None

    def _note(self, router, args, output) -> None:
        if self._seen is not None and router.training and not recomputing():
            self._seen.append((router, output[0]))


def sequence_balance(scores_TE: Tensor, top_k: int, lengths: Sequence[int], spread: Spread | None = None) -> Tensor:
    """sum_s T_s sum_i f_i P_i of one router, with gradient through P; scores_TE: positive, float32 [T, E].

    spread: the scores are those of this rank's tokens, and so is the gradient; the value is that of the whole row.
    """
    sequence_T = torch.repeat_interleave(torch.tensor(list(lengths), device=scores_TE.device))
    if spread is not None:
        here_N = spread.here(len(sequence_T)).to(scores_TE.device)
        here_N, scores_TE = here_N[real := here_N < len(sequence_T)], scores_TE[real]
        sequence_T = sequence_T[here_N]
    tokens, experts = scores_TE.shape
    if len(sequence_T) != tokens:
        raise ValueError(f"sequence balance: lengths sum to {len(sequence_T)}, and {tokens} tokens were routed")
    size_S1 = torch.tensor(list(lengths), dtype=scores_TE.dtype, device=scores_TE.device).clamp(min=1)[:, None]
    with torch.no_grad():
        chosen_TE = torch.zeros_like(scores_TE).scatter_(1, scores_TE.topk(top_k, dim=1).indices, 1.0)
        share_SE = chosen_TE.new_zeros(len(size_S1), experts).index_add_(0, sequence_T, chosen_TE)
        if spread is not None:
            share_SE = spread.sum(share_SE)
        share_SE *= experts / top_k / size_S1
    affinity_TE = scores_TE / scores_TE.sum(1, keepdim=True)
    loss = (share_SE[sequence_T] * affinity_TE).sum()  # T_s P_i is the sum over the sequence's tokens
    return loss if spread is None else loss + spread.sum(loss) - loss.detach()


def _bias(router: Any) -> Tensor | None:
    return getattr(router, "e_score_correction_bias", None)


def _short(name: str) -> str:
    """model.layers.3.mlp.gate -> layer_3; mtp.block.mlp.gate -> mtp."""
    parts = name.split(".")
    return parts[0] if parts[0] == "mtp" else f"layer_{next((p for p in parts if p.isdigit()), '0')}"

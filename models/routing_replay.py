"""Routing replay: the experts that one pass chose, recorded, and forced on another (R3, arXiv:2510.11370).

Two programs with the same weights round differently, so close calls of a router fall either way, and another expert
computes the token. V3.2 therefore keeps the generator's routing in training (arXiv:2512.02556, section 3.1). Only the
choice I is forced. The gates come from the logits of the pass at hand in the router's own form, in V3's

    g_i = scale * sigmoid(s_i) / sum_{j in I} sigmoid(s_j)    for i in I,

so the router keeps its gradient; the selection bias has no part in it. Stored experts take a byte each, two beyond 256
experts: 464 B per token for V3 (58 layers, 8 experts). Axes: T tokens, L MoE layers in order, K experts per token, E
experts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _softmax(router: Any, logits_TE: Tensor) -> Tensor:
    return torch.softmax(logits_TE, dim=-1, dtype=torch.float32)


def _sigmoid(router: Any, logits_TE: Tensor) -> Tensor:
    return logits_TE.sigmoid()


def _configured(router: Any, logits_TE: Tensor) -> Tensor:
    return router.score_fn(logits_TE)


# Class of the router: its scores, and whether it divides them by their sum when it has no norm_topk_prob to say so.
FORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool]] = {
    "DeepseekV2TopkRouter": (_softmax, False),
    "DeepseekV3TopkRouter": (_sigmoid, True),
    "DeepseekV32TopkRouter": (_sigmoid, True),
    "DeepseekV4TopKRouter": (_configured, True),
    "DeepseekV4HashRouter": (_configured, True),
    "Qwen3MoeTopKRouter": (_softmax, True),
}


def scores(router: Any, logits_TE: Tensor) -> Tensor:
    """The affinities [T, E] that `router` derives from its logits, positive; all but the choice depends on them."""
    return FORMS[type(router).__name__][0](router, logits_TE)


def gates(router: Any, logits_TE: Tensor, experts_TK: Tensor) -> Tensor:
    """The weights [T, K] that `router` gives to `experts_TK` (int64); for its own choice, bit for bit its own."""
    gates_TK = scores(router, logits_TE).gather(1, experts_TK)
    if getattr(router, "norm_topk_prob", FORMS[type(router).__name__][1]):
        gates_TK = gates_TK / (gates_TK.sum(dim=-1, keepdim=True) + 1e-20)
    return (gates_TK * getattr(router, "routed_scaling_factor", 1.0)).to(logits_TE.dtype)


def _moe_layers(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """(router, experts) of every MoE layer, in order."""
    for block in model.modules():
        if isinstance(experts := getattr(block, "experts", None), nn.Module):
            yield getattr(block, "gate", None) or getattr(block, "router", None), experts


class Routes:
    """The experts of one forward pass. Kept by layer, so that a layer that is computed again counts once."""

    def __init__(self, given: Tensor | None = None):
        self.given = given  # [T, L, K] int16, all K -1 where a token routes itself; None: nothing to compare with
        self.own: dict[int, Tensor] = {}  # layer: [T, K], what its router chose; only next to `given`
        self.used: dict[int, Tensor] = {}  # layer: [T, K], what its experts were called with

    def experts(self) -> Tensor:
        """[T, L, K] uint8, or int16 beyond 256 experts: those that computed each token."""
        return torch.stack([self.used[layer] for layer in range(len(self.used))], dim=1)

    def agreement(self, seen: dict[int, Tensor]) -> tuple[int, int]:
        """(equal, all): pairs of token and layer with a given choice, and those where `seen` (`own` or `used`) is the
        same set of experts. (0, 0) without a given choice."""
        if self.given is None:
            return 0, 0
        chosen = torch.stack([seen[layer] for layer in range(len(seen))], dim=1)
        equal = (chosen.sort(dim=-1).values == self.given.sort(dim=-1).values).all(dim=-1)
        return int(equal.sum()), int((self.given[..., 0] >= 0).sum())


class RoutingReplay:
    """Watches the MoE layers of a model, and routes them. A model without MoE layers has nothing to watch: a no-op."""

    def __init__(self, model: nn.Module):
        self._blocks = list(_moe_layers(model))
        self.layers = len(self._blocks)
        router = self._blocks[0][0] if self._blocks else None  # of an unknown form it may lack anything
        self.num_experts, self.top_k = getattr(router, "num_experts", 0), getattr(router, "top_k", 0)
        self.dtype = torch.uint8 if self.num_experts <= 256 else torch.int16  # of noted experts

    def check(self) -> None:
        """Raises ValueError when the model has routers of an unknown form."""
        unknown = sorted({type(router).__name__ for router, _ in self._blocks} - FORMS.keys())
        if unknown:
            raise ValueError(
                f"routing replay does not know how {', '.join(unknown)} weighs its experts; it knows "
                f"{', '.join(FORMS)}. Set objective.routing_replay to off for this model"
            )

    @contextmanager
    def watch(
        self, given: np.ndarray | Tensor | None = None, *, force: bool = False, routes: Routes | None = None
    ) -> Iterator[Routes]:
        """Note the experts of the one forward pass made while this is open.

        given: [T, L, K] integers in [0, E), different within a token and layer, or all -1 where a token routes itself.
        The pass is compared with it and, with `force`, follows it until this closes: leave it open through backward,
        since recomputed activations ask the routers again.
        routes: what was noted while this was open before, to go on with, when a pass is not made in one go.
        Raises ValueError for unknown routers and for a `given` that does not fit the model or the pass.
        """
        self.check()
        routes = Routes(self._checked(given)) if routes is None else routes
        hooks = []
        try:
            for layer, (router, experts) in enumerate(self._blocks):
                hooks.append(experts.register_forward_pre_hook(self._note_used(routes, layer)))
                if routes.given is not None:  # before other hooks, which then see what is used (LoadCounter)
                    hooks.append(router.register_forward_hook(self._choose(routes, layer, force), prepend=True))
            yield routes
        finally:
            for hook in hooks:
                hook.remove()

    def compact(self, experts: Tensor) -> np.ndarray:
        """Noted experts as they are stored and sent: uint8, or uint16 beyond 256 experts. Always a copy."""
        return experts.cpu().numpy().astype(np.uint8 if self.dtype == torch.uint8 else np.uint16)

    def _note_used(self, routes: Routes, layer: int):
        def note(module, args):
            routes.used[layer] = args[1].to(self.dtype)  # (hidden states, experts, gates)

        return note

    def _choose(self, routes: Routes, layer: int, force: bool):
        def choose(router, args, output):
            logits_TE, _, own_TK = output
            assert routes.given is not None
            given_TK = routes.given[:, layer].long()
            if given_TK.shape != own_TK.shape:
                raise ValueError(f"routed experts of {len(given_TK)} tokens were given for a pass over {len(own_TK)}")
            routes.own[layer] = own_TK.to(self.dtype)
            if not force:
                return None
            experts_TK = torch.where(given_TK < 0, own_TK, given_TK)
            return logits_TE, gates(router, logits_TE, experts_TK), experts_TK

        return choose

    def _checked(self, given: np.ndarray | Tensor | None) -> Tensor | None:
        if given is None or not self._blocks:
            return None
        experts = torch.as_tensor(given, device=self._blocks[0][0].weight.device).to(torch.int16)
        if experts.shape[1:] != (self.layers, self.top_k):
            raise ValueError(
                f"routed experts have shape {tuple(experts.shape)}; this model has {self.layers} MoE layers with "
                f"{self.top_k} experts per token"
            )
        ordered = experts.sort(dim=-1).values
        different = (ordered[..., 1:] > ordered[..., :-1]).all(dim=-1)
        chosen = different & (ordered[..., 0] >= 0) & (ordered[..., -1] < self.num_experts)
        bad = (~chosen & (ordered != -1).any(dim=-1)).nonzero()
        if len(bad):
            token, layer = bad[0].tolist()
            raise ValueError(
                f"routed experts of token {token} in MoE layer {layer} are {experts[token, layer].tolist()}: not "
                f"{self.top_k} different ones out of {self.num_experts}"
            )
        return experts

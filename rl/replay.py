"""Routing replay over the rows of a step, on a rank that may hold some of the layers only (training.pipeline)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from models.routing_replay import Routes, RoutingReplay
from rl.batch import MicroBatch
from rl.metrics import combine
from rl.mismatch import routing_sums
from training.parallel import Ranks


class ReplayedRows:
    """The experts of one pass over each row of a step, forced on it or only noted.

    layers: where the MoE layers that `replay` watches stand among those of the whole model.
    force: passes follow the rows' experts. idle: rows without experts are not watched.
    """

    def __init__(self, replay: RoutingReplay, layers: Sequence[int], ranks: Ranks, *, force: bool, idle: bool):
        self.replay, self.layers, self.ranks = replay, list(layers), ranks
        self.force, self.idle = force, idle
        self._routes: dict[int, Routes] = {}  # by the identity of the row; empty rows may be one object

    @contextmanager
    def around(self, row: MicroBatch) -> Iterator[None]:
        """To be open while a row is computed, or a part of its layers (training.passes.Around)."""
        if self.idle and row.routed_experts is None:
            yield
            return
        before = self._routes.get(id(row))
        given = None if before is not None or row.routed_experts is None else self._given(row.routed_experts)
        with self.replay.watch(given, force=self.force, routes=before) as routes:
            self._routes[id(row)] = routes
            yield

    def sums(self, kind: Literal["own", "used"]) -> dict[str, float]:
        """`routing_sums` of all rows and all layers."""
        here = combine(routing_sums(routes, kind) for routes in self._routes.values())
        return combine(self.ranks.along_pipeline(combine(self.ranks.along_context(here))))

    def experts(self, rows: Sequence[MicroBatch]) -> list[np.ndarray]:
        """[T, L, K] of each row: what computed it in all MoE layers, as `RoutingReplay.compact` gives it."""
        here = [self._whole(self._routes[id(row)], len(row.input_ids)) for row in rows] if self.layers else []
        parts = [part for part in self.ranks.along_pipeline((self.layers, here)) if part[0]]
        order = np.argsort([layer for layers, _ in parts for layer in layers])
        return [np.concatenate(pieces, axis=1)[:, order] for pieces in zip(*(found for _, found in parts), strict=True)]

    def _given(self, experts_TLK: np.ndarray) -> np.ndarray:
        """Of the layers and tokens here."""
        if (context := self.ranks.context) is not None:
            missing = np.full((context.missing(len(experts_TLK)), *experts_TLK.shape[1:]), -1)
            here = context.here(len(experts_TLK)).numpy()
            experts_TLK = np.concatenate([experts_TLK, missing])[here] if len(missing) else experts_TLK[here]
        return experts_TLK[:, self.layers]

    def _whole(self, routes: Routes, tokens: int) -> np.ndarray:
        """[T, L, K] of one row in the layers here, from the ranks that share its tokens."""
        shares = self.ranks.along_context(self.replay.compact(routes.experts()))
        if self.ranks.context is None:
            return shares[0]
        return np.concatenate(shares)[self.ranks.context.order(tokens).numpy()][:tokens]

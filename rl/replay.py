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
        given = None if before is not None or row.routed_experts is None else row.routed_experts[:, self.layers]
        with self.replay.watch(given, force=self.force, routes=before) as routes:
            self._routes[id(row)] = routes
            yield

    def sums(self, kind: Literal["own", "used"]) -> dict[str, float]:
        """`routing_sums` of all rows and all layers."""
        here = combine(routing_sums(routes, kind) for routes in self._routes.values())
        return combine(self.ranks.along_pipeline(here))

    def experts(self, rows: Sequence[MicroBatch]) -> list[np.ndarray]:
        """[T, L, K] of each row: what computed it in all MoE layers, as `RoutingReplay.compact` gives it."""
        here = [self.replay.compact(self._routes[id(row)].experts()) for row in rows] if self.layers else []
        parts = [part for part in self.ranks.along_pipeline((self.layers, here)) if part[0]]
        order = np.argsort([layer for layers, _ in parts for layer in layers])
        return [np.concatenate(pieces, axis=1)[:, order] for pieces in zip(*(found for _, found in parts), strict=True)]

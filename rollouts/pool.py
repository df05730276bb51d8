"""Generator replicas behind one iterator: prompts are spread over them, finished groups come back as they are ready.

Which replica gets which prompts is fixed by the requests alone, so a batch of requests samples the same tokens every
time. A replica that dies is started again with the same weights and samples its whole share again; groups it had
already delivered come out the same and are not delivered twice, so nothing is lost and short completions gain nothing.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.actors import ActorDied, PhaseTimeout, kill, next_item, share, spawn, wait
from data.packing import deal
from rollouts.config import GeneratorConfig
from rollouts.records import Group, Request, SamplingParams

logger = logging.getLogger(__name__)
_MAX_RESTARTS = 3  # per call of `stream`; a replica that keeps dying is a fault to report, not to hide


class GeneratorPool:
    """All replicas of one policy. `weights_at` remembers the last sync, for replicas that are started later."""

    def __init__(self, checkpoint: str, config: GeneratorConfig, shared: Any = None):
        """`shared`: an actor that samples from the weights it trains; then no other process is started."""
        self.checkpoint, self.config, self.shared = checkpoint, config, shared
        self._weights_at: tuple[Any, int] | None = None
        self._replicas = [shared] if shared is not None else [self._start() for _ in range(config.replicas)]

    def _start(self) -> Any:
        return spawn(
            "rollouts.transformers_generator:TransformersGenerator",
            self.checkpoint,
            max_slots=self.config.max_slots,
            dtype=self.config.dtype,
            device=self.config.device,
            threads=self.config.threads,
        )

    def sync(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Give every replica the policy's weights, by checkpoint name. Returns when all have them."""
        self._weights_at = (share(dict(weights)), version)
        loads = [replica.load_weights.remote(*self._weights_at) for replica in self._replicas]
        try:
            wait(loads, phase=f"weight sync to version {version}", deadline_s=self.config.deadline_s)
        except ActorDied:
            for index in range(len(self._replicas)):
                if self._is_dead(index):
                    self._restart(index)

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Group]:
        """Groups of all requests, each once, in the order they finish. See `Generator.sample` for what they hold.

        Raises PhaseTimeout when no group arrives within the deadline, ActorDied when a replica keeps dying, StartFailed
        when one cannot be built.
        """
        shares = deal([len(r.prompt_ids) for r in requests], len(self._replicas))
        work = {i: [requests[r] for r in sorted(share)] for i, share in enumerate(shares) if share}
        streams = {i: self._open(i, share, params) for i, share in work.items()}
        delivered: set[str] = set()
        restarts, last = 0, time.monotonic()
        while streams:
            try:
                replica, group = next_item(streams, phase="sampling", deadline_s=self._left(last))
            except ActorDied as error:
                restarts += 1
                if restarts > _MAX_RESTARTS or self.shared is not None:
                    raise
                logger.warning("%s; starting it again and sampling its share again", error)
                self._restart(error.key)
                streams[error.key] = self._open(error.key, work[error.key], params)
                continue
            if group is None:
                del streams[replica]
            elif group.key not in delivered:
                delivered.add(group.key)
                last = time.monotonic()
                yield group

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """`stream`, collected, in the order of the requests."""
        by_key = {group.key: group for group in self.stream(requests, params)}
        return [by_key[request.key] for request in requests]

    def close(self) -> None:
        for replica in self._replicas:
            if replica is not self.shared:
                kill(replica)
        self._replicas = []

    def _open(self, index: int, requests: list[Request], params: SamplingParams) -> Any:
        return self._replicas[index].stream.options(num_returns="streaming").remote(requests, params)

    def _left(self, last: float) -> float:
        left = self.config.deadline_s - (time.monotonic() - last)
        if left <= 0:
            raise PhaseTimeout(f"sampling: no group finished within {self.config.deadline_s:.0f} s")
        return left

    def _is_dead(self, index: int) -> bool:
        ready = self._replicas[index].ready.remote()
        try:
            wait(ready, phase="checking a generator", deadline_s=self.config.deadline_s)
        except ActorDied:
            return True
        return False

    def _restart(self, index: int) -> None:
        kill(self._replicas[index])  # it may only have been out of reach: two would share its memory and its cores
        self._replicas[index] = self._start()
        if self._weights_at is not None:
            load = self._replicas[index].load_weights.remote(*self._weights_at)
            wait(load, phase="weight sync to a restarted generator", deadline_s=self.config.deadline_s)

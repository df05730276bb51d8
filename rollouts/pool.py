"""Generator replicas behind one iterator: prompts are spread over them, finished groups come back as they are ready.

Which replica gets which prompts is fixed by the requests alone (unless it may steal work), so a batch of requests
samples the same tokens every time. A replica that dies is started again with the same weights and samples its whole
share again; groups it had already delivered come out the same and are not delivered twice, so nothing is lost and short
completions gain nothing.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cluster.actors import ActorDied, PhaseTimeout, kill, next_item, spawn, wait
from cluster.placement import Places, Spread
from cluster.running import places_of
from data.packing import deal
from rollouts.config import GeneratorConfig
from rollouts.records import Group, Request, SamplingParams
from rollouts.transport import Transport

logger = logging.getLogger(__name__)
# Per call; a replica that keeps dying is a fault to report, not to hide. More than one, because it may be started again
# on the node with which it was lost, before Ray knows that this has left.
_MAX_RESTARTS = 3
_UNREAD_GROUPS = 64  # per replica, finished and not yet taken: beyond that it waits for the rewards


_ENGINES = {
    "transformers": "rollouts.transformers_generator:TransformersGenerator",
    "vllm": "rollouts.vllm_generator:VLLMGenerator",
}


class GeneratorPool:
    """All replicas of one policy. A replica started later gets the weights of the last sync before it samples."""

    def __init__(
        self,
        checkpoint: str,
        config: GeneratorConfig,
        shared: Any = None,
        places: Places | None = None,
        make_room: Callable[[], None] = lambda: None,
    ):
        """`shared`: an actor that samples from the weights it trains; then no other process is started.

        `make_room`: called before a replica is started again, and before it makes its cache, where replicas sleep: who
        shares devices with it, leaves.

        `places`: bundles for the replicas; by default those of the stage's generators, where there are any."""
        self.checkpoint, self.config, self.shared = checkpoint, config, shared
        self.takes_turns, self.make_room = config.sleep and shared is None, make_room
        self.closed = False
        self.weights_move = False  # the trainer is at work, and no longer has what it sent in the last sync
        self._synced: tuple[Transport, int] | None = None
        self._context: float | None = None
        self._places = places or places_of("generator")
        self.replicas = [shared] if shared is not None else [self._start(index) for index in range(config.replicas)]

    def _start(self, index: int) -> Any:
        config, settings = self.config, self.config.replica_settings()
        place = {
            "threads": config.threads,
            "places": self._places,
            "shared_gpus": 0 if config.device == "cpu" else config.tensor_parallel // config.nodes,
        }
        first = index * config.nodes
        if config.nodes > 1:
            settings["spread"] = Spread(nodes=config.nodes, first=first, **place)
        return spawn(_ENGINES[config.engine], self.checkpoint, place=first, **place, **settings)

    def sync(self, transport: Transport, version: int) -> None:
        """Give every replica the weights that `transport` brings. Returns when all have them.

        Until the next sync the transport must be able to bring the same ones again, to a replica that is replaced.
        """
        self._synced = (transport, version)
        for left in reversed(range(_MAX_RESTARTS)):
            try:
                return transport.send(self.replicas, version, self.config.deadline_s)
            except ActorDied as error:
                if not left:
                    raise
                logger.warning("%s; starting all replicas again", error)
            for index in range(len(self.replicas)):  # those that live as well: an engine cannot begin an update twice
                self._restart(index, weights=False)
            self.wake()

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
        """Per replica: logprobs of the tokens of each sequence but its first (see `Generator.score`)."""
        return self._ask_all("score", sequences, phase="scoring the probe")

    def held_checksums(self) -> list[dict[str, str] | None]:
        """Per replica, see `Generator.held_checksums`."""
        return self._ask_all("held_checksums", phase="checksums of weights")

    def context(self) -> float:
        """Tokens of prompt and completion together that every replica takes; infinite where it is the trainer's."""
        if self._context is None:
            asked = [] if self.shared is not None else self._ask_all("context", phase="starting generators")
            self._context = min((float(tokens) for tokens in asked), default=math.inf)
        return self._context

    def sleep(self) -> None:
        """Let replicas give back device memory, if the recipe says so; `wake` before the next sync."""
        if self.takes_turns:
            self._ask_all("sleep", phase="putting generators to sleep", weights=False)

    def wake(self) -> None:
        """Before a sync: what they need to take weights, and no cache yet, since a trainer may be beside them."""
        if self.takes_turns:
            self._ask_all("wake", phase="waking generators", weights=False)  # they come with the sync that follows

    def wake_cache(self) -> None:
        """After it, before they sample or score."""
        if self.takes_turns:
            self._ask_all("wake_cache", phase="waking generators")

    def _ask_all(self, method: str, *args: Any, phase: str, weights: bool = True) -> list[Any]:
        """What every replica answers; one that is dead is started again first, with the weights of the last sync."""
        calls = [getattr(replica, method).remote(*args) for replica in self.replicas]
        return [self._answer(index, call, method, args, phase, weights) for index, call in enumerate(calls)]

    def _answer(self, index: int, call: Any, method: str, args: Any, phase: str, weights: bool) -> Any:
        for left in reversed(range(_MAX_RESTARTS)):
            try:
                return wait(call, phase=phase, deadline_s=self.config.deadline_s)
            except ActorDied as error:
                if self.shared is not None or not left:
                    raise
                logger.warning("%s; starting it again", error)
            self._restart(index, weights=weights)
            call = getattr(self.replicas[index], method).remote(*args)
        raise AssertionError("the last attempt returns or raises")

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Group]:
        """Groups of all requests, each once, in the order they finish. See `Generator.sample` for what they hold.

        Those of optional requests may come interrupted (see `Generator.stream`).

        Raises PhaseTimeout when no group arrives within the deadline, ActorDied when a replica keeps dying, StartFailed
        when one cannot be built.
        """
        queues = self._divide(requests, params)
        batches = {index: queue.popleft() for index, queue in queues.items() if queue}
        streams = {index: self._open(index, batch, params) for index, batch in batches.items()}
        delivered: set[str] = set()
        restarts, last = 0, time.monotonic()
        while streams:
            try:
                replica, group = next_item(streams, phase="sampling", deadline_s=self._left(last))
            except ActorDied as error:
                restarts += 1
                if restarts > _MAX_RESTARTS or self.shared is not None or self.closed:
                    raise
                logger.warning("%s; starting it again and sampling its share again", error)
                self._restart(error.key)
                last = time.monotonic()
                streams[error.key] = self._open(error.key, batches[error.key], params)
                continue
            if group is None:
                del streams[replica]
                if queues[replica]:
                    batches[replica] = queues[replica].popleft()
                    streams[replica] = self._open(replica, batches[replica], params)
            elif group.key not in delivered:
                delivered.add(group.key)
                yield group
                last = time.monotonic()  # what the caller did with the group was not sampling

    def _divide(self, requests: Sequence[Request], params: SamplingParams) -> dict[int, deque[list[Request]]]:
        """Per replica the batches of requests that it samples one after the other, longest completions first.

        Fixed by the requests alone, one batch each; with work stealing one queue for all, of batches that just fill a
        replica.
        """
        order = sorted(requests, key=lambda r: (r.optional, not r.begun, -r.expected_tokens, -len(r.prompt_ids), r.key))
        replicas = len(self.replicas)
        if not self.config.work_stealing:
            shares: list[list[Request]] = [[] for _ in range(replicas)]
            for optional in (False, True):  # each replica gets its part of both
                kind = [request for request in order if request.optional is optional]
                weights = [len(r.prompt_ids) + round(r.expected_tokens * params.group_size) for r in kind]
                for share, dealt in zip(shares, deal(weights, replicas), strict=True):
                    share += [kind[place] for place in sorted(dealt)]
            return {index: deque([share] * bool(share)) for index, share in enumerate(shares)}
        size = max(1, self.config.max_slots // params.group_size)
        common = deque(order[start : start + size] for start in range(0, len(order), size))
        return dict.fromkeys(range(replicas), common)

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """`stream`, collected, in the order of the requests."""
        by_key = {group.key: group for group in self.stream(requests, params)}
        return [by_key[request.key] for request in requests]

    def close(self) -> None:
        """End all replicas. A thread that samples with them gets ActorDied."""
        self.closed = True
        for replica in self.replicas:
            if replica is not self.shared:
                kill(replica)
        self.replicas = []

    def _open(self, index: int, requests: list[Request], params: SamplingParams) -> Any:
        stream = self.replicas[index].stream.options(
            num_returns="streaming",
            _generator_backpressure_num_objects=_UNREAD_GROUPS,
        )
        return stream.remote(requests, params, self._synced[1] if self._synced else None)

    def _left(self, last: float) -> float:
        left = self.config.deadline_s - (time.monotonic() - last)
        if left <= 0:
            raise PhaseTimeout(f"sampling: no group finished within {self.config.deadline_s:.0f} s")
        return left

    def _restart(self, index: int, weights: bool = True) -> None:
        if self.closed:
            raise ActorDied("the generators were stopped")
        if weights and self.weights_move and self._synced is not None and not self._synced[0].repeats:
            raise ActorDied(
                "a generator died while rollouts ran ahead of the trainer, which has other weights by now; with "
                "generator.sync.transport files it would get the same ones again"
            )
        for left in reversed(range(_MAX_RESTARTS)):
            kill(self.replicas[index])  # it may only have been out of reach: two would share its memory and its cores
            if self.takes_turns:
                self.make_room()
            self.replicas[index] = self._start(index)
            try:
                return self._bring_up_to_date(self.replicas[index], weights)
            except ActorDied as error:
                if not left:
                    raise
                logger.warning("%s; starting it again", error)

    def _bring_up_to_date(self, replica: Any, weights: bool) -> None:
        """A new replica, with the weights of the last sync or asleep until the next; as it is, where none sleep."""

        def ask(method: str) -> None:
            if self.takes_turns:
                call = getattr(replica, method).remote()
                wait(call, phase=f"{method}: a generator started again", deadline_s=self.config.deadline_s)

        ask("sleep")
        if weights and self._synced is not None:
            ask("wake")
            self._synced[0].send([replica], self._synced[1], self.config.deadline_s)
            if self.takes_turns:
                self.make_room()
            ask("wake_cache")

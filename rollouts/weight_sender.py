"""The trainer's end of weight sync: the policy's weights on every way that rollouts.transport knows."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cluster.actors import node_address
from models.routing import is_selection_bias
from rollouts.buckets import Named, WireFormat, checksum, pack_weights
from rollouts.collective import Backend, Broadcaster, Meeting
from rollouts.shared_memory import Shared
from rollouts.weight_files import write_buckets
from rollouts.weight_sync import Parcel, host_id


class WeightSender:
    """To be mixed into an actor that has `weights`.

    Several processes may hold one policy. All of them do what is asked; `leads` is true in the one that sends, and
    the others, whose `weights` yield nothing, take part in putting weights together.
    """

    device: torch.device
    leads: bool = True
    rounds: bool = False  # whether it multiplies its weights in bfloat16, or in FP8 what it has in bfloat16
    _broadcaster: Broadcaster | None = None
    _shared: Shared | None = None
    _weights: Iterator[Named] = iter(())
    _parcels: Iterator[Parcel] = iter(())

    def weights(self) -> Iterator[Named]:
        """(checkpoint name, weight) of the policy, where they are: not to be written to."""
        raise NotImplementedError

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Checkpoint name -> shape of everything that is sent."""
        return {name: tuple(weight.shape) for name, weight in self.weights()}

    def device_type(self) -> str:
        """cpu or cuda."""
        return self.device.type

    def weight_checksums(self) -> dict[str, str]:
        """Of every tensor as it is held."""
        return {name: checksum(weight) for name, weight in self.weights()}

    def bad_weights(self) -> list[str]:
        """Names of tensors with an infinity or a NaN."""
        return [name for name, weight in self.weights() if not torch.isfinite(weight).all()]

    def write_weights(self, folder: str, limit_bytes: int, wire: WireFormat) -> None:
        """Buckets (see rollouts.buckets) as safetensors files, in place of those that `folder` holds."""
        with self._all_weights(wire) as weights:
            if self.leads:
                write_buckets(Path(folder), pack_weights(weights, limit_bytes, wire, checksums=False))

    # --- broadcast ---

    def open_broadcast(self, world: int, backend: Backend, deadline_s: float) -> Meeting | None:
        """Where the receivers are to come; then call `broadcast`, and `close_broadcast` when all have finished."""
        if not self.leads:
            return None
        self._broadcaster = Broadcaster(node_address(), world, backend, deadline_s)
        return self._broadcaster.meeting

    def broadcast(self, limit_bytes: int, wire: WireFormat, checksums: bool) -> None:
        """Raises BroadcastBroken when a receiver fails, BroadcastTimeout when one stands still."""
        with self._all_weights(wire) as weights:
            if not self.leads:
                return
            assert self._broadcaster is not None, "open_broadcast comes first"
            device = self.device if self._broadcaster.meeting.backend == "nccl" else torch.device("cpu")
            allocate = _zeros_on(device)
            buckets = pack_weights(weights, limit_bytes, wire, checksums=checksums, allocate=allocate)
            self._broadcaster.send(buckets, device)

    def close_broadcast(self) -> None:
        self._broadcaster = None

    # --- buckets, one after the other ---

    def host(self) -> str:
        """See WeightReceiver.host."""
        return host_id(self.device_type())

    def open_buckets(self, limit_bytes: int, wire: WireFormat, checksums: bool) -> None:
        """Then call `next_parcel` until it says that there is no more, and `close_parcels` in any case."""
        self._weights = self._multiplied(wire)
        self._parcels = pack_weights(self._weights, limit_bytes, wire, checksums=checksums)

    def open_shared(self, limit_bytes: int, wire: WireFormat, checksums: bool, readers: int) -> None:
        """The same, in memory that `readers` processes map. Of two buckets in a row the first may still be read."""
        self._shared, self._weights = Shared(readers), self._multiplied(wire)
        self._parcels = self._shared.buckets(self._weights, limit_bytes, wire, checksums, self.device)

    def next_parcel(self) -> tuple[Parcel | None, bool]:
        """(the next one, whether there is one)."""
        parcel = next(self._parcels, None)
        return parcel, parcel is not None

    def close_parcels(self) -> None:
        deque(self._weights, maxlen=0)  # see _all_weights
        self._parcels = iter(())
        if self._shared is not None:
            self._shared.close()
        self._shared = None

    def _multiplied(self, wire: WireFormat) -> Iterator[Named]:
        """`weights`; what becomes FP8 on the way is rounded as it is here before, so that both sides quantise
        the same numbers."""
        for name, weight in self.weights():
            finer = wire == "fp8" and self.rounds and weight.is_floating_point() and not is_selection_bias(name)
            yield name, weight.bfloat16() if finer else weight

    @contextmanager
    def _all_weights(self, wire: WireFormat) -> Iterator[Iterator[Named]]:
        """`weights`, read to the end in any case: processes that hold other pieces of them wait for this one."""
        weights = self._multiplied(wire)
        try:
            yield weights
        finally:
            deque(weights, maxlen=0)


def _zeros_on(device: torch.device):
    return lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8, device=device)

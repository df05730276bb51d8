"""The trainer's end of weight sync: the policy's weights on every way that rollouts.transport knows."""

from collections.abc import Iterator
from pathlib import Path

import torch

from cluster.actors import node_address
from rollouts.buckets import Bucket, WireFormat, checksum, pack_weights
from rollouts.collective import Backend, Broadcaster, Meeting
from rollouts.shared_memory import Shared
from rollouts.weight_files import write_buckets
from rollouts.weight_sync import Parcel, host_id


class WeightSender:
    """To be mixed into an actor that has `weight_views`."""

    device: torch.device
    _broadcaster: Broadcaster | None = None
    _shared: Shared | None = None
    _parcels: Iterator[Parcel] = iter(())

    def weight_views(self) -> dict[str, torch.Tensor]:
        """The policy's weights by checkpoint name, where they are: not to be written to."""
        raise NotImplementedError

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Checkpoint name -> shape of everything that is sent."""
        return {name: tuple(view.shape) for name, view in self.weight_views().items()}

    def device_type(self) -> str:
        """cpu or cuda."""
        return self.device.type

    def weight_checksums(self) -> dict[str, str]:
        """Of every tensor as it is held."""
        return {name: checksum(view) for name, view in self.weight_views().items()}

    def weight_buckets(self, limit_bytes: int, wire: WireFormat, checksums: bool = True) -> Iterator[Bucket]:
        """The policy's weights, a bucket at a time (see rollouts.buckets)."""
        yield from pack_weights(self.weight_views().items(), limit_bytes, wire, checksums=checksums)

    def write_weights(self, folder: str, limit_bytes: int, wire: WireFormat) -> None:
        """The same buckets as safetensors files, in place of those that `folder` holds."""
        write_buckets(Path(folder), self.weight_buckets(limit_bytes, wire, checksums=False))

    # --- broadcast ---

    def open_broadcast(self, world: int, backend: Backend, deadline_s: float) -> Meeting:
        """Where the receivers are to come; then call `broadcast`, and `close_broadcast` when all have finished."""
        self._broadcaster = Broadcaster(node_address(), world, backend, deadline_s)
        return self._broadcaster.meeting

    def broadcast(self, limit_bytes: int, wire: WireFormat, checksums: bool) -> None:
        """Raises PeerLost when a receiver fails, BroadcastTimeout when one stands still."""
        assert self._broadcaster is not None, "open_broadcast comes first"
        device = self.device if self._broadcaster.meeting.backend == "nccl" else torch.device("cpu")
        buckets = pack_weights(
            self.weight_views().items(), limit_bytes, wire, checksums=checksums, allocate=_zeros_on(device)
        )
        self._broadcaster.send(buckets, device)

    def close_broadcast(self) -> None:
        self._broadcaster = None

    # --- buckets, one after the other ---

    def host(self) -> str:
        """See WeightReceiver.host."""
        return host_id()

    def open_buckets(self, limit_bytes: int, wire: WireFormat, checksums: bool) -> None:
        """Then call `next_parcel` until it says that there is no more, and `close_parcels` in any case."""
        self._parcels = self.weight_buckets(limit_bytes, wire, checksums)

    def open_shared(self, limit_bytes: int, wire: WireFormat, checksums: bool, readers: int) -> None:
        """The same, in memory that `readers` processes map. Of two buckets in a row the first may still be read."""
        self._shared = Shared(readers)
        self._parcels = self._shared.buckets(self.weight_views().items(), limit_bytes, wire, checksums, self.device)

    def next_parcel(self) -> tuple[Parcel | None, bool]:
        """(the next one, whether there is one)."""
        parcel = next(self._parcels, None)
        return parcel, parcel is not None

    def close_parcels(self) -> None:
        self._parcels = iter(())
        if self._shared is not None:
            self._shared.close()
        self._shared = None


def _zeros_on(device: torch.device):
    return lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8, device=device)

"""Ways for weights to get from the trainer's process into the generators'. The driver in between holds none of them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from cluster.actors import ActorDied, wait
from rollouts.config import WeightSyncConfig

_MIB = 1 << 20
_GRACE_S = 30.0  # for the processes of a broadcast to say themselves why it failed


class Transport(Protocol):
    """Knows where the current weights are."""

    repeats: bool  # whether it can send those of the last sync again while the trainer goes on

    def send(self, replicas: Sequence[Any], version: int, deadline_s: float) -> None:
        """Every replica holds `version` afterwards.

        Raises as `cluster.actors.wait`, naming the phase. A replica that raised holds no weights, and samples nothing.
        """
        ...


class OtherHost(ValueError):
    """Replicas that cannot map the trainer's memory."""

    retry = False


class _Parcels:
    """What all ways by parcels (rollouts.weight_sync) share. The trainer is a rollouts.weight_sender.WeightSender."""

    repeats = False

    def __init__(self, trainer: Any, config: WeightSyncConfig):
        self.trainer, self.config = trainer, config

    def send(self, replicas: Sequence[Any], version: int, deadline_s: float) -> None:
        self.phase, self.deadline_s = f"weight sync to version {version}", deadline_s
        self._check(replicas)
        self._on_all(replicas, "begin_update", self._ask("weight_shapes"))
        self._deliver(replicas)
        self._on_all(replicas, "finish_update", version)

    def _check(self, replicas: Sequence[Any]) -> None:
        """Raises, before anything changes, when replicas cannot be reached this way."""

    def _deliver(self, replicas: Sequence[Any]) -> None:
        raise NotImplementedError

    def _on_all(self, replicas: Sequence[Any], method: str, *args: Any) -> list[Any]:
        return self._wait([getattr(replica, method).remote(*args) for replica in replicas])

    def _ask(self, method: str, *args: Any) -> Any:
        return self._wait(getattr(self.trainer, method).remote(*args))

    def _wait(self, refs: Any) -> Any:
        return wait(refs, phase=self.phase, deadline_s=self.deadline_s)

    @property
    def _packing(self) -> tuple[int, str, bool]:
        return self.config.bucket_mib * _MIB, self.config.wire, self.config.checksums


class _Buckets(_Parcels):
    """One parcel after the other: the trainer packs the next one while the replicas read this one.

    Every parcel is asked for. A stream of them would keep the trainer waiting for readers that are not there any more.
    """

    def _open(self, replicas: Sequence[Any]) -> None:
        raise NotImplementedError

    def _deliver(self, replicas: Sequence[Any]) -> None:
        next_parcel = self.trainer.next_parcel.options(num_returns=2)
        self._open(replicas)
        try:
            parcel, more = next_parcel.remote()
            while self._wait(more):
                ahead = next_parcel.remote()
                self._wait([replica.update.remote(parcel, rank) for rank, replica in enumerate(replicas, 1)])
                parcel, more = ahead
        finally:
            self.trainer.close_parcels.remote()


class ObjectStore(_Buckets):
    """Buckets through Ray's object store: shared memory on one node, the network between nodes."""

    def _open(self, replicas: Sequence[Any]) -> None:
        self._ask("open_buckets", *self._packing)


class SharedMemory(_Buckets):
    """Buckets in memory that trainer and replicas map. For replicas beside the trainer: see rollouts.shared_memory."""

    def _check(self, replicas: Sequence[Any]) -> None:
        here = self._ask("host")
        if any(host != here for host in self._on_all(replicas, "host")):
            raise OtherHost(
                "sync.transport shared_memory: a generator runs on another host or GPU, or in another container, than "
                "the trainer and cannot map its memory; take transport object_store or collective, or one replica, "
                "which is on its host and GPU"
            )

    def _open(self, replicas: Sequence[Any]) -> None:
        self._ask("open_shared", *self._packing, len(replicas))


class Collective(_Parcels):
    """One broadcast in a process group of trainer and engine processes, formed for this sync alone: a group that has
    lost a member is of no use, and so no state is left over from a failure. See rollouts.collective."""

    def _deliver(self, replicas: Sequence[Any]) -> None:
        counts = self._on_all(replicas, "engine_processes")
        kinds = {*self._on_all(replicas, "device_type"), self._ask("device_type")}
        backend = "nccl" if kinds == {"cuda"} else "gloo"
        first = [1 + sum(counts[:index]) for index in range(len(counts))]
        meeting = self._ask("open_broadcast", 1 + sum(counts), backend, self.deadline_s)
        try:
            receiving = [r.update.remote(meeting, rank) for r, rank in zip(replicas, first, strict=True)]
            self._settle([*receiving, self.trainer.broadcast.remote(*self._packing)])
        finally:
            self.trainer.close_broadcast.remote()

    def _settle(self, refs: Sequence[Any]) -> None:
        """Until all have ended. Of several failures the first cause is raised: a death before what follows from it."""
        failures: list[Exception] = []
        until = time.monotonic() + self.deadline_s + _GRACE_S
        for ref in refs:
            try:
                wait(ref, phase=self.phase, deadline_s=max(1.0, until - time.monotonic()))
            except Exception as error:
                failures.append(error)
        if failures:
            raise min(failures, key=_remoteness)


def _remoteness(error: Exception) -> int:
    """How far from the cause: a process that lost another one knows least."""
    if isinstance(error, ActorDied):
        return 0
    return {"BroadcastBroken": 3, "BroadcastTimeout": 2, "PhaseTimeout": 2}.get(type(error).__name__, 1)


class Files:
    """Safetensors in a folder that all sides see. With a trainer, it writes them there first."""

    repeats = True

    def __init__(self, folder: Path, trainer: Any = None, config: WeightSyncConfig | None = None):
        self.folder, self.trainer, self.config = folder, trainer, config or WeightSyncConfig()
        self._written: int | None = None

    def send(self, replicas: Sequence[Any], version: int, deadline_s: float) -> None:
        phase = f"weight sync to version {version}"
        if self.trainer is not None and self._written != version:
            limit = self.config.bucket_mib * _MIB
            written = self.trainer.write_weights.remote(str(self.folder), limit, self.config.wire)
            wait(written, phase=phase, deadline_s=deadline_s)
            self._written = version
        loads = [replica.load_files.remote(str(self.folder), version) for replica in replicas]
        wait(loads, phase=phase, deadline_s=deadline_s)


_BY_PARCELS: dict[str, Callable[[Any, WeightSyncConfig], Transport]] = {
    "object_store": ObjectStore,
    "collective": Collective,
    "shared_memory": SharedMemory,
}


def open_transport(trainer: Any, config: WeightSyncConfig, folder: Path) -> Transport:
    """The recipe's way from this trainer; `folder` is for files."""
    if config.transport == "files":
        return Files(folder, trainer, config)
    return _BY_PARCELS[config.transport](trainer, config)

"""Ways for weights to get from the trainer's process into the generators'. The driver in between holds none of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cluster.actors import each_ref, wait
from rollouts.config import WeightSyncConfig

_MIB = 1 << 20
_AHEAD = 2  # buckets the trainer packs before the replicas have read them


class Transport(Protocol):
    """Knows where the current weights are."""

    def send(
        self, replicas: Sequence[Any], version: int, deadline_s: float, checksums: bool = False
    ) -> list[dict[str, str]]:
        """Every replica holds `version` afterwards. Returns, when asked, the checksums of what arrived at each.

        Raises as `cluster.actors.wait`, naming the phase. A replica that raised holds no weights, and samples nothing.
        """
        ...


class ObjectStore:
    """Buckets through Ray's object store: shared memory on one node, the network between nodes."""

    def __init__(self, trainer: Any, config: WeightSyncConfig):
        """`trainer`: an actor with `weight_shapes()` and a streaming `weight_buckets(limit_bytes, wire)`."""
        self.trainer, self.config = trainer, config

    def send(
        self, replicas: Sequence[Any], version: int, deadline_s: float, checksums: bool = False
    ) -> list[dict[str, str]]:
        phase = f"weight sync to version {version}"

        def on_all(method: str, *args: Any) -> list[Any]:
            calls = [getattr(replica, method).remote(*args) for replica in replicas]
            return wait(calls, phase=phase, deadline_s=deadline_s)

        on_all("begin_update", wait(self.trainer.weight_shapes.remote(), phase=phase, deadline_s=deadline_s))
        stream = self.trainer.weight_buckets.options(
            num_returns="streaming", _generator_backpressure_num_objects=_AHEAD
        )
        arrived: list[dict[str, str]] = [{} for _ in replicas]
        sent = stream.remote(self.config.bucket_mib * _MIB, self.config.wire)
        for bucket in each_ref(sent, phase=phase, deadline_s=deadline_s):
            for seen, new in zip(arrived, on_all("update", bucket, checksums), strict=True):
                seen |= new
        on_all("finish_update", version)
        return arrived


class Files:
    """Safetensors in a folder that all sides see. With a trainer, it writes them there first."""

    def __init__(self, folder: Path, trainer: Any = None, config: WeightSyncConfig | None = None):
        self.folder, self.trainer, self.config = folder, trainer, config or WeightSyncConfig()
        self._written: int | None = None

    def send(
        self, replicas: Sequence[Any], version: int, deadline_s: float, checksums: bool = False
    ) -> list[dict[str, str]]:
        phase = f"weight sync to version {version}"
        if self.trainer is not None and self._written != version:
            limit = self.config.bucket_mib * _MIB
            written = self.trainer.write_weights.remote(str(self.folder), limit, self.config.wire)
            wait(written, phase=phase, deadline_s=deadline_s)
            self._written = version
        loads = [replica.load_files.remote(str(self.folder), version) for replica in replicas]
        wait(loads, phase=phase, deadline_s=deadline_s)
        return [{} for _ in replicas]


def open_transport(trainer: Any, config: WeightSyncConfig, folder: Path) -> Transport:
    """The recipe's way from this trainer; `folder` is for files."""
    return Files(folder, trainer, config) if config.transport == "files" else ObjectStore(trainer, config)

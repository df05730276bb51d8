"""What runs in the process of one trainer rank: it meets the others, builds the trainer, and does as it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any

from ray.util import get_node_ip_address
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from cluster.actors import PeerLost, StartFailed
from training.process_group import join


class Rank:
    """Several of these hold one trainer. A method of it that one rank runs, all must run."""

    def __init__(self, rank: int, size: int, deadline_s: float):
        self.rank, self.size, self.deadline_s = rank, size, deadline_s
        self.store: TCPStore | None = None
        self.trainer: Any = None
        self.fault: Exception | None = None

    def listen(self) -> tuple[str, int]:
        """Where the others find this rank. The port is the system's choice and taken at once: nobody else can be
        there."""
        host = get_node_ip_address()
        self.store = TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=self.deadline_s)
        )
        return host, self.store.port

    def build(self, address: tuple[str, int], target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Join the group at `address`, then make the trainer. What goes wrong is said by every later call."""
        try:
            self._meet(address, kwargs.get("device", "auto"))
            module, _, name = target.partition(":")
            with self._lost_ranks_named():
                self.trainer = getattr(import_module(module), name)(*args, **kwargs)
        except PeerLost as lost:
            self.fault = lost
        except Exception as error:
            self.fault = StartFailed(f"a trainer rank cannot start: {type(error).__name__}: {error}")

    def _meet(self, address: tuple[str, int], device: str) -> None:
        timeout = timedelta(seconds=self.deadline_s)
        store = self.store or TCPStore(*address, is_master=False, timeout=timeout)
        join(PrefixStore("trainer", store), self.rank, self.size, device, self.deadline_s)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        with self._lost_ranks_named():
            return getattr(self._ready(), method)(*args, **kwargs)

    def _ready(self) -> Any:
        if self.fault is not None:
            raise self.fault
        return self.trainer

    @contextmanager
    def _lost_ranks_named(self) -> Iterator[None]:
        """Turns the connection errors of collectives, by which a rank learns that another is gone, into PeerLost."""
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            lines = str(error).splitlines()
            last = [line for line in lines[1:] if line.strip()][-1:] if "nccl" in str(error).lower() else []
            said = " ".join([lines[0].partition(". This is")[0], *last])  # NCCL says the cause at the end
            raise PeerLost(f"trainer rank {self.rank} lost another rank: {said}") from error


def _is_lost_connection(error: RuntimeError) -> bool:
    """gloo raises plain RuntimeErrors, NCCL its own."""
    text = f"{type(error).__name__} {error}".lower()
    if "ncclinvalid" in text:  # usage or argument, as two ranks on one GPU: a fault of the set-up, no rank is lost
        return False
    return any(word in text for word in ("gloo", "connection", "nccl", "distbackend", "distnetwork", "timed out"))

"""Weights by broadcast in a process group that exists for one sync: the trainer is rank 0, engine processes the others.

The group is built on a store of its own, so nothing global is touched: an engine's own default group goes on beside it.
Buffers cross by the group (NCCL between GPUs, else gloo); tables of contents cross by the store. A process that fails
says so in the store, and the others look there while they wait: nobody waits for a dead process until the deadline.
"""

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fp8.quantize import SCALE_SUFFIX
from rollouts.buckets import Bucket, Entry, Named

Backend = Literal["gloo", "nccl"]
_LOOK_S = 0.2  # between two looks at whether another process has failed
_FORM_S = 30.0  # for connections among processes that have all said they are there
_STALL_S = 300.0  # at most without progress: far more than packing, sending or loading a bucket takes
_FAILED = "failed"


class BroadcastBroken(RuntimeError):
    """Another process of the group failed or died."""

    retry = True  # the same command may succeed another time


class BroadcastTimeout(TimeoutError):
    """The group was not there, or stood still, for longer than its deadline."""

    retry = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the processes of one broadcast meet; a Parcel (see rollouts.weight_sync) of everything that is sent."""

    host: str
    port: int
    world: int  # processes, the trainer included
    backend: Backend
    stall_s: float  # without progress, until it is given up

    @contextmanager
    def open(self, rank: int, device: torch.device) -> Iterator[Iterator[Named]]:
        with Group(self, self._store(), rank, device) as group:
            yield (named for bucket in _received(group) for named in bucket.tensors())

    def names(self) -> Iterable[str]:
        """Read from the tables in the store, by a process that need not have been in the group."""
        store = self._store()
        count = int(store.get("buckets"))
        tables = (_read_table(store.get(_key(number))) for number in range(count))
        return [e.name for _, entries in tables for e in entries if not e.name.endswith(SCALE_SUFFIX)]

    def _store(self) -> TCPStore:
        try:
            return TCPStore(self.host, self.port, is_master=False, timeout=timedelta(seconds=self.stall_s))
        except dist.DistError as error:
            raise BroadcastBroken(f"weight broadcast: the trainer cannot be reached: {error}") from None


class Broadcaster:
    """The trainer's end: a store to meet at, then one broadcast."""

    def __init__(self, host: str, world: int, backend: Backend, deadline_s: float):
        """`host`: an address of this machine that the receivers reach."""
        stall_s = min(deadline_s, _STALL_S)
        self.store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=stall_s))
        self.meeting = Meeting(host=host, port=self.store.port, world=world, backend=backend, stall_s=stall_s)

    def send(self, buckets: Iterable[Bucket], device: torch.device) -> None:
        """Raises BroadcastBroken or BroadcastTimeout. A bucket is packed while the one before is on its way; then
        that is dropped, so two are held."""
        with Group(self.meeting, self.store, 0, device) as group:
            on_the_way, number = None, -1
            for number, bucket in enumerate(buckets):
                if on_the_way is not None:
                    group.finish(on_the_way)
                self.store.set(_key(number), _write_table(bucket))
                on_the_way = group.begin(bucket.data)
            if on_the_way is not None:
                group.finish(on_the_way)
            self.store.set("buckets", str(number + 1))
            self.store.set(_key(number + 1), "")


class Group:
    """This process's place in a group. Leaving by an exception tells the others."""

    def __init__(self, meeting: Meeting, store: TCPStore, rank: int, device: torch.device):
        self.meeting, self.store, self.rank, self.device = meeting, store, rank, device
        self.last = self.looked = time.monotonic()  # when something last moved, when the others were looked after
        self.group: Any = None

    @property
    def wire_device(self) -> torch.device:
        """Where buffers must be."""
        return self.device if self.meeting.backend == "nccl" else torch.device("cpu")

    def __enter__(self) -> Self:
        try:
            self._gather("here")
            self.group = _process_group(self)
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if error is None:
                self.finish(self._all_here())  # notices who died with the last bucket
                self._gather("done")  # whoever left earlier might take along what others have not read yet
        except BaseException as late:
            error = late
            raise
        finally:
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        if error is not None:
            with suppress(dist.DistError):  # the first one says why
                self.store.compare_set(_FAILED, "", f"{type(error).__name__}: {error}")
        if self.group is not None:
            with suppress(RuntimeError):
                self.group.abort()
            self.group = None

    def _gather(self, what: str) -> None:
        """Until all are as far as this process."""
        self.store.set(f"{what}/{self.rank}", "")
        for rank in range(self.meeting.world):
            self.await_key(f"{what}/{rank}")

    def begin(self, buffer: torch.Tensor) -> Any:
        """The broadcast of `buffer` from rank 0, under way; hold the buffer until it is finished."""
        return self.group.broadcast(buffer, 0), buffer

    def _all_here(self) -> Any:
        token = torch.zeros(1, device=self.wire_device)
        return self.group.allreduce(token), token

    def finish(self, under_way: Any) -> None:
        work, buffer = under_way
        pause = 1e-4
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 5e-3)
            self._look()
        try:
            work.wait()
        except RuntimeError as error:
            self._look(at_once=True)
            raise BroadcastBroken(f"weight broadcast: {error}") from None
        if buffer.is_cuda:
            torch.cuda.synchronize(buffer.device)
        self.last = time.monotonic()

    def await_key(self, key: str) -> None:
        while True:
            try:
                self.store.wait([key], timedelta(seconds=_LOOK_S))
                self.last = time.monotonic()
                return
            except dist.DistStoreError:
                self._look(at_once=True)
            except dist.DistError as error:
                raise BroadcastBroken(f"weight broadcast: the trainer is gone ({error})") from None

    def _look(self, at_once: bool = False) -> None:
        """Raises BroadcastBroken when another process has failed, BroadcastTimeout when nothing moved for too long."""
        now = time.monotonic()
        if now - self.last > self.meeting.stall_s:
            raise BroadcastTimeout(f"weight broadcast: nothing moved for {self.meeting.stall_s:.0f} s")
        if not at_once and now - self.looked < _LOOK_S:
            return
        self.looked = now
        try:
            failed = self.store.get(_FAILED).decode() if self.store.check([_FAILED]) else None
        except dist.DistError as error:
            raise BroadcastBroken(f"weight broadcast: the trainer is gone ({error})") from None
        if failed is not None:
            raise BroadcastBroken(f"weight broadcast: another process failed: {failed}")


def _received(group: Group) -> Iterator[Bucket]:
    """Each in memory of its own, since an engine may keep its tensors."""
    number = 0
    while True:
        group.await_key(_key(number))
        table = group.store.get(_key(number))
        if not table:
            return
        nbytes, entries = _read_table(table)
        data = torch.empty(nbytes, dtype=torch.uint8, device=group.wire_device)
        group.finish(group.begin(data))
        yield Bucket(entries, data)
        number += 1


def _key(number: int) -> str:
    return f"bucket/{number}"


def _write_table(bucket: Bucket) -> str:
    entries = [(e.name, e.dtype, e.shape, e.start, e.checksum) for e in bucket.entries]
    return json.dumps([bucket.data.nbytes, entries])


def _read_table(text: bytes) -> tuple[int, tuple[Entry, ...]]:
    nbytes, entries = json.loads(text)
    return nbytes, tuple(Entry(n, dtype, tuple(shape), start, digest) for n, dtype, shape, start, digest in entries)


# --- process groups, built directly so that torch.distributed's default group stays as it is ---


def _process_group(group: Group) -> Any:
    make: Callable[[Group], Any] = _nccl if group.meeting.backend == "nccl" else _gloo
    try:
        return make(group)
    except RuntimeError as error:
        group._look(at_once=True)
        raise BroadcastBroken(f"weight broadcast: the process group cannot be formed: {error}") from None


def _gloo(group: Group) -> Any:
    backend: Any = dist.ProcessGroupGloo
    options = backend._Options()
    options._timeout = timedelta(seconds=min(_FORM_S, group.meeting.stall_s))
    options._devices = [backend.create_device(hostname=_own_address(group.meeting))]
    made = backend(group.store, group.rank, group.meeting.world, options)
    made.set_timeout(timedelta(seconds=group.meeting.stall_s))
    return made


def _nccl(group: Group) -> Any:
    options: Any = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=group.meeting.stall_s)
    torch.cuda.set_device(group.device)
    return dist.ProcessGroupNCCL(group.store, group.rank, group.meeting.world, options)


def _own_address(meeting: Meeting) -> str:
    """The address of this machine on the way to the trainer."""
    with socket.create_connection((meeting.host, meeting.port), timeout=meeting.stall_s) as way:
        return way.getsockname()[0]

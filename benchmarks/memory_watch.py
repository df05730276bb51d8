"""Memory of a command and everything it started, sampled from outside, so that the measured process does not pay.

RSS counts a page once for every process that maps it; PSS divides it by the number of those processes. For a command
with several processes, PSS is the memory it really takes, RSS an upper bound. Linux only (PSS comes from the kernel).
"""

import threading
import time
from dataclasses import dataclass

import psutil

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemorySample:
    at: float  # seconds since the epoch
    pss: int  # bytes, whole tree
    rss: int  # bytes, whole tree
    processes: int


class MemoryWatch:
    """A context manager that samples the process tree under `pid` until it ends or the block is left."""

    def __init__(self, pid: int, interval_s: float = 0.25):
        self.samples: list[MemorySample] = []
        self.largest: dict[str, int] = {}  # "pid name" -> highest PSS of that process, bytes
        self._pid, self._interval_s = pid, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._stop.set()
        self._thread.join()

    def peak(self, start: float, end: float) -> dict[str, float]:
        """Highest PSS and RSS (MiB) and process count between two times; zeros when nothing was sampled there."""
        inside = [sample for sample in self.samples if start <= sample.at <= end]
        return {
            "pss_mib": max((s.pss for s in inside), default=0) / MIB,
            "rss_mib": max((s.rss for s in inside), default=0) / MIB,
            "processes": max((s.processes for s in inside), default=0),
        }

    def largest_processes(self, count: int) -> dict[str, float]:
        """The `count` processes that took most, by their highest PSS, MiB."""
        order = sorted(self.largest.items(), key=lambda item: -item[1])
        return {name: size / MIB for name, size in order[:count]}

    def _watch(self) -> None:
        try:
            root = psutil.Process(self._pid)
            while not self._stop.wait(self._interval_s):
                self._sample([root, *root.children(recursive=True)])
        except psutil.NoSuchProcess:
            return

    def _sample(self, processes: list[psutil.Process]) -> None:
        pss = rss = counted = 0
        for process in processes:
            try:
                info = process.memory_full_info()
                label = f"{process.pid} {process.name().split('.')[0]}"  # Ray appends the running method
            except psutil.Error:
                continue  # it ended meanwhile
            pss, rss, counted = pss + info.pss, rss + info.rss, counted + 1
            self.largest[label] = max(self.largest.get(label, 0), info.pss)
        self.samples.append(MemorySample(time.time(), pss, rss, counted))

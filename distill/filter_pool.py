"""Batches judged in this process or in several: the files are the same, whoever writes them and in whatever order."""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from distill.trace_filter import Batch, Rules, TraceFilter, is_judged, judge_to_file
from training.stage import StageError

_WAITING = 3  # batches per process that are read ahead

_traces: TraceFilter | None = None  # of a worker process


def judge_all(
    batches: Iterable[Batch], rules: Rules, folder: Path, workers: int, on_rows: Callable[[int], None]
) -> int:
    """Judge every batch that `folder` lacks; returns how many batches there are. `on_rows` is told the rows done.

    workers: processes; with 1 all is done here. Raises StageError or SourceError for a row that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        return _judge_here(batches, rules, folder, on_rows)
    try:
        # Spawned: threads of this process (Ray, BLAS) hold locks that a fork would copy.
        with ProcessPoolExecutor(workers, get_context("spawn"), _start, (rules,)) as pool:
            return _judge_in(pool, batches, folder, workers, on_rows)
    except BrokenProcessPool:
        raise StageError(
            "a process that filters was killed, perhaps for its memory; lower filter_workers", retry=True
        ) from None


def _judge_here(batches: Iterable[Batch], rules: Rules, folder: Path, on_rows: Callable[[int], None]) -> int:
    count = rows = 0
    traces: TraceFilter | None = None
    for batch in batches:
        count += 1
        if not is_judged(folder, batch.number):
            traces = traces or TraceFilter(rules)
            rows += judge_to_file(traces, batch, folder)
            on_rows(rows)
    return count


def _judge_in(
    pool: ProcessPoolExecutor, batches: Iterable[Batch], folder: Path, workers: int, on_rows: Callable[[int], None]
) -> int:
    count = rows = 0
    running: set[Future[int]] = set()
    try:
        for batch in batches:
            count += 1
            if is_judged(folder, batch.number):
                continue
            if len(running) == workers * _WAITING:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                rows += sum(future.result() for future in done)
                on_rows(rows)
            running.add(pool.submit(_judge, batch, folder))
        for future in running:
            rows += future.result()
            on_rows(rows)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return count


def _start(rules: Rules) -> None:
    global _traces
    _traces = TraceFilter(rules)


def _judge(batch: Batch, folder: Path) -> int:
    assert _traces is not None
    return judge_to_file(_traces, batch, folder)

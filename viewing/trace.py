"""A run's timeline in Chrome's Trace Event Format, which ui.perfetto.dev and chrome://tracing show.

The format: "Trace Event Format", Google, 2016. Used here: complete events ("X", times in microseconds) and metadata
events ("M") that name processes and threads. A stage is a process, who worked in it a thread.
"""

from typing import Any

from viewing.runs import Run
from viewing.timeline import read_spans, stage_spans

_RUN = 0  # process of the row of stages


def trace(run: Run) -> dict[str, Any]:
    """The trace as JSON data. Times count from the run's first span; `otherData.start` says when that was."""
    spans = {name: read_spans(folder) for name, folder in run.stages().items()}
    bars = stage_spans(run)
    starts = [bar["start"] for bar in bars] + [span.start for found, _ in spans.values() for span in found]
    zero = min(starts, default=0.0)
    events = [_metadata("process_name", _RUN, 0, name="stages")]
    events += [_complete(bar["stage"], "stage", _RUN, 0, bar["start"] - zero, bar["seconds"], {}) for bar in bars]
    for process, (stage, (found, measured)) in enumerate(spans.items(), start=1):
        if not found:
            continue
        shown = stage if measured else f"{stage} (phases laid end to end)"
        events.append(_metadata("process_name", process, 0, name=shown))
        events.append(_metadata("process_sort_index", process, 0, sort_index=process))
        threads = {who: number for number, who in enumerate(dict.fromkeys(span.who for span in found))}
        events += [_metadata("thread_name", process, number, name=who) for who, number in threads.items()]
        for span in found:
            times = span.start - zero, span.seconds
            events.append(_complete(span.phase, stage, process, threads[span.who], *times, {"step": span.step}))
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": run.name, "start": zero}}


def _complete(
    name: str, category: str, process: int, thread: int, start: float, seconds: float, args: dict[str, Any]
) -> dict[str, Any]:
    times = {"ts": round(1e6 * start, 3), "dur": round(1e6 * seconds, 3)}
    return {"ph": "X", "name": name, "cat": category, "pid": process, "tid": thread, **times, "args": args}


def _metadata(what: str, process: int, thread: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": args}

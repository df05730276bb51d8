"""What the page asks for, by name, as JSON data. Everything in a request is checked; runs and stages are looked up."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from viewing.flags import FLAGS
from viewing.groups import PAGE, GroupBrowser
from viewing.log_columns import LogColumns
from viewing.reference_curves import CurveWatch, Reference
from viewing.runs import METRICS, TIMINGS, Run, has
from viewing.timeline import Timeline, stage_spans, window
from viewing.token_text import token_texts, tokenizer_file

Query = Mapping[str, list[str]]
_MOST_CURVES = 400  # of one request
_Kept = TypeVar("_Kept")


class BadRequest(Exception):
    """What was asked cannot be answered; one sentence."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Answers:
    """runs: by name. describe: what else is known of a run folder, its process and the states of its stages.
    references: the expected curves of a run's stages, or None and why there are none.
    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        describe: Callable[[Path], dict[str, Any]],
        references: Callable[[Run], Mapping[str, tuple[Reference | None, str]]],
    ) -> None:
        self.runs, self.describe, self._references = runs, describe, references
        self._expected: dict[Path, Reference | None] = {}  # by stage; settings do not change while it runs
        self._kept: dict[tuple[type, Path], Any] = {}
        self._lock = Lock()
        self._by_name: dict[str, Callable[[Query], Any]] = {
            "runs": self._runs,
            "curves": self._curves,
            "groups": self._groups,
            "group": self._group,
            "timeline": self._timeline,
            "cluster": self._cluster,
        }

    def answer(self, name: str, query: Query) -> Any:
        """Raises BadRequest."""
        if name not in self._by_name:
            raise BadRequest(f"there is no {name}", 404)
        return self._by_name[name](query)

    def _runs(self, query: Query) -> Any:
        return [
            {
                "run": run.name,
                "folder": str(run.folder),
                **self.describe(run.folder),
                "logs": {stage: self._logged(run, folder) for stage, folder in run.stages().items()},
                "spans": stage_spans(run),
            }
            for run in self.runs.values()
        ]

    def _logged(self, run: Run, stage: Path) -> dict[str, Any]:
        metrics, timings = (self._one(LogColumns, stage / name) for name in (METRICS, TIMINGS))
        versions = [metrics.refresh(), timings.refresh()]
        names = [*metrics.names(), *(name for name in timings.names() if name not in metrics.names())]
        told = {"version": versions, "names": names, "last_step": metrics.last_step()}
        return {**has(stage), **told, "departures": self._departures(run, stage)}

    def _departures(self, run: Run, stage: Path) -> list[str]:
        reference = self._reference(run, stage)
        if reference is None:
            return []
        with self._lock:
            watch = self._kept.setdefault((CurveWatch, stage), CurveWatch(stage, reference))
        return [str(departure) for departure in watch.departures()]

    def _reference(self, run: Run, stage: Path) -> Reference | None:
        if stage not in self._expected:
            found = self._references(run)
            self._expected |= {run.folder / name: reference for name, (reference, _) in found.items()}
        return self._expected.get(stage)

    def _curves(self, query: Query) -> Any:
        """Of every `of` (run/stage) and `name`, the curve, and the band where one is expected."""
        curves, bands = {}, {}
        asked, names = query.get("of", []), query.get("name", [])
        if len(asked) * len(names) > _MOST_CURVES:
            raise BadRequest(f"{len(asked) * len(names)} curves at once are too many; ask for {_MOST_CURVES}")
        for of in asked:
            run, _, stage = of.rpartition("/")
            folder = self._stage_of(run, stage)
            curves[of] = {}
            if reference := self._reference(self._run(run), folder):
                bands[of] = {name: asdict(band) for name, band in reference.bands.items() if name in names}
            logs = [self._one(LogColumns, folder / name) for name in (METRICS, TIMINGS)]
            for log in logs:
                log.refresh()
            for name in names:
                found = next((curve for log in logs if (curve := log.curve(name))[0]), None)
                if found:
                    curves[of][name] = found
        return {"curves": curves, "bands": bands}

    def _groups(self, query: Query) -> Any:
        browser = self._one(GroupBrowser, self._stage(query))
        flags = query.get("flag", [])
        if unknown := set(flags) - FLAGS.keys():
            raise BadRequest(f"there is no filter '{min(unknown)}'; known: {', '.join(FLAGS)}")
        steps = list(browser.files())
        step = _number(query, "step", steps[-1] if steps else None, none="all")
        found, unreadable = browser.find(step, _text(query, "domain"), flags)
        page = _number(query, "page", 0) or 0
        shown = found[page * PAGE : (page + 1) * PAGE]
        return {
            "steps": steps,
            "step": step,
            "domains": browser.domains(step),
            "flags": FLAGS,
            "total": len(found),
            "page": page,
            "pages": -(-len(found) // PAGE),
            "unreadable": unreadable,
            "groups": [asdict(summary) for summary in shown],
        }

    def _group(self, query: Query) -> Any:
        stage = self._stage(query)
        rows = self._one(GroupBrowser, stage).completions(_number(query, "step", 0) or 0, _text(query, "group"))
        if not rows:
            raise BadRequest("there is no such group; a redone stage may have replaced it", 404)
        file = tokenizer_file(stage)
        texts = token_texts(file) if file else None
        first = rows[0]
        prompt = "".join(texts.pieces(first["prompt_ids"])) if texts else first["question"]
        told = ("step", "group", "problem_id", "domain", "language", "question", "ground_truth")
        return {
            **{name: first[name] for name in told},
            "prompt": prompt,
            "tokenizer": file is not None,
            "completions": [_completion(row, texts.pieces(row["token_ids"]) if texts else None) for row in rows],
        }

    def _timeline(self, query: Query) -> Any:
        spans, measured = self._one(Timeline, self._stage(query)).spans()
        shown = window(spans, _number(query, "first", None), _number(query, "last", None))
        steps = {span.step for span in spans}
        ends = [min(steps), max(steps)] if steps else []
        return {"measured": measured, "total": len(spans), "spans": shown, "steps": ends}

    def _cluster(self, query: Query) -> Any:
        from viewing.cluster_state import cluster_of

        return cluster_of(self._run(_text(query, "run")).folder)

    def _run(self, name: str) -> Run:
        if name not in self.runs:
            raise BadRequest("there is no such run", 404)
        return self.runs[name]

    def _stage(self, query: Query) -> Path:
        return self._stage_of(_text(query, "run"), _text(query, "stage"))

    def _stage_of(self, run: str, stage: str) -> Path:
        try:
            return self._run(run).stage(stage)
        except KeyError:
            raise BadRequest(f"the run has no stage '{stage}' yet", 404) from None

    def _one(self, kind: type[_Kept], path: Path) -> _Kept:
        """The one object of this kind for a path: they remember what they have read."""
        with self._lock:
            return self._kept.setdefault((kind, path), kind(path))  # type: ignore[call-arg]


def _completion(row: Mapping[str, Any], tokens: list[str] | None) -> dict[str, Any]:
    sampled, old = row["sampling_logprobs"], row["old_logprobs"]
    told = ("sample", "text", "reward", "verdict", "parts", "detail", "advantage", "finish_reason", "flags")
    return {
        **{name: row[name] for name in told},
        "length": len(row["token_ids"]),
        "versions": sorted(set(row["policy_version"] or ())),
        "tokens": tokens,
        "logprobs": [round(value, 4) for value in sampled],
        "mismatch": [abs(a - b) for a, b in zip(old, sampled, strict=False)] if old else None,
    }


def _text(query: Query, name: str) -> str:
    return query.get(name, [""])[0]


def _number(query: Query, name: str, default: int | None, none: str = "") -> int | None:
    """An integer of a request; `none` is the word for None."""
    text = _text(query, name)
    if not text or text == none:
        return default if not text else None
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise BadRequest(f"{name} must be a number, got '{text[:40]}'")
    return int(text)

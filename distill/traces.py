"""The traces stage: data for a student from a teacher, or from rows of your own (DeepSeek-R1, section 2.4 and B.3.3).

Rows stream: they are judged batch by batch (`distill.trace_filter`), a few numbers of each decide which are kept
(`distill.selection`), and those are written in shards. A stage that was killed goes on with the batches that are
missing and ends with the same files.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset_files import dataset_files
from data.schemas import SourceError
from data.write import SFT_SCHEMA, DataCard, write_card, write_shards
from distill.filter_pool import judge_all
from distill.fingerprints import PLACES
from distill.near_duplicates import band_length
from distill.selection import FitRows, Selection, read_fit_rows, select
from distill.suites import suite_sources
from distill.trace_filter import HELD_OUT, HELD_OUT_QUESTION, Batch, Counts, Rules, judged_file, read_counts
from distill.trace_rows import file_batches
from distill.traces_config import TracesConfig
from sft.held_out import read_held_out
from training.run_log import write_stats
from training.stage import StageContext, StageError

JUDGED = "judged"  # under .work: what is known of each batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where rows come from."""

    batches: Iterable[Batch]
    workers: int  # processes that judge them
    facts: dict[str, Any]  # for the data card's `sampling`
    asked: Any = None  # distill.trace_sampling.Asked, where a teacher is asked


def run(config: TracesConfig, context: StageContext) -> None:
    try:
        origin = open_origin(config, context)
        held_out = read_held_out([*config.held_out_sources, *suite_sources(config.suites)])
        rules = Rules(
            filters=config.filters,
            near=config.near_duplicates,
            held_out=held_out,
            seed=context.seed,
            tokenizer=config.tokenizer,
        )
        files, counts = judge(origin, rules, context)
    except SourceError as error:
        raise StageError(str(error)) from None
    rows = read_fit_rows(files)
    selection = choose(rows, counts, config, context)
    shards = write_shards(
        context.output, kept_tables(files, selection.keep), int(selection.keep.sum()), config.rows_per_shard
    )
    card = data_card(shards, rows, selection, counts, origin, rules, config)
    write_card(context.output, card)
    stats = {"rows": card.n_rows, "samples": counts.seen, "tokens": round(card.tokens["total"]), "shards": len(shards)}
    write_stats(context.output, stats)
    shutil.rmtree(context.output / ".work" / JUDGED)


def open_origin(config: TracesConfig, context: StageContext) -> Origin:
    """Raises StageError unless there is exactly one of policy, endpoint, solutions, source and dataset."""
    named = {
        "the input policy": "policy" in context.inputs,
        "endpoint": config.endpoint is not None,
        "solutions": config.solutions,
        "source": bool(config.source),
        "the input dataset": "dataset" in context.inputs,
    }
    given = [name for name, there in named.items() if there]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise StageError(f"{context.name}: rows come from exactly one of {', '.join(named)}; given: {found}")
    if config.source or "dataset" in context.inputs:
        files = list(config.source) or dataset_files(context.inputs["dataset"])
        facts = {"files": [file.name for file in files], "tokens_counted_by": _counter(config, teacher=False)}
        return Origin(batches=file_batches(files), workers=config.filter_workers, facts=facts)
    from distill.trace_sampling import ask_endpoint, ask_nobody, ask_policy  # imports torch and Ray

    if config.solutions:
        asked, batches = ask_nobody(config, context)
        facts = {"teacher": "the problems' written solutions", "tokens_counted_by": _counter(config, teacher=False)}
        return Origin(batches=batches, workers=1, facts=facts, asked=asked)
    asked, batches = (ask_endpoint if config.endpoint else ask_policy)(config, context)
    facts = {
        "teacher": config.endpoint.model if config.endpoint else "policy",
        "samples_per_prompt": config.samples_per_prompt,
        **config.rollout.model_dump(),
        "tokens_counted_by": _counter(config, teacher=config.endpoint is None),
    }
    return Origin(batches=batches, workers=1, facts=facts, asked=asked)


def judge(origin: Origin, rules: Rules, context: StageContext) -> tuple[list[Path], Counts]:
    """The judged batches in order, and the counts of all."""
    folder = context.output / ".work" / JUDGED

    def report(rows: int) -> None:
        if origin.asked is None:
            context.report({"step": rows, "phase": "filtering"})

    batches = judge_all(origin.batches, rules, folder, origin.workers, report)
    files = [judged_file(folder, number) for number in range(batches)]
    counts = Counts()
    for file in files:
        counts.add(read_counts(file))
    return files, counts


def choose(rows: FitRows, counts: Counts, config: TracesConfig, context: StageContext) -> Selection:
    """Raises StageError, with the commonest reasons, when nothing is left."""
    if not len(rows.tokens):
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.reasons.most_common(4)) or "there are none"
        raise StageError(
            f"{context.name}: none of {counts.seen} rows passed ({reasons}); take a better teacher or more prompts, or "
            "change `filters`"
        )
    selection = select(
        rows,
        threshold=config.near_duplicates.threshold,
        max_per_problem=config.filters.max_per_problem,
        max_rows=config.max_rows,
        max_tokens=config.max_tokens,
    )
    if not selection.keep.any():
        raise StageError(
            f"{context.name}: max_tokens {config.max_tokens} is less than the first row chosen; the shortest of "
            f"{len(rows.tokens)} rows has {int(rows.tokens.min())} tokens, on average they have "
            f"{rows.tokens.mean():.0f}: raise it"
        )
    return selection


def kept_tables(files: Sequence[Path], keep: np.ndarray) -> Iterator[pa.Table]:
    """The kept rows of each file, of SFT_SCHEMA. `keep`: [N] bool over the rows of all files."""
    start = 0
    for file in files:
        with pq.ParquetFile(file) as opened:
            table = opened.read(columns=SFT_SCHEMA.names).select(SFT_SCHEMA.names)
        yield table.filter(pa.array(keep[start : start + len(table)])).cast(SFT_SCHEMA).replace_schema_metadata(None)
        start += len(table)


def data_card(
    shards: Sequence[Path],
    rows: FitRows,
    selection: Selection,
    counts: Counts,
    origin: Origin,
    rules: Rules,
    config: TracesConfig,
) -> DataCard:
    by = {column: _count_by(shards, column) for column in ("domain", "language", "source")}
    reasons = counts.reasons + selection.reasons
    held_out, equal = reasons.pop(HELD_OUT, 0), reasons.pop(HELD_OUT_QUESTION, 0)
    near = config.near_duplicates
    facts = origin.facts
    if origin.asked is not None:
        facts = {"prompts": config.prompts - origin.asked.too_long, "prompts_too_long": origin.asked.too_long} | facts
    n_rows = int(selection.keep.sum())
    return DataCard(
        n_rows=n_rows,
        by_domain=by["domain"],
        by_language=by["language"],
        by_source=by["source"],
        n_candidates=counts.seen,
        accept_rate=n_rows / counts.seen,
        accept_rate_by={
            "domain": _rates(by["domain"], counts.domains),
            "language": _rates(by["language"], counts.languages),
        },
        rejected=dict(sorted(reasons.items())),
        decontamination=rules.held_out.report(counts.fit + held_out + equal, held_out, equal, counts.examples),
        deduplication={
            **near.model_dump(),
            "method": "MinHash-LSH" if near.threshold else "exact rows only",
            "signature_places": PLACES,
            "places_per_band": band_length(near.threshold) if near.threshold else None,
        },
        tokens=_token_stats(rows.tokens[selection.keep]),
        sampling=facts | {"seed": rules.seed, "max_tokens": config.max_tokens},
    )


def _count_by(files: Sequence[Path], column: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for file in files:
        for entry in pq.read_table(file, columns=[column])[column].value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    return dict(sorted(counts.items()))


def _rates(kept: dict[str, int], seen: Counter[str]) -> dict[str, float]:
    return {name: kept.get(name, 0) / total for name, total in sorted(seen.items())}


def _token_stats(lengths: np.ndarray) -> dict[str, float]:
    return {
        "total": float(lengths.sum(dtype=np.int64)),
        "mean": float(lengths.mean()),
        "p50": float(np.percentile(lengths, 50)),
        "p95": float(np.percentile(lengths, 95)),
        "max": float(lengths.max()),
    }


def _counter(config: TracesConfig, teacher: bool) -> str:
    if config.tokenizer:
        return f"the file {config.tokenizer.name}"
    return "the policy's tokenizer, as it sampled" if teacher else "a quarter of the UTF-8 bytes"

"""Problems from files and Hugging Face datasets, read one at a time.

Reading holds one problem, the shuffle's buffer and every id seen (ids must be unique). Who keeps the problems, as
`data.problem_pool` does, needs about 1 KB for each.

JSONL (also gzipped), parquet, folders of these, folders and hub names that `datasets` can load, and single files of a
hub data set.
"""

import gzip
import json
import logging
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from data.config import FILE_SUFFIXES, HUB_FILE, ProblemSource, RowSource
from data.dataset_files import dataset_files
from data.decontaminate import problem_texts
from data.problems import Problem
from data.schemas import SourceError, detect_schema, problem_from_source_row
from data.where import keeps

Item = TypeVar("Item")
PlacedRow = tuple[str, dict[str, Any]]  # (place for error messages, e.g. "train.jsonl line 12", row)

PARQUET_BATCH = 1024  # rows decoded at once

log = logging.getLogger(__name__)


def read_problems(source: ProblemSource) -> Iterator[Problem]:
    """Yield the source's problems in a fixed order: file order, or shuffled by `shuffle_seed`.

    Raises:
        SourceError: the path is neither file, folder nor dataset; a row is malformed (unless `skip_bad_rows`),
            names no known schema, or repeats an id. The message names the file and the line or row.
    """
    problems = _parse_rows(placed_rows(source), source)
    if source.shuffle_seed is not None:
        problems = shuffled(problems, seed=source.shuffle_seed, buffer_size=source.shuffle_buffer)
    return islice(problems, source.limit)


def held_out_texts(sources: Iterable[ProblemSource]) -> Iterator[str]:
    """What training data must not share ten words in a row with: the questions and solutions of benchmarks."""
    return (text for source in sources for problem in read_problems(source) for text in problem_texts(problem))


def check_first_row(source: ProblemSource) -> None:
    """Read the first row of a source that is a file, or a folder of them. Raises SourceError as `read_problems` does.

    What `datasets` would have to load is left unread: that takes seconds, or a network.
    """
    files = _local_files(Path(source.path).expanduser(), source.split)
    if not files:
        return
    first = next((placed for file in files for placed in _read_file(file)), None)
    if first is None:
        raise SourceError(f"{source.path}: there are no rows")
    if not source.skip_bad_rows:
        _is_kept(*first, source)
        next(_parse_rows([first], source.model_copy(update={"where": {}})))


def shuffled(items: Iterable[Item], seed: int, buffer_size: int) -> Iterator[Item]:
    """Shuffle a stream with a buffer: exact when the stream fits, otherwise no item comes earlier than `buffer_size`
    places before its turn. Deterministic in (items, seed, buffer_size)."""
    rng = random.Random(seed)
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < buffer_size:
            buffer.append(item)
            continue
        slot = rng.randrange(buffer_size)
        out, buffer[slot] = buffer[slot], item
        yield out
    rng.shuffle(buffer)
    yield from buffer


def read_jsonl(path: Path) -> Iterator[PlacedRow]:
    """Rows of a .jsonl or .jsonl.gz file with their line numbers (from 1); blank lines are skipped."""
    return ((f"{path} line {number}", json_object(line, f"{path} line {number}")) for number, line in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, undecoded, of a file or of a .gz one, each with its number (from 1)."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{path}: broken gzip data after line {number} ({error}); compress the file again") from None


def read_parquet(path: Path) -> Iterator[PlacedRow]:
    """Rows of a parquet file with their numbers (from 1), decoded batch by batch."""
    import pyarrow as pa  # slow to import, and many runs read JSONL alone
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except pa.ArrowException as error:
        raise SourceError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def placed_rows(source: RowSource) -> Iterator[PlacedRow]:
    """The rows of a file, folder or hub dataset, each with its place. Raises SourceError, also while it is read."""
    if source.path.startswith(HUB_FILE):
        return _read_hub_file(source)
    path = Path(source.path).expanduser()
    files = _local_files(path, source.split)
    if files:
        return (placed for file in files for placed in _read_file(file))
    if path.is_dir() or (re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source.path) and not source.path.endswith(FILE_SUFFIXES)):
        return _read_hugging_face(source)
    raise SourceError(f"{source.path}: there is no such file or folder, and it is not a Hugging Face dataset name")


def _local_files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    return _files_of_split(path, split) if path.is_dir() else []


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """`train.jsonl` and the like, or the parquet payload of a dataset artifact; empty: left to `datasets`."""
    named = [folder / f"{split}{suffix}" for suffix in FILE_SUFFIXES]
    found = [path for path in named if path.is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise SourceError(f"{folder}: both {names} hold the split {split}; name one file as path")
    return found or dataset_files(folder)


def _read_file(path: Path) -> Iterator[PlacedRow]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return read_jsonl(path)
    if path.suffix == ".parquet":
        return read_parquet(path)
    raise SourceError(f"{path}: unknown file type; expected {', '.join(FILE_SUFFIXES)} (JSON with one object a line)")


def _read_hugging_face(source: RowSource) -> Iterator[PlacedRow]:
    import datasets  # slow to import, and most runs read local files

    try:
        rows = datasets.load_dataset(
            source.path, source.subset, split=source.split, revision=source.revision, streaming=True
        )
        for number, row in enumerate(rows, start=1):
            yield f"{source.path} {source.split} row {number}", dict(row)
    except Exception as error:  # `datasets` raises many kinds: no network, no such name, split or configuration
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{source.path}: `datasets` cannot read split {source.split}, subset {source.subset} ({reason}); "
            "check path, subset and split, or download it and give the folder as path"
        ) from error


def _read_hub_file(source: RowSource) -> Iterator[PlacedRow]:
    """One file, kept in the hub's cache. For data sets whose files `datasets` reads by a script only, and no longer."""
    from huggingface_hub import hf_hub_download  # slow to import

    parts = source.path.removeprefix(HUB_FILE).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise SourceError(f"{source.path}: expected {HUB_FILE}OWNER/NAME/FILE")
    owner, name, file = parts
    try:
        found = hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", revision=source.revision)
    except Exception as error:  # no network, no such data set, no leave to read it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"{source.path}: cannot be had from the hub ({reason}); give a local copy as path") from error
    yield from _read_file(Path(found))


def _is_kept(place: str, row: dict[str, Any], source: ProblemSource) -> bool:
    try:
        return keeps(row, source.where)
    except ValueError as error:
        raise SourceError(f"{place}: {error}") from None


def _parse_rows(placed: Iterable[PlacedRow], source: ProblemSource) -> Iterator[Problem]:
    stem = _stem(source)
    schema = None if source.row_schema == "auto" else source.row_schema
    seen: set[str] = set()
    skipped: list[str] = []
    for number, (place, row) in enumerate(placed, start=1):
        if not _is_kept(place, row, source):
            continue
        try:
            schema = schema or detect_schema(row)
            problem = problem_from_source_row(row, schema, source, default_id=f"{stem}-{number}")
        except SourceError as error:
            if not source.skip_bad_rows:
                raise SourceError(f"{place}: {error}") from None
            skipped.append(f"{place}: {error}")
            continue
        if problem.id in seen:
            raise SourceError(f"{place}: the id {problem.id!r} appears twice; ids must be unique, also across folders")
        seen.add(problem.id)
        yield problem
    if skipped:
        log.warning("%s: skipped %d bad rows; the first: %s", source.path, len(skipped), skipped[0])


def _stem(source: ProblemSource) -> str:
    """Prefix of generated ids: gsm8k-train for gsm8k/train.jsonl, for the folder gsm8k and for openai/gsm8k."""
    path = Path(source.path)
    if source.name:
        return source.name
    if path.name.endswith(FILE_SUFFIXES):
        return f"{path.resolve().parent.name}-{path.name.split('.', 1)[0]}"
    return f"{path.name}-{source.split}"


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """Raises SourceError naming `place` for anything else."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise SourceError(f"{place}: not valid UTF-8 JSON ({error}); every line must hold one JSON object") from None
    if not isinstance(row, dict):
        raise SourceError(f"{place}: expected a JSON object, found {type(row).__name__}")
    return row

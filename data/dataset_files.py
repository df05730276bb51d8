"""The parquet files of a dataset artifact: data.parquet, or data-00000-of-00012.parquet and so on for a large one."""

import re
from pathlib import Path

from data.schemas import SourceError

WHOLE = "data.parquet"
_SHARD = re.compile(r"data-(\d{5})-of-(\d{5})\.parquet")


def shard_name(number: int, count: int) -> str:
    """The name of shard `number` (from 0) of `count`; the only one is data.parquet."""
    return WHOLE if count == 1 else f"data-{number:05d}-of-{count:05d}.parquet"


def dataset_files(folder: Path) -> list[Path]:
    """The files of a dataset, in the order of its rows; [] where the folder holds none.

    Raises SourceError when shards are missing, or when there are two datasets.
    """
    shards = sorted(path for path in folder.glob("data-*.parquet") if _SHARD.fullmatch(path.name))
    whole = folder / WHOLE
    if whole.is_file() and shards:
        raise SourceError(f"{folder}: both {WHOLE} and {shards[0].name} are there; remove one of the two datasets")
    if not shards:
        return [whole] if whole.is_file() else []
    counts = {int(match[2]) for path in shards if (match := _SHARD.fullmatch(path.name))}
    if len(counts) > 1:
        raise SourceError(f"{folder}: there are shards of {' and of '.join(map(str, sorted(counts)))}; remove one set")
    (count,) = counts
    missing = [name for number in range(count) if not (folder / (name := shard_name(number, count))).is_file()]
    if missing:
        raise SourceError(f"{folder}: {missing[0]} is missing, of {count} shards; make or copy the dataset again")
    return shards

"""Datasets in one file or in shards: written, listed and read as one."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import RowSource
from data.dataset_files import dataset_files, shard_name
from data.schemas import SourceError
from data.sources import placed_rows
from data.write import SFT_SCHEMA, write_shards
from pipeline.inputs import artifact_fault
from sft.conversations import read_conversations


def rows(start: int, count: int) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "id": str(number),
                "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": f"{number}!"}],
                "domain": "d",
                "language": "en",
                "source": "s",
            }
            for number in range(start, start + count)
        ],
        schema=SFT_SCHEMA,
    )


@settings(max_examples=40)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8).filter(any), st.integers(1, 9))
def test_shards_hold_all_rows_in_order(tmp_path_factory, sizes, per_shard):
    folder = tmp_path_factory.mktemp("set")
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    files = write_shards(folder, map(rows, starts, sizes), sum(sizes), per_shard)
    assert files == dataset_files(folder) and {path.name for path in folder.iterdir()} == {f.name for f in files}
    assert [len(pq.read_table(file)) for file in files][:-1] == [per_shard] * (len(files) - 1)
    names = [str(number) for number in range(sum(sizes))]
    assert [row["id"] for row in read_conversations(folder)] == names
    assert [row["id"] for _, row in placed_rows(RowSource(path=str(folder)))] == names
    assert artifact_fault(folder, "dataset") is None


def test_a_small_set_is_one_file_as_ever(tmp_path):
    assert write_shards(tmp_path, [rows(0, 3)], 3, 3) == [tmp_path / "data.parquet"]
    assert shard_name(0, 1) == "data.parquet" and shard_name(2, 12) == "data-00002-of-00012.parquet"


def test_other_rows_than_were_announced_leave_nothing(tmp_path):
    for announced in (2, 4):
        with pytest.raises(ValueError, match=f"{announced} rows were to be written, but there are 3"):
            write_shards(tmp_path, [rows(0, 3)], announced, 2)
    assert dataset_files(tmp_path) == []


def test_a_set_that_lacks_a_shard_is_not_read(tmp_path):
    files = write_shards(tmp_path, [rows(0, 5)], 5, 2)
    files[1].unlink()
    says = "data-00001-of-00003.parquet is missing, of 3 shards"
    with pytest.raises(SourceError, match=says):
        dataset_files(tmp_path)
    assert says in str(artifact_fault(tmp_path, "dataset"))
    files[0].rename(tmp_path / "data-00000-of-00002.parquet")
    with pytest.raises(SourceError, match="shards of 2 and of 3"):
        dataset_files(tmp_path)


def test_two_sets_in_one_folder_are_refused(tmp_path):
    write_shards(tmp_path, [rows(0, 5)], 5, 2)
    write_shards(tmp_path, [rows(0, 5)], 5, 5)
    with pytest.raises(SourceError, match=r"both data\.parquet and data-00000-of-00003"):
        dataset_files(tmp_path)

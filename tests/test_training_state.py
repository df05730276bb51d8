"""State that is written while training goes on."""

import pytest
import torch

from training.state import StateWriter, load_tensors


def test_what_is_written_is_what_there_was_when_it_began(tmp_path):
    weight = torch.arange(2_000_000, dtype=torch.float32)
    expected = weight.clone()
    writer = StateWriter()
    writer.begin(tmp_path / "state", {"weight": weight})
    weight.zero_()
    writer.finish()
    assert not writer.writes()
    read = torch.empty_like(weight)
    load_tensors(tmp_path / "state", {"weight": read})
    assert torch.equal(read, expected)


def test_a_write_that_fails_is_said_once_it_is_asked_for(tmp_path):
    (tmp_path / "file").write_text("in the way")
    writer = StateWriter()
    writer.begin(tmp_path / "file" / "state", {"weight": torch.ones(3)})
    with pytest.raises(OSError, match=r"the state could not be written: rank 0: NotADirectoryError: .*state"):
        writer.finish()
    writer.finish()  # said once; the next save starts afresh

"""Files that are there whole or not at all."""

import logging
import os
import subprocess
from pathlib import Path

import pytest

from data.durable import is_whole, replacing, sealing, write_text


def test_a_file_and_its_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    fsync, replace, events = os.fsync, os.replace, []

    def note_sync(descriptor):
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def note_rename(old, new):
        events.append(("rename", Path(new).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_text(tmp_path / "x.txt", "你好\n")
    assert events == [("sync", ".x.txt.tmp"), ("rename", "x.txt"), ("sync", tmp_path.name)]
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "你好\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("write", [replacing, sealing])
def test_an_error_leaves_what_was_there(tmp_path, write):
    path = tmp_path / "x.txt"
    with write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="disk full"), write(path) as temporary:
        temporary.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "old"


def _seal(path: Path, text: str) -> Path:
    with sealing(path) as temporary:
        temporary.write_text(text)
    return path


def test_a_sealed_file_is_whole_and_its_checksum_is_one_that_other_programs_read(tmp_path, caplog):
    path = tmp_path / "x.txt"
    assert not is_whole(path, "")
    _seal(path, "one")
    assert is_whole(path, "")
    subprocess.run(["sha256sum", "--check", "--status", "x.txt.sha256"], cwd=tmp_path, check=True)
    _seal(path, "two")
    assert is_whole(path, "") and not caplog.messages


DAMAGES = {
    "flip": (lambda path, seal: path.write_text("onE"), "content differs from its checksum"),
    "cut": (lambda path, seal: path.write_text(""), "content differs from its checksum"),
    "cut checksum": (lambda path, seal: seal.write_text(""), "content differs from its checksum"),
    "binary checksum": (lambda path, seal: seal.write_bytes(b"\xff" * 70), "content differs from its checksum"),
    "no checksum": (lambda path, seal: seal.unlink(), "x.txt.sha256, FileNotFoundError"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_reported_with_what_follows(tmp_path, caplog, damage):
    spoil, fault = DAMAGES[damage]
    path = _seal(tmp_path / "x.txt", "one")
    spoil(path, tmp_path / "x.txt.sha256")
    with caplog.at_level(logging.WARNING):
        assert not is_whole(path, "it is made again")
    assert caplog.messages == [f"{path} is damaged ({fault}); it is made again"]
    assert is_whole(_seal(path, "one"), "")


def test_a_kill_between_checksum_and_file_leaves_no_whole_file(tmp_path, monkeypatch):
    path, replace = _seal(tmp_path / "x.txt", "one"), os.replace

    def dies(old, new):
        if Path(new) == path:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        _seal(path, "two")
    monkeypatch.undo()
    assert path.read_text() == "one" and not is_whole(path, "")

"""Large text in ground truths, and text out of pickles: nothing hostile is opened, and nothing is ever run."""

import base64
import contextlib
import os
import pickle
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import packed
from data.packed import MAX_BYTES, PACKED, inflate, pack, text_of_pickle, unpack


@given(st.text())
def test_packing_gives_the_text_back(text):
    assert unpack(pack(text)) == text


def test_only_long_text_is_packed():
    long = "1 2 3\n" * 100_000
    assert pack("short") == "short"
    assert pack(long).startswith(PACKED) and len(pack(long)) < len(long) / 50 and unpack(pack(long)) == long


@given(st.text(), st.sampled_from(range(1, pickle.HIGHEST_PROTOCOL + 1)))
def test_the_text_of_a_pickle_is_read(text, protocol):
    assert text_of_pickle(pickle.dumps(text, protocol)) == text


class RunsACommand:
    def __reduce__(self):
        return os.system, ("touch stolen",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(RunsACommand()),
        pickle.dumps(RunsACommand(), 0),
        pickle.dumps(["a text", RunsACommand()]),
        pickle.dumps(["a text"]),
        pickle.dumps(("a", "b")),
        pickle.dumps(b"bytes"),
        pickle.dumps(7),
        pickle.dumps("a text")[:-1],
        pickle.dumps("a text") + pickle.dumps(RunsACommand()),
        b"cos\nsystem\n(S'touch stolen'\ntR.",
        b"\x80\x04.",
        b"",
        b"no pickle",
    ],
)
def test_every_other_pickle_is_refused_and_not_run(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is not opened"):
        text_of_pickle(data)
    assert not os.listdir(tmp_path)


@given(st.binary())
def test_hostile_bytes_are_a_text_or_refused(data):
    with contextlib.suppress(ValueError):
        assert isinstance(text_of_pickle(data), str)


@pytest.mark.parametrize("text", ["%%%", "AAAA", base64.b64encode(zlib.compress(b"x" * 5000)[:-9]).decode(), "é"])
def test_what_is_not_compressed_is_refused(text):
    with pytest.raises(ValueError, match=r"no base64 of zlib data|cut off"):
        inflate(text)


def test_a_bomb_is_refused(monkeypatch):
    bomb = base64.b64encode(zlib.compress(b"\0" * 10_000)).decode()
    assert len(inflate(bomb)) == 10_000 < MAX_BYTES
    monkeypatch.setattr(packed, "MAX_BYTES", 9_999)
    with pytest.raises(ValueError, match="more than 9999 bytes"):
        inflate(bomb)

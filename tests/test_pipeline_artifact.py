import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifact import (
    SMALL_FILE,
    ArtifactError,
    HashCache,
    Manifest,
    content_hash,
    hash_payload,
    next_old_name,
    payload_files,
    read_manifest,
    verify,
    verify_quickly,
    write_text,
)


def _make(folder, **files: bytes) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in ({"a.bin": b"alpha", "sub/b.bin": b"beta"} | files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    digest, hashed = hash_payload(folder, HashCache())
    manifest = Manifest(
        kind="checkpoint",
        stage="zero",
        stage_kind="grpo",
        config={},
        parents={},
        content_hash=digest,
        files=hashed,
        seed=1,
    )
    manifest.write(folder)
    return manifest


def test_manifest_comes_back_as_written(tmp_path):
    manifest = _make(tmp_path / "zero")
    assert read_manifest(tmp_path / "zero") == manifest
    assert read_manifest(tmp_path) is None
    verify(tmp_path / "zero")


def test_the_content_hash_is_of_the_payload_alone(tmp_path):
    one = _make(tmp_path / "one")
    working_state = {
        "checkpoints/step_1": b"x",
        "timings.jsonl": b"{}",
        "timeline.jsonl": b"{}",
        "groups/step_00000001.parquet": b"z",
        ".progress.json": b"{}",
        ".cache/x": b"y",
        "plan.json": b"{}",
    }
    two = _make(tmp_path / "elsewhere", **working_state)
    assert one.content_hash == two.content_hash
    assert [p.as_posix() for p in payload_files(tmp_path / "elsewhere")] == ["a.bin", "sub/b.bin"]


@given(
    st.dictionaries(st.text("abc/.", min_size=1), st.text("01", min_size=2, max_size=3), max_size=4),
    st.dictionaries(st.text("abc/.", min_size=1), st.text("01", min_size=2, max_size=3), max_size=4),
)
def test_content_hashes_are_equal_exactly_when_the_files_are(one, two):
    def files(found):
        return {name: {"sha256": digest, "size": 1} for name, digest in found.items()}

    assert (content_hash(files(one)) == content_hash(files(two))) == (one == two)
    assert content_hash(files(one)) == content_hash(files(dict(reversed(one.items()))))


DAMAGES = {
    "shorter": (lambda f: (f / "a.bin").write_bytes(b"alph"), "a.bin is damaged: 4 bytes instead of 5"),
    "same size": (lambda f: (f / "sub/b.bin").write_bytes(b"BETA"), "b.bin is damaged: its content"),
    "missing": (lambda f: (f / "a.bin").unlink(), "a.bin is missing"),
    "added": (lambda f: (f / "c.bin").write_bytes(b""), "c.bin was added"),
    "manifest": (lambda f: _edit(f / "manifest.json", content_hash="0"), "manifest.json is damaged"),
}


def _edit(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("quick", [True, False])
def test_damage_is_found_and_the_file_named(tmp_path, damage, quick):
    _make(tmp_path)
    act, expected = DAMAGES[damage]
    act(tmp_path)
    with pytest.raises(ArtifactError, match=expected):
        verify_quickly(tmp_path, read_manifest(tmp_path), HashCache()) if quick else verify(tmp_path)


def test_small_files_are_read_even_when_their_times_lie(tmp_path):
    manifest, hashes = _make(tmp_path), HashCache()
    verify_quickly(tmp_path, manifest, hashes)
    stat = (tmp_path / "a.bin").stat()
    (tmp_path / "a.bin").write_bytes(b"ALPHA")
    os.utime(tmp_path / "a.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ArtifactError, match=r"a\.bin"):
        verify_quickly(tmp_path, manifest, hashes)


def test_big_files_are_read_once_and_again_when_touched(tmp_path, monkeypatch):
    big = b"x" * (SMALL_FILE + 1)
    manifest = _make(tmp_path / "zero", **{"big.bin": big})
    cache = tmp_path / "hashes.json"
    hashes = HashCache(cache)
    verify_quickly(tmp_path / "zero", manifest, hashes)
    hashes.save()

    read = []
    digest = HashCache.sha256.__globals__["hashlib"].file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda f, *a: read.append(os.path.basename(f.name)) or digest(f, *a))
    verify_quickly(tmp_path / "zero", manifest, HashCache(cache))
    assert "big.bin" not in read
    (tmp_path / "zero" / "big.bin").write_bytes(b"y" + big[1:])
    os.utime(tmp_path / "zero" / "big.bin", ns=(1, 1))
    with pytest.raises(ArtifactError, match=r"big\.bin"):
        verify_quickly(tmp_path / "zero", manifest, HashCache(cache))
    assert "big.bin" in read


def test_a_broken_cache_only_costs_time(tmp_path):
    manifest = _make(tmp_path / "zero")
    (tmp_path / "hashes.json").write_text("{broken")
    verify_quickly(tmp_path / "zero", manifest, HashCache(tmp_path / "hashes.json"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kind": 1, "unknown": 2}'])
def test_an_unreadable_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "x.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x.json", "\ud800")
    assert (tmp_path / "x.json").read_text() == "old"


def test_old_artifacts_are_numbered(tmp_path):
    (tmp_path / "zero.old-1").mkdir()
    assert next_old_name(tmp_path / "zero").name == "zero.old-2"


def test_an_unfinished_artifact_does_not_verify(tmp_path):
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        verify(tmp_path)

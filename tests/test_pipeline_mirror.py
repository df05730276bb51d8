"""Artifacts at an fsspec URL: what comes back is what was made, or is refused."""

import json
import logging
import shutil
import uuid

import pytest
from typer.testing import CliRunner

from pipeline.artifact import ArtifactError, read_manifest, verify
from pipeline.cli import main
from pipeline.config import load
from pipeline.mirror import pull, push
from pipeline.run import run
from tests.toy_stages import TOY_KINDS, write_recipes

ALL = ["base", "data", "evaluate", "zero"]


def make(tmp_path, *overrides: str):
    recipe = write_recipes(tmp_path / "recipes")
    run(load(recipe, [f"output={tmp_path}/runs/toy", *overrides], TOY_KINDS), kinds=TOY_KINDS)
    return tmp_path / "runs" / "toy"


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path) -> str:
    return f"file://{tmp_path}/store/toy" if request.param == "file" else f"memory://{uuid.uuid4()}/toy"


def test_a_run_comes_back_whole_and_is_not_made_again(tmp_path, url):
    folder = make(tmp_path)
    assert push(folder, url) == ALL and push(folder, url) == []
    other = tmp_path / "elsewhere" / "toy"
    assert pull(url, other) == ALL and pull(url, other) == []
    for name in ALL:
        verify(other / name)
    pipeline = load(tmp_path / "recipes" / "pipeline.yaml", [f"output={other}"], TOY_KINDS)
    assert run(pipeline, kinds=TOY_KINDS) == []


def test_a_run_with_a_mirror_copies_what_it_makes(tmp_path, url):
    make(tmp_path, f"cluster.mirror={url}")
    assert pull(url, tmp_path / "elsewhere") == ALL


def test_a_mirror_that_is_down_does_not_stop_the_run(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        folder = make(tmp_path, "cluster.mirror=nosuch://bucket")
    assert read_manifest(folder / "evaluate") is not None
    assert f"r1 push {folder} nosuch://bucket tries again" in caplog.text


def test_damage_is_found_in_both_directions(tmp_path):
    folder, store = make(tmp_path), tmp_path / "store"
    push(folder, f"file://{store}")
    (file,) = (store / "zero").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"zero/model\.safetensors is damaged: its content is not what was pushed"):
        pull(f"file://{store}", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "zero").exists()
    (folder / "zero" / file.name).write_bytes(b"?")
    with pytest.raises(ArtifactError, match=r"model.safetensors is damaged"):
        push(folder, f"file://{tmp_path}/second")
    assert not (tmp_path / "second" / "zero" / "manifest.json").exists()


def test_a_manifest_cannot_write_outside_the_artifact(tmp_path):
    folder, store = make(tmp_path), tmp_path / "store"
    push(folder, f"file://{store}")
    path = store / "zero" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../owned"] = {"sha256": "0" * 64, "size": 0}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="is damaged"):
        pull(f"file://{store}", tmp_path / "elsewhere")
    assert not (tmp_path / "owned").exists()


def test_what_was_set_aside_stays_where_it_is(tmp_path):
    folder = make(tmp_path)
    shutil.copytree(folder / "zero", folder / "zero.old-1")
    assert push(folder, f"file://{tmp_path}/store") == ALL


def test_another_artifact_of_that_name_is_never_overwritten(tmp_path):
    folder, store = make(tmp_path), f"file://{tmp_path}/store"
    push(folder, store)
    other = make(tmp_path / "other", "seed=9")
    with pytest.raises(ArtifactError, match="holds another artifact of that name"):
        push(other, store)
    with pytest.raises(ArtifactError, match="exists and is not what"):
        pull(store, other)


def test_the_commands_say_what_they_did(tmp_path):
    folder, store = make(tmp_path), f"file://{tmp_path}/store"
    r1 = CliRunner().invoke
    assert r1(main, ["push", str(folder), store]).output == f"copied {', '.join(ALL)} to {store}\n"
    assert "has everything" in r1(main, ["push", str(folder), store]).output
    assert "holds no artifacts" in r1(main, ["pull", f"{store}/nothing", str(tmp_path / "x")]).output
    assert r1(main, ["pull", "nosuch://bucket", str(tmp_path / "x")]).exit_code == 2

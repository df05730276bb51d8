import fcntl
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import lock, provenance
from pipeline.artifact import read_manifest, verify
from pipeline.config import load
from pipeline.errors import RecipeError
from pipeline.progress import LiveProgress, PlainProgress, duration
from pipeline.run import make_plan, only_stage, run
from pipeline.state import State, _changed_keys
from pipeline.status import status
from rl.config import GRPOConfig
from tests.toy_stages import RECIPES, TOY_KINDS, write_checkpoint, write_recipes
from training.stage import StageError

ALL = ["base", "zero", "data", "evaluate"]


@pytest.fixture
def toy(tmp_path):
    """Runs the toy pipeline: toy("zero.steps=9", redo=["zero"]) -> names of the stages made."""
    recipe = write_recipes(tmp_path / "recipes")

    def go(*overrides, path=recipe, only="", **options):
        pipeline = load(path, [f"output={tmp_path}/runs/toy", *overrides], TOY_KINDS)
        return run(only_stage(pipeline, only) if only else pipeline, kinds=TOY_KINDS, **options)

    go.folder = tmp_path / "runs" / "toy"
    go.recipes = tmp_path / "recipes"
    go.plan = lambda *overrides, **options: make_plan(
        load(recipe, [f"output={go.folder}", *overrides], TOY_KINDS), **options
    )
    return go


def _finish(config, context) -> None:
    write_checkpoint(context.output, b"made")


def _refusal(go, *overrides, **options) -> str:
    with pytest.raises(RecipeError) as caught:
        go(*overrides, **options)
    return str(caught.value)


def _hashes(folder: Path) -> dict[str, str]:
    return {name: read_manifest(folder / name).content_hash for name in ALL}


def _snapshot(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}


def test_a_run_makes_every_artifact_with_its_history(toy):
    assert toy() == ALL
    for name in ALL:
        verify(toy.folder / name)
    zero, data = read_manifest(toy.folder / "zero"), read_manifest(toy.folder / "data")
    assert zero.kind == "checkpoint" and zero.stage_kind == "toy_train"
    assert zero.config["optimizer"] == {"lr": 1e-4, "name": "adamw"}  # resolved: defaults too
    assert zero.parents["policy"]["content_hash"] == read_manifest(toy.folder / "base").content_hash
    assert (toy.folder / "zero" / zero.parents["policy"]["path"]).resolve() == (toy.folder / "base").resolve()
    assert data.counts == {"samples": 4}
    assert {"python", "torch", "transformers", "ray"} <= zero.versions.keys()
    assert len(zero.code_version["sources"]) == 64
    assert zero.wall_time_s > 0 and zero.created and zero.device


def test_a_second_run_skips_everything_and_touches_nothing(toy):
    toy()
    before = _snapshot(toy.folder)
    assert toy() == []
    after = _snapshot(toy.folder)
    after.pop(str(toy.folder / "pipeline.json")), before.pop(str(toy.folder / "pipeline.json"))
    assert after == before


def test_a_changed_config_is_refused_naming_the_keys_and_the_way_out(toy):
    toy()
    message = _refusal(toy, "zero.optimizer.lr=2e-4", "zero.steps=6")
    assert "stage 'zero' is refused" in message
    assert "optimizer.lr: 0.0001 -> 0.0002" in message and "steps: 5 -> 6" in message
    assert "--redo-from zero" in message
    assert toy() == []


def test_a_changed_seed_is_refused(toy):
    toy()
    assert "seed differs" in _refusal(toy, "seed=4")


def test_a_changed_input_is_refused(toy):
    toy()
    write_checkpoint(toy.folder.parent / "other", b"other")
    message = _refusal(toy, f"zero.inputs.policy={toy.folder.parent}/other")
    assert "input policy" in message and "changed under it" in message
    message = _refusal(toy, "evaluate.inputs.checkpoints=[base]")
    assert "inputs differ" in message


def test_a_parent_that_changed_under_a_stage_is_refused(toy):
    toy()
    (toy.folder / "zero").rename(toy.folder / "kept")
    toy(only="zero")  # the same again: nothing to complain about
    assert toy() == []
    (toy.folder / "zero").rename(toy.folder / "kept2")
    with pytest.raises(RecipeError) as caught:
        toy("zero.group_size=3")
    assert "stage 'data' is refused: its input policy (zero) changed under it" in str(caught.value)


def test_a_way_out_that_is_recommended_is_not_refused(toy):
    toy()
    assert "--redo zero" not in _refusal(toy, "zero.steps=6")
    assert "this stage alone with --redo evaluate" in _refusal(toy, "evaluate.inputs.checkpoints=[base]")
    assert toy("evaluate.inputs.checkpoints=[base]", redo=["evaluate"]) == ["evaluate"]
    assert "this stage alone with --redo zero" in _refusal(toy, "zero.steps=6", only="zero")
    assert toy("zero.steps=6", only="zero", redo=["zero"]) == ["zero"]


def test_redo_keeps_the_old_one_and_asks_for_what_follows(toy):
    toy()
    before = _hashes(toy.folder)
    message = _refusal(toy, "zero.steps=6", redo=["zero"])
    assert "'data' is refused" in message and "--redo-from zero" in message
    assert not (toy.folder / "zero.old-1").exists()  # refused before anything moved
    assert toy("zero.steps=6", redo=["zero", "data", "evaluate"]) == ["zero", "data", "evaluate"]
    assert read_manifest(toy.folder / "zero.old-1").content_hash == before["zero"]
    assert toy(redo_from=["zero"]) == ["zero", "data", "evaluate"]
    assert _hashes(toy.folder) == before
    assert (toy.folder / "zero.old-2").is_dir()
    assert "did you mean 'zero'?" in _refusal(toy, redo=["zeor"])


def _old(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".old-" in path.name)


def test_a_redo_that_failed_goes_on_with_the_same_command(toy):
    toy()
    before = _hashes(toy.folder)
    broken = dict(TOY_KINDS)
    kind = TOY_KINDS["toy_data"]

    def fails(config, context):
        raise StageError("no")

    broken["toy_data"] = type(kind)(config=kind.config, run=fails, inputs=kind.inputs, leaves=kind.leaves)
    pipeline = load(toy.recipes / "pipeline.yaml", [f"output={toy.folder}"], TOY_KINDS)
    with pytest.raises(StageError):
        run(pipeline, kinds=broken, redo_from=["zero"])
    states = {name: standing.state for name, standing in toy.plan(redo_from=["zero"]).standings.items()}
    assert states == {"base": "made", "zero": "made", "data": "resume", "evaluate": "to make"}
    assert toy(redo_from=["zero"]) == ["data", "evaluate"]
    assert _old(toy.folder) == ["data.old-1", "evaluate.old-1", "zero.old-1"]
    assert _hashes(toy.folder) == before
    assert toy(redo_from=["zero"]) == ["zero", "data", "evaluate"]  # it was done, so this is another one


def test_a_redo_that_failed_can_be_asked_for_with_other_settings(toy):
    toy()
    with pytest.raises(StageError):
        toy("zero.fail_at=3", redo_from=["zero"])
    assert toy("zero.steps=6", redo_from=["zero"]) == ["zero", "data", "evaluate"]
    assert _old(toy.folder) == ["data.old-1", "evaluate.old-1", "zero.old-1", "zero.old-2"]


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_redo_cut_off_between_two_renames_moves_the_rest(toy, monkeypatch, moves):
    toy()
    left = iter([True] * moves)
    rename = Path.rename

    def dies(path, target):
        if not next(left, False):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        toy(redo_from=["zero"])
    monkeypatch.undo()
    assert toy(redo_from=["zero"]) == ["zero", "data", "evaluate"]
    assert _old(toy.folder) == ["data.old-1", "evaluate.old-1", "zero.old-1"]


def test_a_redo_killed_at_random_moments_moves_each_artifact_once(toy):
    toy("zero.pause_s=0.1")
    before = _hashes(toy.folder)
    program = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from pipeline.config import load
        from pipeline.run import run
        from tests.toy_stages import TOY_KINDS
        overrides = ["output={toy.folder}", "zero.pause_s=0.1"]
        pipeline = load(Path({str(toy.recipes / "pipeline.yaml")!r}), overrides, TOY_KINDS)
        print("go", flush=True)
        run(pipeline, kinds=TOY_KINDS, redo_from=["zero"])
    """)
    rng = random.Random()
    for patience in (rng.uniform(0.0, 0.1), rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.3), 60.0):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                assert process.wait(timeout=patience) == 0
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
    assert _old(toy.folder) == ["data.old-1", "evaluate.old-1", "zero.old-1"]
    assert _hashes(toy.folder) == before


def test_a_key_newer_than_the_artifact_is_no_difference_at_its_default(toy):
    toy()
    path = toy.folder / "zero" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["config"]["pause_s"], manifest["config"]["optimizer"]["name"]
    path.write_text(json.dumps(manifest))
    assert toy() == []
    assert 'optimizer.name: nothing -> "muon"' in _refusal(toy, "zero.optimizer.name=muon")
    manifest["config"]["gone"] = 1
    path.write_text(json.dumps(manifest))
    assert "gone: 1 -> nothing" in _refusal(toy)


def test_how_a_stage_is_run_may_change_between_attempts_and_after(toy):
    toy()
    manifest = toy.folder / "zero" / "manifest.json"
    manifest.unlink()  # as cut off in its last moment
    assert "steps: 5 -> 7" in _refusal(toy, "zero.pause_s=0.001", "zero.steps=7")
    assert toy("zero.pause_s=0.001") == ["zero"]
    assert json.loads(manifest.read_text())["config"]["pause_s"] == 0.001
    assert toy("zero.pause_s=0") == []


def test_how_a_reward_asks_its_judge_may_change_too():
    def config(url="http://127.0.0.1:1/v1", **asking):
        options = {"endpoint": {"url": url, "model": "m", **asking}}
        return GRPOConfig.model_validate(
            {"rewards": [{"use": "rewards.reference_judge:ReferenceJudge", "options": options}]}
        )

    before, calmer, other = config(), config(concurrency=1, deadline_s=500), config("http://127.0.0.1:2/v1")
    assert list(_changed_keys(before.model_dump(mode="json"), calmer.model_dump(mode="json"), calmer)) == []
    ((key, _, _),) = _changed_keys(before.model_dump(mode="json"), other.model_dump(mode="json"), other)
    assert key == "rewards[0].options.endpoint.url"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_payload_is_refused_naming_the_file(toy, name):
    toy()
    path = toy.folder / "zero" / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    message = _refusal(toy)
    assert str(path) in message and "damaged" in message and "--redo-from zero" in message


def test_a_failed_stage_says_so_and_is_resumed(toy):
    with pytest.raises(StageError, match=r"stage 'zero' failed: the toy was told to fail; .* resume"):
        toy("zero.fail_at=3")
    assert not (toy.folder / "zero" / "manifest.json").exists()
    # the plan on disk says fail_at=3, so another config is not mixed into it
    message = _refusal(toy)
    assert "started differently and cut off" in message and "fail_at: 3 -> null" in message


def test_a_stage_that_was_cut_off_before_it_made_anything_starts_with_what_was_mended(toy):
    with pytest.raises(StageError, match="stage 'zero' failed"):
        toy("zero.fail_at=1")
    stage = toy.folder / "zero"
    (stage / "memory.jsonl").write_text("{}\n")  # the pipeline's own notes are nothing that was made
    assert {path.name for path in stage.iterdir() if path.is_file() and path.stat().st_size} == {
        "plan.json", ".progress.json", "memory.jsonl"
    }  # fmt: skip
    standing = toy.plan().standings["zero"]
    assert standing.state is State.TO_MAKE and "before it made anything" in standing.reason
    toy()
    assert read_manifest(stage).config["fail_at"] is None
    assert json.loads((stage / "plan.json").read_text())["config"]["fail_at"] is None


def test_a_failure_that_must_repeat_is_not_told_to_be_tried_again(toy):
    def fails(config, context):
        raise StageError("the loss is nan")

    kinds = TOY_KINDS | {"toy_base": type(TOY_KINDS["toy_base"])(config="", run=fails, leaves="checkpoint")}
    pipeline = load(toy.recipes / "pipeline.yaml", [f"output={toy.folder}"], TOY_KINDS)
    with pytest.raises(StageError) as caught:
        run(pipeline, kinds=kinds)
    assert str(caught.value) == "stage 'base' failed: the loss is nan" and not caught.value.retry


def test_wall_time_counts_every_attempt(toy):
    toy(only="base")
    progress = toy.folder / "base" / ".progress.json"
    progress.write_text('{"wall_time_s": 1000.0, "event": {}}')
    (toy.folder / "base" / "manifest.json").unlink()
    toy(only="base")
    assert read_manifest(toy.folder / "base").wall_time_s > 1000.0


def _attempt(monkeypatch, sources: str, torch: str, **version) -> dict:
    """What an attempt with this code and this torch records, from now on."""
    made = {"code_version": {"sources": sources * 64, **version}, "versions": {"python": "3.11.2", "torch": torch}}
    monkeypatch.setattr(provenance, "code_version", lambda: made["code_version"])
    monkeypatch.setattr(provenance, "versions", lambda: made["versions"])
    return made


def test_a_stage_that_goes_on_with_other_versions_says_so_and_lists_those_of_every_attempt(toy, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        first = _attempt(monkeypatch, "a", "2.13.0", git="1")
        with pytest.raises(StageError):
            toy("base.fail_at=2", only="base")
        assert json.loads((toy.folder / "base" / "plan.json").read_text())["attempts"] == [first]
        _attempt(monkeypatch, "b", "2.13.1", git="2")
        with pytest.raises(StageError):
            toy("base.fail_at=2", only="base")
        second = _attempt(monkeypatch, "b", "2.13.1", git="3")  # a commit of the same code
        with pytest.raises(StageError):
            toy("base.fail_at=2", only="base")
        third = _attempt(monkeypatch, "b", "2.13.2")
        monkeypatch.setattr(provenance, "versions", lambda: third["versions"] | {"vllm": "0.11"})
        monkeypatch.setitem(TOY_KINDS, "toy_base", replace(TOY_KINDS["toy_base"], run=_finish))
        toy("base.fail_at=2", only="base")
    start = "stage 'base' goes on with other versions than before: "
    assert caplog.messages == [
        f"{start}code aaaaaaaaaaaa -> bbbbbbbbbbbb, torch 2.13.0 -> 2.13.1; its manifest will list both",
        f"{start}torch 2.13.1 -> 2.13.2, vllm none -> 0.11; its manifest will list both",
    ]
    manifest = read_manifest(toy.folder / "base")
    assert manifest.earlier_versions == [first, second]
    assert manifest.versions == third["versions"] | {"vllm": "0.11"} and manifest.code_version == third["code_version"]
    assert toy("base.fail_at=2", only="base") == []


def test_the_code_of_a_users_reward_is_recorded_and_a_change_is_said(toy, tmp_path, monkeypatch, caplog):
    """It is refused no more than a change of r1's own code: a stage that a reward stopped goes on with it mended."""
    reward = tmp_path / "own_reward.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    rewards = 'zero.rewards=[{use: "own_reward:near"}, {use: "rewards.format:Format"}]'
    versions = []
    for text in ("1.0", "0.5"):
        reward.write_text(f"def near(problem, completion):\n    return {text}\n")
        with pytest.raises(StageError):
            toy(rewards, "zero.fail_at=3", only="zero" if versions else "")
        attempts = json.loads((toy.folder / "zero" / "plan.json").read_text())["attempts"]
        versions.append(attempts[-1]["versions"]["reward own_reward:near"])
        assert "reward rewards.format:Format" not in attempts[-1]["versions"]
    first, second = versions
    sentence = f"stage 'zero' goes on with other versions than before: reward own_reward:near {first} -> {second};"
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(sentence)
    monkeypatch.setitem(TOY_KINDS, "toy_train", replace(TOY_KINDS["toy_train"], run=_finish))
    toy(rewards, "zero.fail_at=3", only="zero")
    assert toy.plan(rewards, "zero.fail_at=3").standings["zero"].reason == ""
    reward.write_text(reward.read_text() + "# other code\n")
    standing = toy.plan(rewards, "zero.fail_at=3").standings["zero"]
    assert standing.state is State.MADE
    assert standing.reason == ("with another code of its reward own_reward:near; --redo-from zero makes it again")


def test_the_code_version_is_of_all_packages():
    root = Path(provenance.__file__).parents[1]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in declared} == set(provenance._ROOMS)


def test_a_plan_of_before_versions_were_recorded_is_resumed(toy, caplog):
    with pytest.raises(StageError):
        toy("zero.fail_at=3")
    path = toy.folder / "zero" / "plan.json"
    plan = json.loads(path.read_text())
    assert {*plan} == {"stage", "stage_kind", "config", "seed", "parents", "attempts"}
    attempts = plan.pop("attempts")
    path.write_text(json.dumps(plan))
    with pytest.raises(StageError):
        toy("zero.fail_at=3")
    assert json.loads(path.read_text()) == plan | {"attempts": attempts} and not caplog.messages


def test_a_resumed_stage_equals_an_undisturbed_one(toy, tmp_path):
    toy()
    whole = _hashes(toy.folder)
    calls = {"zero": 0}
    kinds = dict(TOY_KINDS)
    train = TOY_KINDS["toy_train"].run

    def dies_once(config, context):
        def report(event):
            if event["step"] == 3 and not calls["zero"]:
                calls["zero"] = 1
                raise KeyboardInterrupt
            context.report(event)

        train(config, type(context)(**{f: getattr(context, f) for f in context.__slots__} | {"report": report}))

    kinds["toy_train"] = type(TOY_KINDS["toy_train"])(
        config=TOY_KINDS["toy_train"].config, run=dies_once, inputs={"policy": "checkpoint"}, leaves="checkpoint"
    )
    pipeline = load(toy.recipes / "pipeline.yaml", [f"output={tmp_path}/again"], TOY_KINDS)
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, kinds=kinds)
    assert make_plan(pipeline).standings["zero"].state is State.RESUME
    stream = io.StringIO()
    assert run(pipeline, kinds=kinds, progress=PlainProgress(pipeline, stream)) == ["zero", "data", "evaluate"]
    assert "zero: resumes" in stream.getvalue() and "zero: step 1/5" not in stream.getvalue()
    assert {n: read_manifest(tmp_path / "again" / n).content_hash for n in ALL} == whole


def test_kill_at_a_random_moment_and_run_again_gives_the_same_payload(toy, tmp_path):
    toy("zero.pause_s=0.02", "base.pause_s=0.02")
    whole = _hashes(toy.folder)
    program = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from pipeline.config import load
        from pipeline.run import run
        from tests.toy_stages import TOY_KINDS
        overrides = ["output={tmp_path}/killed", "zero.pause_s=0.02", "base.pause_s=0.02"]
        pipeline = load(Path({str(toy.recipes / "pipeline.yaml")!r}), overrides, TOY_KINDS)
        print("go", flush=True)
        run(pipeline, kinds=TOY_KINDS)
    """)
    rng = random.Random()
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(timeout=rng.uniform(0.0, 0.4))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert {n: read_manifest(tmp_path / "killed" / n).content_hash for n in ALL} == whole
    for name in ALL:
        verify(tmp_path / "killed" / name)


def test_a_fault_of_the_code_is_a_sentence_and_its_traceback_is_kept(toy):
    def broken(config, context):
        raise ZeroDivisionError("by zero")

    kinds = TOY_KINDS | {"toy_base": type(TOY_KINDS["toy_base"])(config="", run=broken, leaves="checkpoint")}
    pipeline = load(toy.recipes / "pipeline.yaml", [f"output={toy.folder}"], TOY_KINDS)
    with pytest.raises(
        StageError, match=r"stage 'base' failed: ZeroDivisionError: by zero \(traceback in .*base/.error"
    ):
        run(pipeline, kinds=kinds)
    assert "in broken" in (toy.folder / "base" / ".error.log").read_text()


def test_a_stage_that_leaves_nothing_has_failed(toy):
    kinds = TOY_KINDS | {
        "toy_base": type(TOY_KINDS["toy_base"])(config="", run=lambda config, context: None, leaves="checkpoint")
    }
    pipeline = load(toy.recipes / "pipeline.yaml", [f"output={toy.folder}"], TOY_KINDS)
    with pytest.raises(StageError, match="left nothing"):
        run(pipeline, kinds=kinds)


def test_files_of_unknown_origin_are_not_overwritten(toy):
    (toy.folder / "zero").mkdir(parents=True)
    (toy.folder / "zero" / "thesis.txt").write_text("precious")
    message = _refusal(toy)
    assert "thesis.txt" in message and "no run made it" in message
    assert not (toy.folder / "base").exists()


def test_one_stage_needs_its_parents_made(toy):
    message = _refusal(toy, path=toy.recipes / "zero.yaml")
    assert "stage 'zero' needs 'base', which is not made" in message
    assert toy(path=toy.recipes / "base.yaml") == ["base"]
    assert toy(path=toy.recipes / "zero.yaml") == ["zero"]
    assert toy() == ["data", "evaluate"]
    assert toy(only="data", redo=["data"]) == ["data"]
    assert "did you mean 'data'?" in _refusal(toy, only="dota")


def test_a_folder_from_elsewhere_is_a_parent_by_content(toy):
    start = toy.folder.parent / "start"
    write_checkpoint(start, b"abc")
    arguments = {"path": toy.recipes / "zero.yaml"}
    assert toy(f"inputs.policy={start}", **arguments) == ["zero"]
    assert toy(f"inputs.policy={start}", **arguments) == []
    write_checkpoint(start, b"abd")
    assert "changed under it" in _refusal(toy, f"inputs.policy={start}", **arguments)


def test_two_runs_cannot_write_one_folder(toy):
    with lock.hold(toy.folder):
        assert lock.holder(toy.folder) == os.getpid()
        message = _refusal(toy)
        assert f"process {os.getpid()}" in message and "output=PATH" in message
    assert lock.holder(toy.folder) is None
    assert toy() == ALL


def test_a_look_at_the_lock_does_not_make_a_run_fail(toy):
    toy.folder.mkdir(parents=True)
    with (toy.folder / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        release = threading.Timer(0.3, fcntl.flock, (file, fcntl.LOCK_UN))
        release.start()
        assert toy() == ALL
        release.join()


def test_planning_writes_nothing(toy):
    states = {name: s.state for name, s in toy.plan().standings.items()}
    assert states == dict.fromkeys(ALL, State.TO_MAKE)
    assert not toy.folder.exists()
    toy()
    (toy.folder / "zero" / "manifest.json").unlink()
    plan = toy.plan("data.rows=5", redo=["evaluate"])
    states = {name: s.state for name, s in plan.standings.items()}
    assert states == {"base": State.MADE, "zero": State.RESUME, "data": State.REFUSED, "evaluate": State.REDO}


def test_status_tells_made_running_cut_off_and_to_make(toy):
    with pytest.raises(StageError):
        toy("zero.fail_at=3")
    rows = {row.name: row for row in status(toy.folder)}
    assert [row.state for row in rows.values()] == ["made", "cut off", "to make", "to make"]
    assert (rows["zero"].step, rows["zero"].total_steps) == (2, 5)
    assert set(rows["zero"].metrics) == {"toy/value"}
    with lock.hold(toy.folder):
        assert status(toy.folder)[1].state == "running"
    with pytest.raises(RecipeError, match="not a run folder"):
        status(toy.folder.parent)


def test_status_survives_a_half_written_line(toy):
    toy()
    with (toy.folder / "zero" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "toy')
    assert "toy/value" in status(toy.folder)[1].metrics


def test_plain_progress_prints_at_most_one_line_per_tenth(toy):
    pipeline = load(toy.recipes / "pipeline.yaml", (), TOY_KINDS)
    stream = io.StringIO()
    progress = PlainProgress(pipeline, stream)
    progress.start("zero", resumed=False)
    for step in range(1, 1001):
        progress.event("zero", {"step": step, "total_steps": 1000, "reward": 0.5, "tokens_per_s": 12345.6})
    progress.finish("zero", 65)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "zero: starts" and lines[-1] == "zero: done in 1 min 05 s"
    assert lines[1] == "zero: step 100/1000  reward 0.5  tokens_per_s 12,346"
    assert len(lines) == 12


def test_the_live_table_shows_every_stage(toy):
    from rich.console import Console

    progress = LiveProgress(load(toy.recipes / "pipeline.yaml", (), TOY_KINDS))
    progress.skip("base", 3.0)
    progress.start("zero", resumed=True)
    progress.event("zero", {"step": 2, "total_steps": 5, "loss": 0.25, "phase": "sampling [x]"})
    progress.event("zero", {"step": 3})
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(progress.table())
    text = console.export_text()
    for part in ("base", "made before", "3.0 s", "resumed", "3/5", "0.25", "sampling [x]", "evaluate"):
        assert part in text


def test_durations_read_well():
    assert [duration(s) for s in (0.04, 59.94, 60, 3599.6, 7980)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "1 h 00 min",
        "2 h 13 min",
    ]


def test_the_run_folder_says_which_stages_it_has(toy):
    toy()
    summary = json.loads((toy.folder / "pipeline.json").read_text())
    assert list(summary["stages"]) == ALL
    assert summary["stages"]["zero"] == {"kind": "toy_train", "leaves": "checkpoint", "inputs": {"policy": "base"}}


def test_a_recipe_that_only_moved_is_not_a_changed_recipe(toy, tmp_path):
    write_recipes(tmp_path / "one", base="stage: toy_base\ndata_file: words.txt\n")
    (tmp_path / "one" / "words.txt").write_text("words")
    assert toy(path=tmp_path / "one" / "pipeline.yaml") == ALL
    (tmp_path / "one").rename(tmp_path / "two")
    assert toy(path=tmp_path / "two" / "pipeline.yaml") == []
    (tmp_path / "two" / "words.txt").write_text("other")
    assert "data_file" in _refusal(toy, path=tmp_path / "two" / "pipeline.yaml")


def test_a_stage_added_to_the_pipeline_is_the_only_one_made(toy):
    toy()
    text = RECIPES["pipeline.yaml"] + "  again: {recipe: zero.yaml, inputs: {policy: zero}}\n"
    (toy.recipes / "pipeline.yaml").write_text(text)
    assert toy() == ["again"]

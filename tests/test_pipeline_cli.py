import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cluster.actors import ActorDied, PhaseTimeout, StartFailed, start_ray
from models.checkpoint import load_tokenizer
from pipeline import lock
from pipeline.cli import main
from pipeline.report_data import artifacts_digest, read_run
from pipeline.stages import KINDS
from tests.toy_stages import RECIPES, TOY_KINDS, write_checkpoint, write_recipes
from training.run_log import RunLog
from training.stage import StageError

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "ray", "transformers", "datasets", "plotly", "sympy", "pyarrow", "numpy"]

# A stand-alone r1 with the toy kinds and a report that is one line.
PROGRAM = textwrap.dedent(f"""
    import sys, types; sys.path.insert(0, {str(ROOT)!r})
    from pipeline import stages
    from tests.toy_stages import TOY_KINDS
    stages.KINDS.clear()
    stages.KINDS.update(TOY_KINDS)
    def write_report(folder):
        (folder / "report.html").write_text("report")
        return folder / "report.html"
    sys.modules["pipeline.report"] = types.SimpleNamespace(write_report=write_report)
    from pipeline.cli import main
    try:
        main(sys.argv[1:])
    finally:
        print("imported:", [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
""")


@pytest.fixture
def r1(tmp_path, monkeypatch):
    """r1("run", "recipes/pipeline.yaml") in a folder with the toy recipes; returns exit_code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    write_recipes(tmp_path / "recipes")
    for name in list(KINDS):
        monkeypatch.delitem(KINDS, name)
    for name, kind in TOY_KINDS.items():
        monkeypatch.setitem(KINDS, name, kind)
    written = []

    def write_report(folder: Path) -> Path:
        written.append(folder)
        digest = artifacts_digest(read_run(folder).stages)
        (folder / "report.html").write_text(f'<meta name="r1-artifacts" content="{digest}">')
        return folder / "report.html"

    monkeypatch.setitem(sys.modules, "pipeline.report", SimpleNamespace(write_report=write_report))

    def call(*arguments: str):
        result = CliRunner().invoke(main, list(arguments))
        assert "Traceback" not in result.output
        return result

    call.reports = written
    return call


def test_run_says_what_it_does_and_where_the_report_is(r1):
    result = r1("run", "recipes/pipeline.yaml")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "base: starts"
    assert lines[-1] == "report: runs/toy/report.html"
    assert "\x1b" not in result.stdout
    assert r1.reports == [Path("runs/toy")]


def test_a_second_run_skips_and_does_not_write_the_report_again(r1):
    r1("run", "recipes/pipeline.yaml")
    result = r1("run", "recipes/pipeline.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        *(f"{name}: made before, skipped" for name in ("base", "zero", "data", "evaluate")),
        "report: runs/toy/report.html",
    ]
    assert len(r1.reports) == 1
    Path("runs/toy/report.html").unlink()
    r1("run", "recipes/pipeline.yaml")
    assert len(r1.reports) == 2


def test_a_report_of_other_artifacts_is_written_again(r1):
    """As after a kill between the last manifest and the report."""
    r1("run", "recipes/pipeline.yaml")
    old = Path("runs/toy/report.html").read_text()
    r1("run", "recipes/pipeline.yaml", "zero.steps=6", "--redo-from", "zero")
    new = Path("runs/toy/report.html").read_text()
    assert new != old
    Path("runs/toy/report.html").write_text(old)
    assert r1("run", "recipes/pipeline.yaml", "zero.steps=6").exit_code == 0
    assert Path("runs/toy/report.html").read_text() == new


def test_the_recipes_of_the_package_are_found_from_anywhere(tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "run", "recipes/tiny/zero.yaml", "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, f"inputs.policy={ROOT}/recipes/tiny/base"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "to make" in done.stdout and not (tmp_path / "runs").exists()
    command[4] = "recipes/tiny/zeor.yaml"
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("recipes/tiny/zeor.yaml: there is no such file")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "recipes/nothing.yaml"], "recipes/nothing.yaml: there is no such file"),
        (["run", "recipes"], "recipes: this is a folder; name a file in it, e.g. recipes/pipeline.yaml"),
        (["run", "recipes/pipeline.yaml", "output=recipes/base.yaml/a"], "recipes/base.yaml is a file"),
        (["replay", "runs/none", "zero"], "there is no run folder runs/none"),
        (["run", "recipes/pipeline.yaml", "zero.stepz=1"], "did you mean 'steps'?"),
        (["run", "recipes/pipeline.yaml", "--only", "zeor"], "did you mean 'zero'?"),
        (["run", "recipes/zero.yaml"], "stage 'zero' needs 'base'"),
        (["status", "runs/none"], "not a run folder"),
        (["report", "runs/none"], "not a run folder"),
        (["report", "recipes"], "recipes is not a run folder: it has no readable pipeline.json"),
        (["explain", "grop_size"], "did you mean 'group_size'?"),
        (["explain", "toy_train.stepz"], "did you mean 'steps'?"),
        (["explain", "toy_trian"], "did you mean 'toy_train'?"),
        (["explain", "toy_train.xyzzy"], "toy_train has no key 'xyzzy'; r1 explain toy_train lists those it has"),
        (["run"], "Missing argument"),
    ],
)
def test_bad_input_is_a_sentence_on_stderr_and_exit_code_2(r1, arguments, expected):
    result = r1(*arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stdout == ""


def test_a_refused_stage_is_exit_code_2(r1):
    r1("run", "recipes/pipeline.yaml")
    result = r1("run", "recipes/pipeline.yaml", "zero.steps=6")
    assert result.exit_code == 2 and "steps: 5 -> 6" in result.stderr
    assert r1("run", "recipes/pipeline.yaml", "zero.steps=6", "--redo-from", "zero").exit_code == 0


def test_a_failed_stage_is_exit_code_1_and_says_how_to_resume(r1):
    result = r1("run", "recipes/pipeline.yaml", "zero.fail_at=2")
    assert result.exit_code == 1
    assert "stage 'zero' failed" in result.stderr and "run the same command again to resume" in result.stderr


@pytest.mark.parametrize(
    ("fault", "resumes"),
    [
        (ValueError("no"), False),
        (KeyError("no"), False),
        (AssertionError("no"), False),
        (RuntimeError("shapes"), False),
        (StageError("no"), False),
        (StageError("no", retry=True), True),
        (OSError("no space"), True),
        (ActorDied("killed"), True),
        (PhaseTimeout("late"), True),
        (StartFailed("no"), False),
    ],
)
def test_only_what_may_succeed_another_time_is_to_be_tried_again(r1, monkeypatch, fault, resumes):
    def fails(config, context):
        raise fault

    monkeypatch.setitem(KINDS, "toy_base", replace(TOY_KINDS["toy_base"], run=fails))
    result = r1("run", "recipes/pipeline.yaml")
    assert result.exit_code == 1 and "stage 'base' failed" in result.stderr
    assert ("run the same command again to resume" in result.stderr) == resumes


@pytest.mark.parametrize(
    ("address", "fault", "said"),
    [
        (None, Exception("The current node timed out during startup. This could be."), "most likely since it is too b"),
        (None, TimeoutError("late"), "(TimeoutError: late); wait until it has room; run the same command again to res"),
        (None, FileNotFoundError("/nope"), "stage 'base' failed: FileNotFoundError: /nope (traceback in"),
        (
            "10.0.0.1:6379",
            ConnectionError("no"),
            "the Ray cluster at 10.0.0.1:6379, which RAY_ADDRESS names, cannot be",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_a_sentence_with_a_way_on(r1, monkeypatch, address, fault, said):
    def fails(**settings):
        assert settings["address"] == (address or "local")
        raise fault

    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fails)
    monkeypatch.setitem(KINDS, "toy_base", replace(TOY_KINDS["toy_base"], run=lambda config, context: start_ray()))
    result = r1("run", "recipes/pipeline.yaml")
    assert result.exit_code == 1
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_a_disk_that_fills_with_logs_is_named_and_the_doctor_sees_it(r1, monkeypatch):
    def fills(config, context):
        log = RunLog(context.output)
        for step in range(1000):
            log.log(step, {"x": "a" * 10_000})

    monkeypatch.setitem(KINDS, "toy_base", replace(TOY_KINDS["toy_base"], run=fills))
    Path("runs/toy").mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", "runs/toy"], capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        result = r1("run", "recipes/pipeline.yaml")
        full = "is full: 0.0 MB are free; make room"
        assert result.stderr == (
            f"stage 'base' failed: the disk of runs/toy/base {full}; run the same command again to resume it\n"
        )
        assert f"and the disk of runs/toy/base {full}\n" in r1("doctor", "runs/toy").stdout
        again = r1("run", "recipes/pipeline.yaml")
        assert (again.exit_code, again.stderr) == (1, f"the disk of runs/toy {full}; the same command resumes\n")
        subprocess.run(["mount", "-o", "remount,size=500m", "runs/toy"], check=True)
        monkeypatch.setitem(KINDS, "toy_base", TOY_KINDS["toy_base"])
        assert r1("run", "recipes/pipeline.yaml").exit_code == 0
    finally:
        subprocess.run(["umount", "-l", "runs/toy"], check=True)


def test_a_model_nobody_knows_is_refused_before_the_first_stage_starts(r1, llama_checkpoint):
    write_checkpoint(Path("start"), b"abc")
    Path("start/config.json").write_text('{"model_type": "lama"}')
    arguments = ["run", "recipes/pipeline.yaml", "zero.inputs.policy=./start"]
    assert r1(*arguments, "--dry-run").exit_code == 0
    result = r1(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    [sentence] = result.stderr.splitlines()
    assert "input 'policy' of stage 'zero' cannot be used: start/config.json: transformers " in sentence
    assert sentence.endswith("has no language model of model_type 'lama'; did you mean 'llama'?")
    assert not Path("runs").exists()
    shutil.rmtree("start")
    shutil.copytree(llama_checkpoint, "start")
    assert r1(*arguments).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eos_token": None}, "the tokenizer has no EOS token, so completions could not end; set eos_token"),
        ({"chat_template": "{{ messages }"}, "the tokenizer's chat template fails at a conversation of user (Template"),
        ({"chat_template": None}, "the tokenizer has no chat template; add one, or take the template plain or r1_zero"),
    ],
)
def test_a_tokenizer_that_a_stage_cannot_use_is_refused_before_it_starts(llama_checkpoint, tmp_path, changes, said):
    tokenizer = load_tokenizer(llama_checkpoint)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    shutil.copytree(llama_checkpoint, tmp_path / "start")
    (tmp_path / "start" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "start")
    arguments = [f"inputs.policy={tmp_path}/start", f"output={tmp_path}/run", "rollout.max_new_tokens=16"]
    recipe = ROOT / "recipes" / "tiny" / "reasoning_rl.yaml"
    result = CliRunner().invoke(main, ["run", str(recipe), *arguments])
    assert (
        result.exit_code == 2 and f"of stage 'reasoning_rl' cannot be used: {tmp_path}/start: {said}" in result.stderr
    )


def test_a_report_that_fails_does_not_hide_that_the_run_is_complete(r1, monkeypatch):
    def fails(folder):
        raise KeyError("x")

    monkeypatch.setitem(sys.modules, "pipeline.report", SimpleNamespace(write_report=fails))
    result = r1("run", "recipes/pipeline.yaml")
    assert result.exit_code == 1
    assert "every stage is made, but the report could not be written" in result.stderr


def test_a_run_in_use_is_exit_code_2(r1):
    with lock.hold(Path("runs/toy")):
        result = r1("run", "recipes/pipeline.yaml")
    assert result.exit_code == 2 and f"process {os.getpid()}" in result.stderr


def test_a_run_folder_that_cannot_be_written_is_exit_code_2(r1):
    Path("occupied").write_text("a file")
    for arguments in ([], ["--dry-run"]):
        result = r1("run", "recipes/pipeline.yaml", "output=occupied", *arguments)
        assert result.exit_code == 2
        assert result.stderr == (
            "command line, output=occupied: the run folder is to be occupied, but occupied is a file; "
            "choose another folder with output=PATH\n"
        )


def test_dry_run_shows_the_plan_and_the_settings(r1):
    result = r1("run", "recipes/pipeline.yaml", "zero.optimizer.lr=2e-4", "--dry-run", "--verbose")
    assert result.exit_code == 0
    assert not Path("runs").exists()
    for part in (
        "zero",
        "toy_train",
        "policy=base",
        "runs/toy/zero",
        "to make",
        "optimizer.lr: 0.0002",
        "group_size: 2",
    ):
        assert part in result.stdout
    r1("run", "recipes/pipeline.yaml")
    result = r1("run", "recipes/pipeline.yaml", "zero.optimizer.lr=2e-4", "--dry-run")
    assert "refused: its config differs" in result.stdout and "optimizer.lr: 0.0001 -> 0.0002" in result.stdout
    assert result.exit_code == 2 and result.stderr == "nothing would be made, since these stages are refused: zero\n"


def test_status_shows_every_stage(r1):
    r1("run", "recipes/pipeline.yaml")
    result = r1("status", "runs/toy")
    assert result.exit_code == 0
    for part in ("base", "made", "5/5", "toy/value", "evaluate"):
        assert part in result.stdout


def test_status_and_doctor_know_the_last_step_and_the_checkpoint_of_a_stage_that_was_killed(r1):
    """Progress is saved every few seconds, so a kill leaves an older step there than in the log."""
    r1("run", "recipes/pipeline.yaml", "zero.fail_at=4")
    Path("runs/toy/zero/.progress.json").write_text('{"event": {"step": 1, "total_steps": 5}}')
    shutil.rmtree("runs/toy/zero/checkpoints/step_00000003")
    assert "cut off  3/5, goes on from 2" in r1("status", "runs/toy").stdout
    assert "zero (toy_train): cut off, step 3 of 5, goes on from step 2" in r1("doctor", "runs/toy").stdout
    shutil.rmtree("runs/toy/zero/checkpoints")
    assert "3/5  " in r1("status", "runs/toy").stdout


def test_explain_a_key_everywhere_it_occurs(r1):
    result = r1("explain", "lr")
    for part in ("optimizer.lr", "number", "0.001", "greater than 0, at most 1", "step size", "toy_train, toy_sft"):
        assert part in result.stdout
    assert "adamw | muon" in r1("explain", "toy_train.optimizer.name").stdout
    assert "required" in r1("explain", "toy_data.rows").stdout
    assert "toy_sft" not in r1("explain", "toy_train.optimizer.name").stdout
    assert "runs/<name>" in r1("explain", "output").stdout
    result = r1("explain")
    for part in ("toy_train", "policy: checkpoint", "several checkpoints", "Writes rows."):
        assert part in result.stdout


def test_explain_lists_the_keys_of_a_kind_and_of_a_mapping_in_it(r1):
    lines = r1("explain", "toy_train").stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["key", "steps", "group_size"]
    assert lines[1].split() == ["steps", "4", "optimizer", "steps"]
    assert any(line.startswith("optimizer ... ") for line in lines)
    assert not any(line.startswith("optimizer.lr") for line in lines)
    assert "r1 explain toy_train.optimizer" in lines[-1]
    below = r1("explain", "toy_train.optimizer").stdout
    for part in ("in: toy_train", "optimizer.lr", "0.001", "step size; small, for a toy", "update rule"):
        assert part in below
    assert r1("explain", "toy_eval").stdout == "toy_eval has no keys\n"


def _program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_command_line_imports_nothing_heavy():
    code = f"import pipeline.cli, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["run", "recipes/pipeline.yaml"], ["status", "runs/toy"], ["explain", "lr"], ["--help"]]
)
def test_nothing_heavy_is_imported_when_everything_is_made(tmp_path, arguments):
    write_recipes(tmp_path / "recipes")
    assert _program("run", "recipes/pipeline.yaml", cwd=tmp_path).returncode == 0
    done = _program(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert "imported: []" in done.stderr


def test_interrupt_is_exit_code_130_and_the_same_command_resumes(tmp_path):
    write_recipes(tmp_path / "recipes", zero=RECIPES["zero.yaml"] + "pause_s: 3.0\n")
    arguments = [sys.executable, "-u", "-c", PROGRAM, "run", "recipes/pipeline.yaml"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 also where the tests run in the background
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=-1, stderr=-1, text=True, preexec_fn=heard) as process:
        while not process.stdout.readline().startswith("zero: step 1/5"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command resumes" in errors and "Traceback" not in errors
    done = _program("run", "recipes/pipeline.yaml", cwd=tmp_path)
    assert done.returncode == 0 and "zero: resumes" in done.stdout


def test_on_a_terminal_there_is_a_live_table(tmp_path):
    write_recipes(tmp_path / "recipes")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "recipes/pipeline.yaml"],
        cwd=tmp_path,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "160"},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:  # the terminal is closed when the program ends
            pass
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "\x1b[" in text and "elapsed" in text and "evaluate" in text and "report: runs/toy/report.html" in text

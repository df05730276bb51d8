"""The evaluate stage, `r1 eval` and `r1 chat` on very small random checkpoints."""

import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from data.instructions import instruction_problem
from data.journal import Journal, read_journal
from data.problem_pool import ProblemsConfig
from data.problems import Problem
from pipeline import evaluate as stage
from pipeline.chat_command import chat
from pipeline.checkpoint_paths import label_checkpoints
from pipeline.checkpoint_pool import can_sync
from pipeline.cli import plain_errors
from pipeline.completions import GENERAL, completion_row, score_checkpoint
from pipeline.errors import RecipeError
from pipeline.eval_command import _asked, _work_folder, build_config, evaluate, find_suite
from pipeline.evaluate_config import EvaluateConfig, Prompting
from pipeline.statistics import cons_at_k, mean_ci, pass_at_1, pass_at_k
from rewards.canonical import canonical_answer
from rewards.combine import build_reward
from rewards.reward import Score, Verdict
from rollouts.config import GeneratorConfig, RolloutConfig
from rollouts.records import Completion
from training.stage import StageContext, StageError

CONFIG = EvaluateConfig(
    problems=ProblemsConfig(families=("chain_sum", "logic"), levels=(1,)),
    num_problems=8,
    general_problems=2,
    samples=2,
    samples_for={"base": 4},
    general_samples=3,
    rollout=RolloutConfig(max_new_tokens=6, temperature=0.6, top_p=0.95),
    generator=GeneratorConfig(replicas=1),
)

app = typer.Typer()
app.command()(plain_errors()(chat))
app.command("eval")(plain_errors()(evaluate))


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint, tmp_path_factory):
    """Two random models that differ in their weights and in the precision they are stored in, by label."""
    dev1 = tmp_path_factory.mktemp("checkpoints") / "dev1"
    base = dev1.with_name("base")
    weights = load_file(tiny_checkpoint / "model.safetensors")
    for folder, factor, dtype in ((base, 1.0, torch.bfloat16), (dev1, 0.5, torch.float32)):
        shutil.copytree(tiny_checkpoint, folder)
        save_file({name: factor * weight.to(dtype) for name, weight in weights.items()}, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {"base": base, "dev1": dev1}


def context_for(output, checkpoints, events=None):
    inputs = {f"checkpoints.{label}": path for label, path in checkpoints.items()}
    report = (lambda event: None) if events is None else events.append
    return StageContext(name="evaluate", inputs=inputs, output=output, seed=3, report=report)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, checkpoints, ray_session):
    """Output folder and progress events of one evaluation of both checkpoints."""
    output, events = tmp_path_factory.mktemp("evaluate"), []
    stage.run(CONFIG, context_for(output, checkpoints, events))
    return output, events


def rows_of(output):
    return pq.read_table(output / "completions.parquet").to_pylist()


def test_every_checkpoint_faces_the_same_problems_with_its_own_number_of_samples(evaluated):
    rows = rows_of(evaluated[0])
    problems = {label: {r["problem_id"] for r in rows if r["checkpoint"] == label} for label in ("base", "dev1")}
    assert problems["base"] == problems["dev1"] and len(problems["base"]) == 10
    counts = {label: sum(r["checkpoint"] == label for r in rows) for label in problems}
    assert counts == {"base": 8 * 4 + 2 * 3, "dev1": 8 * 2 + 2 * 3}
    assert {r["domain"] for r in rows} == {"chain_sum", "logic", GENERAL}
    assert all("held_out" in r["problem_id"] for r in rows)


def test_results_equal_the_statistics_of_the_completions(evaluated):
    output, _ = evaluated
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    for label, k in (("base", 4), ("dev1", 2)):
        rows = [r for r in rows_of(output) if r["checkpoint"] == label and r["domain"] != GENERAL]
        ids = sorted({r["problem_id"] for r in rows})
        groups = [[r for r in rows if r["problem_id"] == name] for name in ids]
        correct = np.array([[float(r["correct"]) for r in group] for group in groups])
        language = np.array([[r["language_consistency"] for r in group] for group in groups])
        overall = results["checkpoints"][label]["overall"]
        assert overall["n_problems"] == 8 and overall["k"] == k
        assert overall["pass@1"] == pass_at_1(correct).as_row()
        assert overall["pass@k"][str(k)] == pass_at_k(correct, k)
        assert overall["cons@k"] == cons_at_k([[r["answer"] for r in group] for group in groups], correct.tolist())
        assert overall["language_consistency"] == mean_ci(language).as_row()
        assert overall["length_mean"] == np.mean([r["length"] for r in rows])
        assert overall["truncated"] == sum(r["truncated"] for r in rows)
    assert results["suite"]["samples"] == {"base": 4, "dev1": 2}
    counts = json.loads((output / "stats.json").read_text(encoding="utf-8"))
    rows = rows_of(output)
    assert counts == {"problems": 10, "samples": 60, "tokens": sum(row["length"] for row in rows)}
    assert results["suite"]["prompting"]["base"] == {"template": "plain", "layout": "answer_tags"}


def test_general_instructions_are_scored_apart(evaluated):
    scores = json.loads((evaluated[0] / "results.json").read_text(encoding="utf-8"))["checkpoints"]["dev1"]
    assert scores["by_domain"][GENERAL]["n_problems"] == 2
    assert sum(row["n_problems"] for row in scores["by_language"].values()) == scores["overall"]["n_problems"] == 8
    general = [row for row in rows_of(evaluated[0]) if row["checkpoint"] == "dev1" and row["domain"] == GENERAL]
    assert scores["by_domain"][GENERAL]["utility"]["mean"] == pytest.approx(
        np.mean([row["utility"] for row in general])
    )
    assert scores["overall"]["utility"] is None


def test_progress_counts_problems_over_all_checkpoints(evaluated):
    events = evaluated[1]
    assert events[-1]["step"] == events[-1]["total_steps"] == 20
    assert [event["step"] for event in events] == sorted(event["step"] for event in events)
    assert [name for name, _ in itertools.groupby(e["phase"] for e in events if "phase" in e)] == ["base", "dev1"]


@pytest.mark.slow
def test_resume_keeps_finished_checkpoints_and_ends_with_the_same_files(evaluated, checkpoints, tmp_path):
    output, _ = evaluated
    again = tmp_path / "again"
    (again / "checkpoints").mkdir(parents=True)
    for name in ("0_base.parquet", "0_base.parquet.sha256"):
        shutil.copy(output / "checkpoints" / name, again / "checkpoints")
    events = []
    # dev1 now starts a pool of its own instead of taking over base's: the completions must not depend on that.
    stage.run(CONFIG, context_for(again, checkpoints, events))
    assert {event["phase"] for event in events if "phase" in event} == {"dev1"}
    for name in ("results.json", "completions.parquet", "stats.json"):
        assert (again / name).read_bytes() == (output / name).read_bytes()


@pytest.mark.slow
def test_problems_that_were_done_are_not_asked_again_and_the_files_are_the_same(
    evaluated, checkpoints, tmp_path, monkeypatch
):
    class PowerCut(BaseException):
        pass

    def cut(self, row, add=Journal.add):
        add(self, row)
        if sum(1 for _ in (tmp_path / "checkpoints" / "1_dev1.jsonl").open()) == 4:
            raise PowerCut

    output, _ = evaluated
    (tmp_path / "checkpoints").mkdir()
    for name in ("0_base.parquet", "0_base.parquet.sha256"):
        shutil.copy(output / "checkpoints" / name, tmp_path / "checkpoints")
    monkeypatch.setattr(Journal, "add", cut)
    with pytest.raises(PowerCut):
        stage.run(CONFIG, context_for(tmp_path, checkpoints))
    monkeypatch.undo()
    journal = tmp_path / "checkpoints" / "1_dev1.jsonl"
    kept = [line["problem"] for line in read_journal(journal)]
    journal.write_bytes(journal.read_bytes()[:-9])  # the last line was being written
    asked, requests = [], stage._Evaluator._sampled
    monkeypatch.setattr(
        stage._Evaluator,
        "_sampled",
        lambda self, folder, some, label: asked.extend(some) or requests(self, folder, some, label),
    )
    stage.run(CONFIG, context_for(tmp_path, checkpoints))
    assert len(asked) == 10 - 3 and not {request.key for request in asked} & set(kept[:3])
    for name in ("results.json", "completions.parquet", "stats.json"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()
    assert not journal.exists()


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-9], lambda data: data[:-9] + b"?" + data[-8:]]
)
def test_a_damaged_file_of_a_finished_checkpoint_is_reported_and_made_again(
    evaluated, checkpoints, tmp_path, caplog, monkeypatch, damage
):
    output, again = evaluated[0], tmp_path / "again"
    shutil.copytree(output, again)
    file = again / "checkpoints" / "1_dev1.parquet"
    file.write_bytes(damage(file.read_bytes()))
    rows = [row for row in rows_of(output) if row["checkpoint"] == "dev1"]
    asked = []
    monkeypatch.setattr(stage._Evaluator, "evaluate", lambda self, label, *_: asked.append(label) or rows)
    with caplog.at_level(logging.WARNING):
        stage.run(CONFIG, context_for(again, checkpoints))
    assert asked == ["dev1"]
    assert caplog.messages == [f"{file} is damaged (content differs from its checksum); 'dev1' is evaluated again"]
    for name in ("results.json", "completions.parquet", "stats.json"):
        assert (again / name).read_bytes() == (output / name).read_bytes()


def test_only_weights_of_the_same_model_are_synced(checkpoints, tmp_path):
    base, other = checkpoints["base"], tmp_path / "other"
    assert can_sync(base, checkpoints["dev1"])
    shutil.copytree(base, other)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}), encoding="utf-8")
    assert not can_sync(base, other) and can_sync(other, other)
    shutil.copy(base / "config.json", other)
    assert can_sync(base, other)
    (other / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert not can_sync(base, other)


def test_a_stage_without_checkpoints_or_with_an_unknown_one_says_so(tmp_path, checkpoints):
    with pytest.raises(StageError, match="no checkpoints"):
        stage.run(CONFIG, context_for(tmp_path, {}))
    config = CONFIG.model_copy(update={"samples_for": {"bsae": 4}})
    with pytest.raises(StageError, match=r"'bsae'; did you mean 'base'"):
        stage.run(config, context_for(tmp_path, checkpoints))


def test_a_prompt_too_long_for_the_model_is_one_sentence(tmp_path, checkpoints, ray_session, monkeypatch):
    class Pool:
        def __init__(self, config):
            self.close = lambda: None

        def at(self, folder):
            return self

        def stream(self, requests, params):
            raise ValueError("prompt 'p' has 700 tokens; this model takes 1 to 127")

    monkeypatch.setattr(stage, "CheckpointPool", Pool)
    with pytest.raises(StageError, match=r"evaluating .*base: prompt 'p' has 700 tokens"):
        stage.run(CONFIG, context_for(tmp_path, {"base": checkpoints["base"]}))
    assert not (tmp_path / "results.json").exists()


def test_held_out_problems_depend_on_their_own_seed_alone():
    first = stage.held_out_problems(CONFIG)
    assert first == stage.held_out_problems(CONFIG)
    moved = stage.held_out_problems(CONFIG.model_copy(update={"problem_seed": 1}))
    assert [p.question for p in first] != [p.question for p in moved]


def test_a_short_file_is_used_up_once(tmp_path):
    path = tmp_path / "problems.jsonl"
    lines = [json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) for i in range(3)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {"path": str(path), "row_schema": "columns"}
    config = EvaluateConfig.model_validate({"problems": {"sources": [source]}, "general_problems": 0})
    assert sorted(p.ground_truth for p in stage.held_out_problems(config)) == ["1", "2", "3"]


def problem(checker, truth="6"):
    messages = ({"role": "user", "content": "?"},)
    return Problem(id="p", messages=messages, ground_truth=truth, checker=checker, domain="d", language="en")


@pytest.mark.parametrize(
    ("checker", "left", "right"),
    [
        ("math", "<answer>0.50</answer>", "<think>a</think>\nSo \\boxed{\\frac{1}{2}}."),
        ("list", "<answer>[3, 5]</answer>", "\\boxed{3 < 5}"),
        ("choice", "<answer>Yes</answer>", "\\boxed{真}"),
        ("countdown", "<answer>(1 + 2)*3</answer>", "\\boxed{(1+2)*3 = 9}"),
    ],
)
def test_equal_answers_have_one_spelling(checker, left, right):
    answer = canonical_answer(problem(checker), left)
    assert answer and answer == canonical_answer(problem(checker), right)


@pytest.mark.parametrize("checker", ["math", "list", "choice", "countdown"])
def test_no_single_answer_is_none_and_an_unreadable_one_is_kept(checker):
    assert canonical_answer(problem(checker), "<think>6") is None
    assert canonical_answer(problem(checker), "<answer>1</answer> \\boxed{2}") is None
    assert canonical_answer(problem(checker), "<answer>no idea</answer>")


def test_the_answer_to_an_instruction_is_its_final_part():
    instruction = instruction_problem(0, "held_out", "en", 0)
    assert canonical_answer(instruction, "<think>hm</think>\nA red fox.") == "A red fox."
    assert canonical_answer(instruction, "<think>hm") is None


def test_an_unscorable_completion_has_no_values_and_leaves_every_mean():
    made = Completion(
        token_ids=np.arange(5, dtype=np.int32),
        sampling_logprobs=np.zeros(5, np.float32),
        policy_versions=np.zeros(5, np.int32),
        finish_reason="length",
        text="<think>a b</think> <answer>6</answer>",
    )
    parts = {"accuracy": 1.0, "format": 1.0, "language": 0.5}
    good = completion_row("r1", problem("math"), 0, made, Score(verdict=Verdict.PASS, value=2.5, parts=parts))
    bad = completion_row("r1", replace(problem("math"), id="q"), 0, made, Score.error("the grader died"))
    assert (good["correct"], good["format"], good["language_consistency"]) == (True, True, 0.5)
    assert (good["answer"], good["length"], good["truncated"]) == ("6", 5, True)
    assert bad["correct"] is bad["format"] is bad["language_consistency"] is None
    overall = score_checkpoint([good, bad])["overall"]
    assert overall["pass@1"]["mean"] == 1.0 and overall["unscorable"] == 1


def test_safety_prompts_are_no_part_of_the_headline_scores():
    problems = CONFIG.problems.model_copy(update={"safety_share": 1.0})
    asked = stage.held_out_problems(CONFIG.model_copy(update={"problems": problems}))
    passed = Score(verdict=Verdict.PASS, value=3.0, parts=dict.fromkeys(("accuracy", "format", "language"), 1.0))
    scores = score_checkpoint([completion_row("r1", problem, 0, completed("No."), passed) for problem in asked])
    assert scores["overall"]["n_problems"] == 8 and scores["by_domain"]["safety"]["n_problems"] == 2
    assert scores["by_domain"]["safety"]["utility"]["mean"] > 0


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match=r"prompting\.<checkpoint>\.template"):
        EvaluateConfig(rollout=RolloutConfig(template="plain"))
    with pytest.raises(ValueError, match="general_problems"):
        EvaluateConfig(problems=ProblemsConfig(instruction_share=0.5))
    assert EvaluateConfig(prompting={}).prompting_of("r1") == Prompting(template="chat", layout="summary")


# --- r1 eval ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eval_prints_a_table_and_writes_both_files(checkpoints, tmp_path, ray_session):
    output = tmp_path / "scores.json"
    arguments = ["eval", str(checkpoints["base"]), "--problems", "4", "--samples", "2", "--template", "plain"]
    settings = ["--output", str(output), "general_problems=0", "rollout.max_new_tokens=4", "generator.replicas=1"]
    result = CliRunner().invoke(app, [*arguments, *settings])
    assert result.exit_code == 0, result.output
    assert "pass@1" in result.output and "base" in result.output and "[0.0, " in result.output
    scores = json.loads(output.read_text(encoding="utf-8"))
    assert scores["checkpoints"]["base"]["overall"]["n_problems"] == 4
    assert scores["suite"]["prompting"] == {"base": {"template": "plain", "layout": "answer_tags"}}
    assert pq.read_table(output.with_suffix(".parquet")).num_rows == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.parquet"]
    again = tmp_path / "again.json"
    seeded = ["--output", str(again), "--seed", "9", *settings[2:]]
    assert CliRunner().invoke(app, [*arguments, *seeded]).exit_code == 0
    result = CliRunner().invoke(app, ["eval", str(output), str(again), "--compare"])
    assert result.exit_code == 0, result.output
    assert "again:base" in result.output and "paired by problem" in result.output


@pytest.mark.slow
def test_an_eval_that_is_killed_goes_on_by_the_same_command(checkpoints, tmp_path):
    """As a user has it: a process of its own, killed once problems are done, and started again."""
    output, base = tmp_path / "scores.json", checkpoints["base"]
    command = [sys.executable, "-m", "pipeline.cli", "eval", str(base), "--problems", "6", "--samples", "2"]
    settings = ["--template=plain", f"--output={output}", "general_problems=0", "rollout.max_new_tokens=4"]
    settings += ["generator.replicas=1"]
    process = subprocess.Popen([*command, *settings], start_new_session=True, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    try:
        while not (done := [path for path in tmp_path.glob(".*/checkpoints/*.jsonl") if path.stat().st_size]):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not output.exists()
    (journal,) = done
    first = journal.read_bytes()
    again = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.parquet"]
    rows = pq.read_table(output.with_suffix(".parquet")).to_pylist()
    assert len(rows) == 12 and json.loads(first.splitlines()[0])["rows"][0] in rows


def test_what_an_answer_depends_on_names_the_folder_that_is_kept(checkpoints, tmp_path):
    config, policy = EvaluateConfig(), {"base": tmp_path / "policy"}
    shutil.copytree(checkpoints["base"], policy["base"])
    first = _asked(config, policy, 0)
    assert first == _asked(config, policy, 0)
    changed = {first, _asked(config, policy, 1), _asked(EvaluateConfig(samples=5), policy, 0)}
    os.utime(policy["base"] / "model.safetensors", ns=(1, 1))
    assert len(changed | {_asked(config, policy, 0)}) == 4


@pytest.mark.parametrize("started", [True, False])
def test_a_cut_leaves_the_work_folder_if_it_holds_work(tmp_path, capsys, started):
    output = tmp_path / "scores.json"
    with pytest.raises(KeyboardInterrupt), _work_folder(output, "abc") as folder:
        if started:
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "0_base.jsonl").write_text("{}\n")
        raise KeyboardInterrupt
    assert ("the same command goes on from there" in capsys.readouterr().err) == started
    assert folder.exists() == started
    with _work_folder(output, "abc") as again, pytest.raises(RecipeError, match="choose another folder with --output"):
        assert again == folder
        with _work_folder(output, "abc"):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["scores.parquet", "scores", "folder.json"])
def test_an_output_that_could_not_be_written_is_refused_first(checkpoints, tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    result = CliRunner().invoke(app, ["eval", str(checkpoints["base"]), "--output", str(tmp_path / name)])
    assert result.exit_code == 2 and "name a file that ends in .json" in result.output


@pytest.mark.parametrize("command", ["eval", "chat"])
def test_a_bad_path_is_one_sentence_and_exit_code_2(command, tmp_path):
    missing = CliRunner().invoke(app, [command, str(tmp_path / "nowhere")])
    assert missing.exit_code == 2 and "there is no such checkpoint folder" in missing.stderr
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    empty = CliRunner().invoke(app, [command, str(tmp_path)])
    assert empty.exit_code == 2 and "it has no weights" in empty.stderr


@pytest.mark.parametrize("command", ["eval", "chat"])
@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("model.safetensors", lambda data: data[:-5], "model.safetensors is cut off"),
        ("config.json", lambda data: data.replace(b'"deepseek_v3"', b'"deepseek_v33"'), "did you mean 'deepseek_v3'?"),
        ("tokenizer.json", lambda data: data[:50], "tokenizer.json is not valid JSON"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_is_one_sentence_before_anything_starts(
    checkpoints, tmp_path, monkeypatch, command, file, damage, expected
):
    shutil.copytree(checkpoints["base"], tmp_path / "base")
    (tmp_path / "base" / file).write_bytes(damage((tmp_path / "base" / file).read_bytes()))
    monkeypatch.setattr(stage, "run", None)
    monkeypatch.setattr("rollouts.transformers_generator.TransformersGenerator", None)
    result = CliRunner().invoke(app, [command, str(tmp_path / "base")])
    [sentence] = result.stderr.splitlines()
    assert result.exit_code == 2 and expected in sentence and result.stdout == ""


def test_bad_settings_are_found_before_anything_starts(checkpoints):
    result = CliRunner().invoke(app, ["eval", str(checkpoints["base"]), "rolout.top_p=0.9"])
    assert result.exit_code == 2 and "did you mean 'rollout'" in result.stderr
    result = CliRunner().invoke(app, ["eval", str(checkpoints["base"]), "--problems", "0"])
    assert result.exit_code == 2 and "num_problems of evaluate must be at least 1" in result.stderr
    result = CliRunner().invoke(app, ["eval", "problem_seed=1"])
    assert result.exit_code == 2 and "name at least one checkpoint" in result.stderr


def test_bad_data_and_a_fault_while_evaluating_are_one_sentence(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", str(checkpoints["base"])]
    result = CliRunner().invoke(app, [*arguments, "problems.sources=[{path: nowhere.jsonl}]"])
    assert result.exit_code == 2 and "problems.sources[0].path: there is no nowhere.jsonl" in result.stderr
    assert "Traceback" not in result.output

    def loses_a_process(config, context):
        raise RuntimeError("the raylet died")

    monkeypatch.setattr(stage, "run", loses_a_process)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "the evaluation failed: RuntimeError: the raylet died" in result.stderr
    assert "Traceback" not in result.output
    assert "loses_a_process" in (tmp_path / ".r1_eval_error.log").read_text()


def test_settings_and_options_make_one_config():
    config = build_config(["rollout.top_p=0.9", "samples=3"], {"samples": 5})
    assert (config.rollout.top_p, config.rollout.temperature, config.samples) == (0.9, 0.6, 5)
    with pytest.raises(RecipeError):
        build_config(["samples=many"], {})


@pytest.mark.parametrize(
    "suite", ["aime_2024", "gpqa_diamond", "gsm8k", "ifeval", "live_code_bench", "math_500", "mmlu"]
)
def test_shipped_suites_are_valid_and_as_the_paper_samples(suite):
    config = build_config([], {}, find_suite(suite))
    assert config.problems.sources and config.general_problems == 0
    assert (config.rollout.temperature, config.rollout.top_p, config.rollout.max_new_tokens) == (0.6, 0.95, 32768)
    assert config.samples == {"aime_2024": 64, "gpqa_diamond": 64, "live_code_bench": 8, "math_500": 16}.get(suite, 4)


def test_a_suite_is_a_file_under_settings_and_options(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"question": "How many?", "answer": "#### 3"}\n')
    suite = tmp_path / "mine.yaml"
    suite.write_text("stage: evaluate\nproblems: {sources: [{path: ./mine.jsonl}]}\nsamples: 8\nnum_problems: 1\n")
    config = build_config(["samples=3"], {}, find_suite(str(suite)))
    assert config.samples == 3 and config.problems.sources[0].path == str(tmp_path / "mine.jsonl")
    assert next(problem.ground_truth for problem in stage.held_out_problems(config)) == "3"
    for text, said in (
        ("stage: grpo\n", "is no suite: it has no `stage: evaluate`"),
        ("stage: evaluate\nsample: 2\n", "did you mean 'samples'"),
        ("stage: evaluate\nproblems: {sources: [{path: ./mien.jsonl}]}\n", "there is no .*mien.jsonl; did you mean"),
    ):
        suite.write_text(text)
        with pytest.raises(RecipeError, match=said):
            build_config([], {}, suite)
    with pytest.raises(RecipeError, match=r"there is no maths_500; shipped are .*did you mean 'math_500'"):
        find_suite("maths_500")
    with pytest.raises(RecipeError) as caught:
        find_suite("xyz")
    assert str(caught.value).count("math_500") == 1


def completed(text: str) -> Completion:
    return Completion(
        token_ids=np.array([1], np.int32), sampling_logprobs=np.zeros(1, np.float32),
        policy_versions=np.zeros(1, np.int32),
        finish_reason="stop", text=text,
    )  # fmt: skip


def test_ifeval_of_a_local_file_has_its_four_accuracies(tmp_path):
    no_comma, words = {"relation": None, "num_words": None}, {"relation": "at least", "num_words": 3}
    rows = [
        {"key": 1, "prompt": "Greet.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [no_comma]},
        {"key": 2, "prompt": "Greet us.", "kwargs": [no_comma, words],
         "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"]},
    ]  # fmt: skip
    (tmp_path / "ifeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_config([f"problems.sources=[{{path: {tmp_path / 'ifeval.jsonl'}}}]"], {}, find_suite("ifeval"))
    first, second = sorted(stage.held_out_problems(config), key=lambda problem: problem.id)
    assert (first.id, first.domain, first.question) == ("ifeval-1", "instruction", "Greet.")
    reward = build_reward(stage.reward_specs("summary"))
    answered = [(first, "Hello"), (first, "Sure, here:\nHello"), (second, "Hello to you"), (second, "Hello, you")]
    done = []
    for number, (problem, answer) in enumerate(answered):
        completion = completed(f"<think>\nOne, two.\n</think>\n\n{answer}")
        score = reward(problem, completion.text)
        done.append(completion_row("a", problem, number, completion, score))
    overall = score_checkpoint(done)["overall"]
    assert overall["pass@1"]["mean"] == 0.5
    assert overall["instructions"] == {"prompt_loose": 0.75, "instruction_strict": 3 / 6, "instruction_loose": 4 / 6}
    assert score_checkpoint([row | {"instructions": None} for row in done])["overall"]["instructions"] is None


def test_live_code_bench_takes_options_of_its_judge_and_refuses_others():
    config = build_config(["code.workers=3"], {}, find_suite("live_code_bench"))
    specs = stage.reward_specs("summary", ["live_code_bench"], config.code)
    assert specs[1].options == {"workers": 3} and specs[0].except_domains == ["live_code_bench"]
    with pytest.raises(RecipeError, match=r"worker.*Did you mean workers"):
        build_config(["code.worker=3"], {}, find_suite("live_code_bench"))


def test_a_ground_truth_of_megabytes_is_cut_in_the_rows():
    problem = Problem(
        id="p", messages=({"role": "user", "content": "?"},), ground_truth="x" * 100_000, checker="code",
        domain="code", language="en",
    )  # fmt: skip
    row = completion_row("a", problem, 0, completed("y"), Score.error("no"))
    assert len(row["ground_truth"]) < 11_000 and row["ground_truth"].endswith("x... (100000 characters)")


def test_labels_are_as_short_as_they_can_be(tmp_path):
    a, b = tmp_path / "one" / "zero", tmp_path / "two" / "zero"
    assert list(label_checkpoints([a, tmp_path / "base"])) == ["zero", "base"]
    assert label_checkpoints([a, b, a]) == {"one/zero": a, "two/zero": b}


# --- r1 chat ---------------------------------------------------------------------------------------------------------


def test_chat_answers_each_piped_line_the_same_way_every_time(checkpoints):
    arguments = ["chat", str(checkpoints["base"]), "--max-new-tokens", "5"]
    result = CliRunner().invoke(app, arguments, input="What is 3 + 4?\n\n计算 3 + 8\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("(cut off after 5 tokens)") == 2
    assert result.stdout == CliRunner().invoke(app, arguments, input="What is 3 + 4?\n\n计算 3 + 8\n").stdout


def test_chat_says_in_one_sentence_that_a_checkpoint_does_not_load(checkpoints, tmp_path, monkeypatch):
    """Though a look at its headers finds nothing: that is turned off here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("models.checkpoint_check.weights_fault", lambda folder: None)
    shutil.copytree(checkpoints["base"], "base")
    config = json.loads(Path("base/config.json").read_text(encoding="utf-8"))
    Path("base/config.json").write_text(json.dumps(config | {"hidden_size": 128}), encoding="utf-8")
    result = CliRunner().invoke(app, ["chat", "base"])
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith("base cannot be loaded: RuntimeError: ")
    assert "(traceback in .r1_chat_error.log)" in result.stderr and Path(".r1_chat_error.log").is_file()


def test_chat_goes_on_after_a_question_too_long(checkpoints):
    arguments = ["chat", str(checkpoints["base"]), "--template", "plain", "--max-new-tokens", "2"]
    result = CliRunner().invoke(app, arguments, input="1 + " * 400 + "\nshort\n")
    assert result.exit_code == 0
    assert "question 1" in result.stderr and "(cut off after 2 tokens)" in result.stdout


def test_chat_shows_reasoning_and_answer_without_control_characters(capsys):
    from rich.console import Console

    from pipeline.chat_command import _print_completion

    _print_completion(Console(), "<think>\nFirst\x1b[2J [bold]add[/bold].\n</think>\n<answer>7\x07</answer>")
    assert capsys.readouterr().out == "First[2J [bold]add[/bold].\n7\n"

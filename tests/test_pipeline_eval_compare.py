"""`r1 eval --compare` on result files."""

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import main
from pipeline.completions import load_rows, score_checkpoint, write_rows
from pipeline.errors import RecipeError
from pipeline.eval_compare import compare, read_results


def made_up_results(folder: Path, name: str, right: list[int], **suite) -> Path:
    """Result files as `r1 eval --output` writes them: two completions of each problem, of which so many are right."""
    rows = [
        {"checkpoint": "base", "problem_id": f"p{number}", "domain": "chain_sum", "language": "en", "question": "?",
         "ground_truth": "1", "sample": sample, "completion": "1", "answer": "1", "length": 1, "truncated": False,
         "verdict": "pass" if sample < count else "fail", "correct": sample < count, "format": True}
        for number, count in enumerate(right)
        for sample in range(2)
    ]  # fmt: skip
    write_rows(folder / f"{name}.parquet", rows)
    asked = {"problems": len(right), "general_problems": 0, "samples": {"base": 2}, "temperature": 0.6, "top_p": 0.95}
    asked |= suite
    scores = {"base": score_checkpoint(load_rows(folder / f"{name}.parquet"))}
    (folder / f"{name}.json").write_text(json.dumps({"suite": asked, "checkpoints": scores}), encoding="utf-8")
    return folder / f"{name}.json"


def test_result_files_are_compared_problem_by_problem(tmp_path):
    before = made_up_results(tmp_path, "before", [0, 0, 0, 0, 1, 2, 2, 0])
    after = made_up_results(tmp_path, "after", [2, 2, 2, 1, 1, 2, 1, 0])
    _, rows = read_results([before, after])
    (found,) = compare(rows)
    assert (found["checkpoint"], found["against"], found["n_problems"]) == ("after:base", "base", 8)
    assert found["difference"]["mean"] == pytest.approx(3 / 8) and (found["better"], found["worse"]) == (4, 1)
    moved = [1.0, 1.0, 1.0, 0.5, -0.5]
    sums = [sum(s * m for s, m in zip(signs, moved, strict=True)) for signs in itertools.product((1, -1), repeat=5)]
    assert found["p"] == sum(abs(total) >= sum(moved) for total in sums) / 32
    result = CliRunner().invoke(main, ["eval", str(before), str(after), "--compare"])
    assert result.exit_code == 0 and "+37.5 [" in result.output and "4, 1" in result.output


def test_what_cannot_be_compared_is_one_sentence(tmp_path, tiny_checkpoint):
    one, other = made_up_results(tmp_path, "one", [1, 2]), made_up_results(tmp_path, "other", [1, 2], temperature=1.0)
    here, there = (made_up_results(tmp_path, name, [1, 2], problems_sha256=name) for name in "ab")
    read_results([one, here])  # one is from before it was written down
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    base = str(tiny_checkpoint)
    for arguments, said in (
        ([str(one), str(other), "--compare"], "temperature is 1.0, and 0.6 in"),
        ([str(here), str(there), "--compare"], "problems_sha256 is b, and a in"),
        ([str(one), "--compare"], "--compare: name two or more"),
        ([str(one)], "is a file; name checkpoint folders"),
        ([str(one), base, "--compare"], "not both"),
        ([str(one), str(one), "--compare", "--suite", "gsm8k"], "files take no settings"),
        ([str(one), str(tmp_path / "notes.json"), "--compare"], "is no result of"),
    ):
        result = CliRunner().invoke(main, ["eval", *arguments])
        assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
    one.with_suffix(".parquet").unlink()
    result = CliRunner().invoke(main, ["eval", str(one), str(other), "--compare"])
    assert result.exit_code == 2 and "are missing or cannot be read" in " ".join(result.output.split())


def test_checkpoints_of_one_name_stay_apart_and_need_problems_in_common(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    files = [made_up_results(tmp_path / name, "scores", [0, right]) for right, name in enumerate("abc")]
    results, rows = read_results(files)
    assert list(results["checkpoints"]) == ["base", "scores:base", f"{files[2]}:base"]
    assert [found["difference"]["mean"] for found in compare(rows)] == [0.25, 0.5]
    others = [{**row, "checkpoint": "other", "problem_id": f"q{row['problem_id']}"} for row in rows[:4]]
    with pytest.raises(RecipeError, match="other and base have no reasoning problem in common"):
        compare([*rows[:4], *others])

"""docs/rewards.md is true: its reward, its test, its files and its commands, exactly as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.combine import KNOWN_REWARDS
from rewards.grader_process import GraderPool
from rewards.instruction_kinds import KINDS
from rewards.math_answer import grade_math
from rewards.reward import Verdict

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(
    r"^\$ (.*)\n((?:[^$`].*\n)*)", "".join(re.findall(r"^```console\n(.*?)^```$", PAGE, re.S | re.M)), re.M
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    for name, text in FILES:
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(folder)])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_example_test_passes(folder):
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_dates.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_commands_print_what_the_page_says(folder, command, output):
    program, *arguments = command.split()
    assert program == "r1"
    done = run(folder, "-m", "pipeline.cli", *arguments)
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


def test_every_reward_and_named_check_exists():
    assert set(KNOWN_REWARDS) == set(re.findall(r"^\| `(rewards\.\w+:\w+)`", PAGE, re.MULTILINE))
    assert {"max_words", "n_sentences", "no_commas", "json_schema"} <= set(KINDS)


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("7425", "7 425", True),
        ("1/3", "0.333333", True),
        ("1/3", "0.33", False),
        (r"\sqrt{2}", "1.414214", True),
        ("1.234", "1,234", False),
        (r"35\%", "35", True),
        ("5", r"5\%", False),
        ("3000000", r"3 \text{ million}", True),
        ("5", "101_2", False),
        ("42", "42_{10}", True),
        (r"5\text{ m/s}", r"5\text{ m s}^{-1}", True),
        (r"5\text{ m/s}", r"5\text{ s/m}", False),
        (r"\pi/2", r"90^\circ", True),
        ("3.5", r"3 \text{ and a half}", True),
        ("5", r"5 \text{ point five}", False),
        ("3", r"3 \text{ halves}", False),
        ("C", "Option C", True),
        ("C", "C. D", False),
        ("no solution", r"\emptyset", True),
        ("x=1, y=2", "(1, 2)", True),
        ("1:2", "2:4", True),
        (r"4, 2", r"3 \pm 1", True),
        ("(2,5)", "2<x<5", True),
        ("x=5", "y=5", False),
        ("4, 10, -2", "10, 4, -2", True),
        ("(4, 10, -2)", "(10, 4, -2)", False),
    ],
)
def test_rules_of_the_page(gold, answer, equal):
    with GraderPool() as pool:
        assert (grade_math(gold, answer, pool).verdict is Verdict.PASS) == equal

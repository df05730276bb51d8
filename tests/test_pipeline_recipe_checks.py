"""Settings that are well-formed but cannot work are refused when the recipe is read, with their place."""

import json

import pytest

from pipeline.config import load
from pipeline.errors import RecipeError
from tests.toy_stages import write_checkpoint

CHAIN = "name: chain\nstages:\n  stage: {recipe: stage.yaml, inputs: {INPUTS}}\n"
FAULTS = {
    "problem file": (
        "stage: grpo\nproblems:\n  sources:\n    - {path: ./mine/trian.jsonl}\n",
        ["stage.yaml:4:", "problems.sources[0].path", "mine/trian.jsonl", "did you mean 'train.jsonl'?"],
    ),
    "problem file by its suffix": (
        "stage: grpo\nproblems: {sources: [{path: gsm8k.parquet}]}\n",
        ["stage.yaml:2:", "gsm8k.parquet"],
    ),
    "held-out file": (
        "stage: cold_start_data\nheld_out_sources: [{path: /nowhere/aime.jsonl}]\n",
        ["stage.yaml:2:", "held_out_sources[0].path: there is no /nowhere/aime.jsonl"],
    ),
    "listed conversations": (
        "stage: cold_start_data\ndataset: mine/conversations\n",
        ["stage.yaml:2:", "dataset names the file", "does not exist"],
    ),
    "too long": (
        "stage: grpo\nrollout:\n  max_new_tokens: 512\n",
        ["stage.yaml:3:", "rollout.max_new_tokens of stage 'stage' is 512", "takes 512 tokens", "set less than 512"],
    ),
    "reward twice": (
        "stage: grpo\nrewards:\n  - {use: 'rewards.accuracy:Accuracy'}\n  - {use: 'rewards.accuracy:Accuracy'}\n",
        ["stage.yaml:4:", "rewards[1]: rewards.accuracy:Accuracy is listed twice", "keep one"],
    ),
    "impossible domain": (
        "stage: grpo\nrewards: [{use: 'rewards.accuracy:Accuracy', domains: [chain_sun]}]\n",
        ["stage.yaml:2:", "rewards[0].domains", "'chain_sun'", "did you mean 'chain_sum'?"],
    ),
    "general without general problems": (
        "stage: grpo\nrewards: [{use: 'rewards.accuracy:Accuracy', domains: [general]}]\n",
        ["stage.yaml:2:", "while problems.instruction_share is 0"],
    ),
    "language": (
        "stage: grpo\nrewards: [{use: 'rewards.language:LanguageConsistency', options: {language: zn}}]\n",
        ["stage.yaml:2:", "rewards[0].options.language: 'zn' is not supported; use one of en, zh"],
    ),
    "samples_for": (
        "stage: evaluate\nrollout: {max_new_tokens: 64}\nsamples_for:\n  bass: 16\n",
        ["stage.yaml:4:", "samples_for: stage 'stage' has no checkpoint 'bass'", "did you mean 'base'?"],
    ),
    "prompting": (
        "stage: evaluate\nrollout: {max_new_tokens: 64}\nprompting: {default: {}, bsae: {template: plain}}\n",
        ["stage.yaml:3:", "prompting: stage 'stage' has no checkpoint 'bsae'", "did you mean 'base'?"],
    ),
}


def _load(folder, recipe, monkeypatch):
    monkeypatch.chdir(folder)
    write_checkpoint(folder / "start", b"abc")
    (folder / "start" / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    if "max_new_tokens" not in recipe:
        recipe += "rollout: {max_new_tokens: 64}\n"
    (folder / "stage.yaml").write_text(recipe)
    inputs = "checkpoints: {base: ./start}" if "evaluate" in recipe else "policy: ./start"
    (folder / "pipeline.yaml").write_text(CHAIN.replace("INPUTS", inputs))
    return load(folder / "pipeline.yaml")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_setting_that_cannot_work_is_one_sentence_with_its_place(tmp_path, monkeypatch, fault):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text("{}\n")
    recipe, expected = FAULTS[fault]
    with pytest.raises(RecipeError) as caught:
        _load(tmp_path, recipe, monkeypatch)
    [problem] = caught.value.problems
    for part in expected:
        assert part in problem


@pytest.mark.parametrize(
    "recipe",
    [
        "stage: grpo\nproblems: {sources: [{path: openai/gsm8k}, {path: mine.jsonl}]}\n",
        "stage: grpo\nproblems: {sources: [{path: mine.jsonl}]}\n"
        "rewards: [{use: 'rewards.accuracy:Accuracy', domains: [anything]}]\n",
        "stage: grpo\nproblems: {instruction_share: 0.2}\n"
        "rewards: [{use: 'rewards.accuracy:Accuracy', domains: [general, countdown]}]\n",
        "stage: grpo\nrollout: {max_new_tokens: 511}\n",
        "stage: evaluate\nrollout: {max_new_tokens: 64}\nsamples_for: {base: 16}\nprompting: {default: {}, base: {}}\n",
        "stage: evaluate\n",
    ],
)
def test_what_can_work_is_accepted(tmp_path, monkeypatch, recipe):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    assert list(_load(tmp_path, recipe, monkeypatch).stages) == ["stage"]


def _source_of(pipeline, stage="stage"):
    return pipeline.stages[stage].record["problems"]["sources"][0]["path"]


def test_problem_files_start_at_the_recipe_and_count_by_their_content(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "rows").mkdir(parents=True)
    file = tmp_path / "recipes" / "rows" / "train.jsonl"
    records = {}
    for written in ("rows/train.jsonl", "rows"):
        for content in ('{"a": 1}\n', '{"a": 2}\n'):
            file.write_text(content)
            recipe = f"stage: grpo\nproblems: {{sources: [{{path: {written}}}]}}\n"
            pipeline = _load(tmp_path / "recipes", recipe, monkeypatch)
            monkeypatch.chdir(tmp_path)
            assert pipeline.stages["stage"].config.problems.sources[0].path.endswith(f"recipes/{written}")
            records[written, content] = _source_of(pipeline)
    assert len(set(records.values())) == 4
    assert all(record.startswith(("train.jsonl sha256:", "rows sha256:")) for record in records.values())


def test_the_name_of_a_hub_stays_as_it_is(tmp_path, monkeypatch):
    pipeline = _load(tmp_path, "stage: grpo\nproblems: {sources: [{path: openai/gsm8k}]}\n", monkeypatch)
    assert _source_of(pipeline) == "openai/gsm8k"

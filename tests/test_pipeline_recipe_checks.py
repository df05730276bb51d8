"""Settings that are well-formed but cannot work are refused when the recipe is read, with their place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.errors import RecipeError
from tests.toy_stages import write_checkpoint

ROOT = Path(__file__).parents[1]
ROW = '{"question": "How many?", "answer": "#### 3"}\n'
TALK = '{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}\n'
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
    "problem file of another layout": (
        "stage: grpo\nproblems: {sources: [{path: ./mine/odd.jsonl}]}\n",
        ["stage.yaml:2:", "problems.sources[0].path: ", "mine/odd.jsonl line 2: the row fits no known schema"],
    ),
    "problem file that is no JSON": (
        "stage: cold_start_data\nheld_out_sources: [{path: ./mine/text.jsonl}]\n",
        ["stage.yaml:2:", "held_out_sources[0].path: ", "mine/text.jsonl line 1: not valid UTF-8 JSON"],
    ),
    "problem file that is no parquet": (
        "stage: grpo\nproblems: {sources: [{path: ./mine/text.parquet}]}\n",
        ["stage.yaml:2:", "mine/text.parquet: not a readable parquet file"],
    ),
    "problem file without rows": (
        "stage: grpo\nproblems: {sources: [{path: ./mine/none.jsonl}]}\n",
        ["stage.yaml:2:", "mine/none.jsonl: there are no rows"],
    ),
    "problem file of no known type": (
        "stage: grpo\nproblems: {sources: [{path: ./stage.yaml}]}\n",
        ["stage.yaml:2:", "stage.yaml: unknown file type; expected .jsonl, .jsonl.gz, .parquet"],
    ),
    "conversations of no known type": (
        "stage: cold_start_data\ndataset: stage.yaml\n",
        ["stage.yaml:2:", "dataset: stage.yaml is of an unknown file type; expected .jsonl, .jsonl.gz, .parquet"],
    ),
    "conversations of another layout": (
        "stage: cold_start_data\ndataset: mine/pairs.jsonl\n",
        [
            "stage.yaml:2:",
            "dataset: ",
            "mine/pairs.jsonl line 1: messages are missing or malformed; expected a list of",
        ],
    ),
    "general conversations of another layout": (
        "stage: rejection_sampling\ngeneral_dataset: mine/pairs.jsonl\n",
        ["stage.yaml:2:", "general_dataset: ", "mine/pairs.jsonl line 1: messages are missing or malformed"],
    ),
    "conversations without rows": (
        "stage: rejection_sampling\ngeneral_dataset: mine/none.jsonl\n",
        ["stage.yaml:2:", "general_dataset: ", "mine/none.jsonl: there are no rows"],
    ),
    "checker that no grader knows": (
        "stage: grpo\nproblems:\n  sources:\n    - {path: mine/train.jsonl, checker: maths}\n",
        ["stage.yaml:4:", "problems.sources[0].checker: there is no checker 'maths'; did you mean 'math'?"],
    ),
    "checker of held-out problems": (
        "stage: evaluate\nproblems: {sources: [{path: mine/train.jsonl, checker: optoins}]}\n",
        ["stage.yaml:2:", "problems.sources[0].checker: there is no checker 'optoins'; did you mean 'options'?"],
    ),
    "no reward": (
        "stage: grpo\nrewards: []\n",
        ["stage.yaml:2:", "rewards: list at least one reward, e.g. {use: rewards.accuracy:Accuracy}"],
    ),
    "endless learning rate": (
        "stage: grpo\noptimizer: {lr: .inf}\n",
        ["stage.yaml:2:", "optimizer.lr of grpo must be a finite number, got inf"],
    ),
    "endless temperature": (
        "stage: evaluate\nrollout: {max_new_tokens: 64, temperature: .inf}\n",
        ["stage.yaml:2:", "rollout.temperature of evaluate must be a finite number, got inf"],
    ),
    "endless deadline": (
        "stage: grpo\nreward_workers: {deadline_s: .inf}\n",
        ["stage.yaml:2:", "reward_workers.deadline_s of grpo must be a finite number, got inf"],
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
        ["stage.yaml:2:", "rewards[0].options.language: 'zn' is not supported; use one of "],
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


TRACES = "stage: traces\n"
SERVER = "endpoint: {url: 'http://127.0.0.1:1/v1', model: m}\n"


@pytest.mark.parametrize(
    ("settings", "inputs", "expected"),
    [
        ("", "", "stage 'stage' has no rows: give it the input 'policy'"),
        (SERVER, "policy: ./start", "has an input 'policy' and 'endpoint'; rows come from one of them"),
        (
            "source: [mine.jsonl]\n",
            "dataset: ./rows",
            "has an input 'dataset' and 'source'; rows come from one of them",
        ),
        (SERVER + "source: [mine.jsonl]\n", "", "endpoint and source are both given"),
        ("source: [mine.txt]\n", "", "source[0]: mine.txt is of an unknown file type"),
        ("source: [mine.jsonl, odd.jsonl]\n", "", "odd.jsonl line 1: messages are missing or malformed"),
        ("source: [yours.jsonl]\n", "", "names the file"),
        (SERVER + "suites: [stage.yaml]\n", "", "suites: "),
    ],
)
def test_traces_come_from_one_place(tmp_path, settings, inputs, expected):
    write_checkpoint(tmp_path / "start", b"abc")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "data.parquet").write_bytes(b"")
    for name, row in {"mine.jsonl": TALK, "mine.txt": TALK, "odd.jsonl": ROW}.items():
        (tmp_path / name).write_text(row)
    (tmp_path / "stage.yaml").write_text(TRACES + settings)
    (tmp_path / "pipeline.yaml").write_text(CHAIN.replace("INPUTS", inputs))
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "pipeline.yaml")
    [problem] = caught.value.problems
    assert expected in problem


def _load(folder, recipe, monkeypatch):
    monkeypatch.chdir(folder)
    write_checkpoint(folder / "start", b"abc")
    (folder / "start" / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    if "max_new_tokens" not in recipe:
        recipe += "rollout: {max_new_tokens: 64}\n"
    (folder / "stage.yaml").write_text(recipe)
    inputs = "checkpoints: {base: ./start}" if "evaluate" in recipe else "policy: ./start"
    (folder / "pipeline.yaml").write_text(CHAIN.replace("INPUTS", inputs))
    return load(folder / "pipeline.yaml")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_setting_that_cannot_work_is_one_sentence_with_its_place(tmp_path, monkeypatch, fault):
    (tmp_path / "mine").mkdir()
    for name, content in {
        "train.jsonl": ROW,
        "odd.jsonl": '\n{"text": "How many?"}\n',
        "text.jsonl": "How many?\n",
        "text.parquet": "How many?\n",
        "none.jsonl": "\n",
        "pairs.jsonl": '{"prompt": "Hi?", "completion": "Hello."}\n' + TALK,
    }.items():
        (tmp_path / "mine" / name).write_text(content)
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
        "stage: grpo\nproblems: {sources: [{path: mine.jsonl, domain: own, checker: own}]}\n"
        "rewards: [{use: 'rewards.accuracy:Accuracy', except_domains: [own]}, {use: 'tests.toy_rewards:Digits'}]\n",
        "stage: grpo\nproblems: {instruction_share: 0.2}\n"
        "rewards: [{use: 'rewards.accuracy:Accuracy', domains: [general, countdown]}]\n",
        "stage: grpo\nproblems: {sources: [{path: table}, {path: odd.jsonl, skip_bad_rows: true}]}\n",
        "stage: cold_start_data\ndataset: talks.jsonl\n",
        "stage: grpo\nrollout: {max_new_tokens: 511}\n",
        "stage: evaluate\nrollout: {max_new_tokens: 64}\nsamples_for: {base: 16}\nprompting: {default: {}, base: {}}\n",
        "stage: evaluate\n",
    ],
)
def test_what_can_work_is_accepted(tmp_path, monkeypatch, recipe):
    (tmp_path / "mine.jsonl").write_text(ROW)
    (tmp_path / "talks.jsonl").write_text(TALK)
    (tmp_path / "odd.jsonl").write_text('{"text": "How many?"}\n' + ROW)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "train.csv").write_text("for `datasets`, which is too slow to ask here")
    assert list(_load(tmp_path, recipe, monkeypatch).stages) == ["stage"]


def _source_of(pipeline, stage="stage"):
    return pipeline.stages[stage].record["problems"]["sources"][0]["path"]


def test_problem_files_start_at_the_recipe_and_count_by_their_content(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "rows").mkdir(parents=True)
    file = tmp_path / "recipes" / "rows" / "train.jsonl"
    records = {}
    for written in ("rows/train.jsonl", "rows"):
        for content in (ROW, ROW + ROW):
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


STAGES = {
    "zero.yaml": "stage: grpo\nrollout: {max_new_tokens: 600}\n",
    "data.yaml": "stage: cold_start_data\nrollout: {max_new_tokens: 64}\n",
    "sft.yaml": "stage: sft\n",
    "pipeline.yaml": """\
name: chain
stages:
  dev3: {recipe: zero.yaml, inputs: {policy: dev2}, set: {rollout.max_new_tokens: LONGEST}}
  data: {recipe: data.yaml, inputs: {policy: ./start}}
  dev1: {recipe: sft.yaml, inputs: {policy: ./start, dataset: data}}
  dev2: {recipe: zero.yaml, inputs: {policy: dev1}, set: {rollout.max_new_tokens: 64}}
""",
}


def _load_chain(folder, longest, context):
    write_checkpoint(folder / "start", b"abc")
    (folder / "start" / "config.json").write_text(json.dumps({"model_type": "llama"} | context))
    for name, text in STAGES.items():
        (folder / name).write_text(text.replace("LONGEST", str(longest)))
    return load(folder / "pipeline.yaml")


def test_training_keeps_the_context_that_a_later_stage_has(tmp_path):
    with pytest.raises(RecipeError) as caught:
        _load_chain(tmp_path, 512, {"max_position_embeddings": 512})
    [problem] = caught.value.problems
    assert problem.startswith(f"{tmp_path}/pipeline.yaml:3:")
    assert f"rollout.max_new_tokens of stage 'dev3' is 512, but {tmp_path}/start takes 512 tokens" in problem
    assert list(_load_chain(tmp_path, 511, {"max_position_embeddings": 512}).stages)[-1] == "dev3"
    assert list(_load_chain(tmp_path, 512, {}).stages)[-1] == "dev3"  # it cannot be known


def test_a_circle_of_stages_is_still_one_sentence(tmp_path):
    (tmp_path / "zero.yaml").write_text(STAGES["zero.yaml"])
    stages = "".join(f"  {a}: {{recipe: zero.yaml, inputs: {{policy: {b}}}}}\n" for a, b in ("ab", "ba"))
    (tmp_path / "pipeline.yaml").write_text(f"name: chain\nstages:\n{stages}")
    with pytest.raises(RecipeError, match="these stages wait for each other") as caught:
        load(tmp_path / "pipeline.yaml")
    assert len(caught.value.problems) == 1


def test_reading_a_recipe_with_problem_files_imports_nothing_heavy(tmp_path):
    (tmp_path / "mine.jsonl").write_text(ROW)
    (tmp_path / "stage.yaml").write_text(f"stage: grpo\nproblems: {{sources: [{{path: {tmp_path}/mine.jsonl}}]}}\n")
    write_checkpoint(tmp_path / "start", b"abc")
    code = (
        "import sys; from pathlib import Path; from pipeline.config import load; "
        f"load(Path({str(tmp_path / 'stage.yaml')!r}), [{f'inputs.policy={tmp_path}/start'!r}]); "
        "print([m for m in ('torch', 'ray', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

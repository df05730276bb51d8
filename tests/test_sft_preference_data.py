"""The preference-data stage: which responses are judged, which pairs are kept, and what its data card says."""

import json
import random

import pytest

from data.config import PreferenceSource
from data.instructions import bad_answer, good_answer
from data.preference_sources import read_pairs, read_safety_labels
from data.problem_pool import ProblemsConfig
from pipeline.config import load
from pipeline.errors import RecipeError
from rewards.reward import Verdict
from rewards.utility import is_safe, utility
from sft import preference_data
from sft.preference_config import JudgeConfig, PreferenceDataConfig
from sft.preference_data import run
from sft.sampling import Sampled
from training.stage import StageContext, StageError

RULE = JudgeConfig(kind="rule")


def config(**keys) -> PreferenceDataConfig:
    return PreferenceDataConfig(**{"prompts": 40, "judge": RULE} | keys)


@pytest.fixture
def stage(tmp_path, monkeypatch, tiny_checkpoint):
    """Runs the stage on a policy that gives a good and a bad answer, a copy, a truncated and a malformed one."""

    def sampled_chunks(prompts, **keys):
        stage.sampled.append(keys["work"].name)
        for prompt in prompts:
            rng = random.Random(prompt.key)
            answers = good_answer(prompt.problem, rng), bad_answer(prompt.problem, rng)
            texts = [f"<think>\nhm\n</think>\n\n{answer}" for answer in (*answers, answers[0])]
            good, bad, copy = (_sampled(text) for text in texts)
            yield [(prompt, [good, bad, copy, _sampled("cut", truncated=True), _sampled("odd", Verdict.FAIL)])]

    def _sampled(text, verdict=Verdict.PASS, truncated=False):
        return Sampled(text=text, n_tokens=1, truncated=truncated, verdict=verdict, detail="")

    def stage(settings, policies=("dev3",), name="out"):
        inputs = {f"policies.{label}": tiny_checkpoint for label in policies}
        run(settings, StageContext(name="pairs", inputs=inputs, output=tmp_path / name, seed=0))
        return tmp_path / name, json.loads((tmp_path / name / "data_card.json").read_text())

    stage.sampled = []
    monkeypatch.setattr(preference_data, "sampled_chunks", sampled_chunks)
    return stage


def test_pairs_are_of_final_parts_and_mostly_right(stage):
    folder, card = stage(config(balance_within=None))
    pairs = list(read_pairs(PreferenceSource(path=str(folder))))
    assert 25 < len(pairs) <= 40 and card["n_rows"] == len(pairs)
    assert all("<think>" not in pair.chosen + pair.rejected and pair.gap > 1 for pair in pairs)
    right = [utility(p.problem, p.chosen) > utility(p.problem, p.rejected) for p in pairs]
    assert sum(right) / len(right) == card["judging"]["right_by_true_utility"] > 0.9
    assert card["by_source"] == {"judge:rule": len(pairs)}
    assert card["rejected"]["truncated"] == card["rejected"]["ill_formed"] == 40
    assert card["judging"]["counts"] == {"judged": 40, "queries": 160, "answers": 160}
    assert 0.4 < card["judging"]["first_preferred"] < 0.65 and card["judging"]["agreement"] > 0.7


def test_lengths_are_balanced(stage):
    _, free = stage(config(balance_within=None), name="free")
    _, held = stage(config(balance_within=0.02), name="held")

    def gap(card):
        return abs(card["judging"]["chosen_length_mean"] - card["judging"]["rejected_length_mean"])

    assert gap(held) < gap(free) and held["rejected"]["unbalanced"] == free["n_rows"] - held["n_rows"]


def test_several_policies_and_pairs_of_one_prompt(stage):
    _, card = stage(config(pairs_per_prompt=3, prompts=10), policies=("dev2", "dev3"))
    assert stage.sampled == ["dev2", "dev3"]
    assert card["judging"]["counts"]["judged"] > 10


def test_safety_labels_are_of_whole_responses(stage, monkeypatch):
    problems = ProblemsConfig(instruction_share=1.0, safety_share=1.0)
    settings = config(objective="safety", problems=problems, written_answers=True, prompts=30, layout=None)

    def nothing(prompts, **keys):
        yield from ()

    monkeypatch.setattr(preference_data, "sampled_chunks", nothing)
    folder, card = stage(settings)
    labels = list(read_safety_labels(PreferenceSource(path=str(folder))))
    assert len(labels) > 40 and all(label.response.startswith("<think>") for label in labels)
    assert card["judging"]["right_by_true_utility"] > 0.95 and 0.3 < card["judging"]["safe_share"] < 0.7
    assert sum(label.safe == is_safe(label.response) for label in labels) / len(labels) > 0.95


def test_the_same_stage_again_gives_the_same_bytes(stage):
    (first, _), (second, _) = stage(config(), name="a"), stage(config(), name="b")
    assert (first / "data.parquet").read_bytes() == (second / "data.parquet").read_bytes()


def test_files_of_people_are_added_and_their_faults_counted(stage, tmp_path):
    rows = [{"prompt": "q", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(9)]
    rows.append({"prompt": "q", "chosen": "same", "rejected": "same"})
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = PreferenceSource(path=str(path))
    folder, card = stage(config(sources=(source,)), policies=())
    assert card["n_rows"] == 9 and card["by_source"] == {"people": 9} and stage.sampled == []
    assert card["rejected"] == {"identical": 1}
    assert "line 10" in card["judging"]["files"][str(path)]["first"]["identical"]
    assert {pair.source for pair in read_pairs(PreferenceSource(path=str(folder)))} == {"people"}


def test_nothing_to_judge_is_said(stage):
    with pytest.raises(StageError, match=r"give checkpoints as inputs.policies, or files in `sources`"):
        stage(config(), policies=())


def recipe_faults(tmp_path, **files):
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "pipeline.yaml")
    return " ".join(caught.value.problems)


def test_roles_that_may_stay_empty_and_judges_that_are_missing(tmp_path, tiny_checkpoint):
    stages = (
        f"{{pairs: {{recipe: pairs.yaml, inputs: {{policies: {{dev3: {tiny_checkpoint}}}}}}}, "
        f"rl: {{recipe: rl.yaml, inputs: {{policy: {tiny_checkpoint}, safety_rm: {tiny_checkpoint}}}}}}}"
    )
    faults = recipe_faults(
        tmp_path,
        pipeline=f"name: test\nstages: {stages}\n",
        pairs="stage: preference_data\n",
        rl="stage: grpo\nproblems: {instruction_share: 0.5}\nrollout: {max_new_tokens: 32}\n"
        'rewards: [{use: "rewards.preference:HelpfulReward", domains: [general]}]\n'
        "watch: {reward: helpfull}\n",
    )
    assert "needs the input 'judge'" in faults
    assert "needs the input 'helpful_rm' of stage 'rl'" in faults
    assert "stage 'rl' has no reward 'helpfull'; did you mean 'helpful'?" in faults
    assert "no reward of stage 'rl' asks for its input 'safety_rm'" in faults
    assert "it is a checkpoint without the head of a reward model" in faults


def test_a_reward_model_in_a_recipe_is_an_input_so_that_its_content_counts(tmp_path, tiny_checkpoint):
    faults = recipe_faults(
        tmp_path,
        pipeline=f"name: test\nstages: {{rl: {{recipe: rl.yaml, inputs: {{policy: {tiny_checkpoint}}}}}}}\n",
        rl="stage: grpo\nproblems: {instruction_share: 0.5}\nrollout: {max_new_tokens: 32}\n"
        'rewards: [{use: "rewards.preference:HelpfulReward", domains: [general], options: {model: some/folder}}]\n',
    )
    assert "options.model: give the model as input 'helpful_rm' of stage 'rl': inputs are hashed" in faults

"""The preference-data stage: which responses are judged, which pairs are kept, and what its data card says."""

import json
import random
from dataclasses import replace

import pytest

from data.config import PreferenceSource, ProblemSource
from data.instructions import bad_answer, good_answer
from data.preference_sources import read_pairs, read_safety_labels
from data.problem_pool import ProblemsConfig
from data.schemas import SourceError
from pipeline.config import load
from pipeline.errors import RecipeError
from rewards.reward import Verdict
from rewards.testing import make_problem
from rewards.utility import is_safe, utility
from sft import preference_data
from sft.borrowed import borrowed
from sft.preference_config import JudgeConfig, PreferenceDataConfig
from sft.preference_data import run
from sft.sampling import Sampled
from training.stage import StageContext, StageError

RULE = JudgeConfig(kind="rule")


def config(**keys) -> PreferenceDataConfig:
    return PreferenceDataConfig(**{"prompts": 40, "judge": RULE} | keys)


def _sampled(text, verdict=Verdict.PASS, truncated=False):
    return Sampled(text=text, n_tokens=1, truncated=truncated, verdict=verdict, detail="")


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
    _, held = stage(config(balance_within=0.02, balance_drop_limit=1.0), name="held")

    def gap(card):
        return abs(card["judging"]["chosen_characters_mean"] - card["judging"]["rejected_characters_mean"])

    assert gap(held) < gap(free) and held["rejected"]["unbalanced"] == free["n_rows"] - held["n_rows"]
    balance = held["judging"]["length_balance"]
    assert balance["is_reached"] and abs(balance["after"]) <= 0.02 < abs(balance["before"])
    assert balance["unit"] == "characters" and free["judging"]["length_balance"] == {}


def test_balancing_that_would_cost_too_much_is_given_up_and_said(stage, caplog):
    _, card = stage(config(balance_within=0.0, balance_drop_limit=0.1))
    assert 0 < card["rejected"]["unbalanced"] <= 0.1 * (card["n_rows"] + card["rejected"]["unbalanced"])
    assert card["judging"]["length_balance"]["is_reached"] is False and "balance_drop_limit 0.1" in caplog.text


def test_prompts_with_too_few_responses_are_told_from_those_with_equal_ones(stage, monkeypatch):
    said = {0: [], 1: ["one"], 2: ["one", "one"], 3: ["one", "two"]}

    def sampled_chunks(prompts, **keys):
        for number, prompt in enumerate(prompts):
            texts = [f"<think>\nhm\n</think>\n\n{text}" for text in said[number % 4]]
            yield [(prompt, [*map(_sampled, texts), _sampled("cut", truncated=True)])]

    monkeypatch.setattr(preference_data, "sampled_chunks", sampled_chunks)
    _, card = stage(config(min_gap=0.0))
    assert (card["rejected"]["too_few"], card["rejected"]["identical"]) == (20, 10)


def test_several_policies_and_pairs_of_one_prompt(stage):
    _, card = stage(config(pairs_per_prompt=3, prompts=10), policies=("dev2", "dev3"))
    assert stage.sampled == ["dev2", "dev3"]
    assert card["judging"]["counts"]["judged"] > 10


def test_borrowed_responses_are_those_of_other_prompts_that_look_alike(stage):
    _, plain = stage(config(pairs_per_prompt=100), name="plain")
    folder, card = stage(config(pairs_per_prompt=100, borrowed_responses=2), name="borrowed")
    # A good and a bad answer make one pair, and four with two others', which are not compared with each other.
    assert plain["judging"]["counts"]["judged"] == 40
    assert 4 * 40 < card["judging"]["counts"]["judged"] <= 5 * 40
    pairs = list(read_pairs(PreferenceSource(path=str(folder))))
    own = {p.problem.id: {good_answer(p.problem, random.Random(f"dev3:{p.problem.id}"))} for p in pairs}
    rejected_others = [p for p in pairs if p.chosen in own[p.problem.id] and p.rejected in set().union(*own.values())]
    assert len(rejected_others) > 10  # good answers, to something else


def test_the_most_similar_of_the_prompts_lend():
    questions = ["Repeat tree two times.", "Repeat hill two times.", "List fruits.", "列出两种水果。"]
    problems = [replace(make_problem(question=question), id=question) for question in questions]
    texts = {p.id: (p.question.upper(),) for p in problems}
    assert borrowed(problems[0], problems, texts, 2, seed=0) == ["REPEAT HILL TWO TIMES.", "LIST FRUITS."]
    assert borrowed(problems[0], problems, texts | {problems[1].id: ()}, 1, seed=0) == ["LIST FRUITS."]
    texts[problems[0].id] = texts[problems[1].id]  # what it has itself is not borrowed
    assert borrowed(problems[0], problems, texts, 9, seed=0) == ["LIST FRUITS.", "列出两种水果。"]
    assert borrowed(problems[0], problems, {}, 0, seed=0) == []


def test_prompts_without_responses_of_their_own_are_left_out(stage, monkeypatch):
    """Others' answers alone say nothing of them."""

    def sampled_chunks(prompts, **keys):
        yield [
            (prompt, [_sampled(f"<think>\n</think>\n\n{place} {i}") for i in range(2 * (place % 2))])
            for place, prompt in enumerate(prompts)
        ]

    monkeypatch.setattr(preference_data, "sampled_chunks", sampled_chunks)
    _, card = stage(config(pairs_per_prompt=100, borrowed_responses=3, min_gap=0.0, balance_within=None))
    assert card["rejected"]["too_few"] == 20 and card["judging"]["counts"]["judged"] == 20 * (1 + 2 * 3)


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
    [file] = card["judging"]["files"]
    assert file["path"] == str(path) and "line 10" in file["first"]["identical"]
    assert {pair.source for pair in read_pairs(PreferenceSource(path=str(folder)))} == {"people"}


def test_two_splits_of_one_set_are_counted_apart(stage, tmp_path):
    for split, count in (("train", 30), ("test", 3)):
        rows = [{"prompt": "q", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]
        rows.append({"prompt": "q", "chosen": "same", "rejected": "same"})
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = tuple(PreferenceSource(path=str(tmp_path), split=split, bad_row_limit=0.3) for split in ("train", "test"))
    _, card = stage(config(sources=sources), policies=())
    found = [(file["split"], file["kept"], file["refused"]) for file in card["judging"]["files"]]
    assert found == [("train", 30, {"identical": 1}), ("test", 3, {"identical": 1})]
    strict = (sources[0], sources[1].model_copy(update={"bad_row_limit": 0.1}))
    with pytest.raises(SourceError, match="25% of the rows"):
        stage(config(sources=strict), policies=(), name="strict")


def test_benchmarks_are_kept_out_of_prompts_and_of_listed_records(stage, tmp_path, monkeypatch):
    benchmark = "A farmer has twelve hens and every hen lays three eggs a day; how many eggs are there in a week?"
    asked = [
        {"question": question, "answer": "1"} for question in (*(f"What is {n} plus {n}?" for n in range(9)), benchmark)
    ]
    listed = [{"prompt": question, "chosen": "a", "rejected": "b"} for question in ("Hi?", "Note: " + benchmark)]
    listed.append({"prompt": "Tell me a riddle.", "chosen": benchmark, "rejected": "b"})
    paths = {}
    for name, rows in {"asked": asked, "listed": listed, "benchmark": asked[-1:]}.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(
        problems=ProblemsConfig(
            sources=(ProblemSource(path=str(paths["asked"]), row_schema="columns"),), instruction_share=0.0
        ),
        sources=(PreferenceSource(path=str(paths["listed"])),),
        held_out_sources=(ProblemSource(path=str(paths["benchmark"]), row_schema="columns"),),
    )
    sampled = []
    monkeypatch.setattr(preference_data, "sampled_chunks", lambda prompts, **keys: sampled.extend(prompts) or ())
    _, card = stage(settings)
    assert card["n_rows"] == 1 and card["rejected"]["contaminated"] == card["decontamination"]["dropped"] == 2
    assert {prompt.problem.question for prompt in sampled} == {row["question"] for row in asked[:-1]}
    assert card["decontamination"]["problems_dropped"] == 1


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

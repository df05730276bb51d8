"""Cold start and rejection sampling, run for real on a tiny model that has learned four answers by heart."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.config import ProblemSource
from data.problem_pool import ProblemPool, ProblemsConfig
from models.checkpoint import load_tokenizer
from pipeline.evaluate_config import EvaluateConfig
from rollouts.config import GeneratorConfig, RolloutConfig
from sft.batch import pack_examples
from sft.cold_start import run as run_cold_start
from sft.config import ColdStartConfig, CurationConfig, RejectionSamplingConfig
from sft.conversations import conversation_examples
from sft.curation import without_held_out
from sft.filters import FilterConfig
from sft.rejection_sampling import mixture, written_candidates
from sft.rejection_sampling import run as run_rejection_sampling
from sft.trainer import SupervisedTrainer
from training.config import OptimizerConfig
from training.stage import StageContext, StageError

KNOWN = {  # question -> (language, answer, reasoning); the last answer is wrong
    "What is 3+8?": ("en", "11", "Start with three. Then 3+8=11."),
    "What is 4+5?": ("en", "9", "Start with four. Then 4+5=9."),
    "计算2+6。": ("zh", "8", "从二开始。然后2+6=8。"),
    "What is 9+9?": ("en", "17", "Start with nine. Then 9+9=17."),
}
TRUTH = {"What is 9+9?": "18"}


def problems_file(folder: Path) -> ProblemsConfig:
    rows = [
        {
            "id": f"sum-{number}",
            "messages": [{"role": "user", "content": question}],
            "ground_truth": TRUTH.get(question, answer),
            "checker": "math",
            "domain": "sums",
            "language": language,
        }
        for number, (question, (language, answer, _)) in enumerate(KNOWN.items())
    ]
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ProblemsConfig(sources=(ProblemSource(path=str(path)),))


def taught(checkpoint: Path, folder: Path, template, layout: str) -> Path:
    """The checkpoint after it has learned the known answers by heart."""
    tokenizer, examples = load_tokenizer(checkpoint), []
    for question, (_, answer, reasoning) in KNOWN.items():
        final = layout.format(answer=answer)
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n{final}"},
        ]
        examples += conversation_examples(tokenizer, messages, template)
    trainer = SupervisedTrainer(str(checkpoint), OptimizerConfig(lr=5e-3), device="cpu")
    for _ in range(60):
        trainer.step(pack_examples(examples, 1024), 5e-3, 0.0, 0.0)
    trainer.save_checkpoint(str(folder))
    return folder


@pytest.fixture(scope="module")
def zero(llama_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zero") / "checkpoint"
    return taught(llama_checkpoint, folder, "plain", "<answer>{answer}</answer>")


@pytest.fixture(scope="module")
def dev2(llama_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dev2") / "checkpoint"
    return taught(llama_checkpoint, folder, "chat", "\n\\boxed{{{answer}}}")


def settings(tmp_path: Path, template, **keys) -> dict:
    return {
        "problems": problems_file(tmp_path),
        "prompts": 8,  # every problem twice
        "samples_per_prompt": 2,
        "chunk_prompts": 3,
        "rollout": RolloutConfig(template=template, max_new_tokens=64, temperature=1.0),
        "generator": GeneratorConfig(replicas=1, max_slots=8),
    } | keys


def context(output: Path, policy: Path, report=lambda event: None) -> StageContext:
    return StageContext(name="data", inputs={"policy": policy}, output=output, seed=3, report=report)


def table(folder: Path) -> list[dict]:
    return pq.read_table(folder / "data.parquet").to_pylist()


def card(folder: Path) -> dict:
    return json.loads((folder / "data_card.json").read_text())


class Cut(Exception):
    """The stage is killed from outside."""


def test_cold_start_keeps_right_readable_samples_as_think_and_summary(ray_session, zero, tmp_path):
    events = []
    out = tmp_path / "out"
    run_cold_start(ColdStartConfig(**settings(tmp_path, "plain")), context(out, zero, events.append))
    rows = table(out)
    questions = [row["messages"][0]["content"] for row in rows]
    assert set(questions) == set(KNOWN) - set(TRUTH)  # the wrong one is out, in both languages the right ones are in
    assert len(questions) == 3  # one per question, though every problem was drawn twice
    for row in rows:
        _, answer, reasoning = KNOWN[row["messages"][0]["content"]]
        completion = row["messages"][1]["content"]
        assert completion.startswith(f"<think>\n{reasoning}\n</think>\n\n") and f"\\boxed{{{answer}}}" in completion
        assert "<answer>" not in completion
    facts = card(out)
    assert facts["n_candidates"] == 16 and facts["rejected"]["incorrect"] >= 4
    assert facts["accept_rate"] == 3 / 16 == facts["accept_rate_by"]["domain"]["sums"]
    assert facts["decontamination"]["dropped_equal_question"] == 0
    assert events[-1]["step"] == events[-1]["total_steps"] == 8 and events[-1]["phase"] == "sampling"


@pytest.mark.slow
def test_a_stage_killed_between_chunks_ends_with_the_same_dataset(ray_session, zero, tmp_path):
    config = ColdStartConfig(**settings(tmp_path, "plain", few_shot=1))  # two passes: 16 prompts
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def kill(event):
        if event["step"] == 8:  # inside the third chunk
            raise Cut

    run_cold_start(config, context(whole, zero))
    with pytest.raises(Cut):
        run_cold_start(config, context(cut, zero, kill))
    done = sorted((cut / ".work").glob("*.parquet"))
    before = [path.stat().st_mtime_ns for path in done]
    assert len(done) == 2 and not (cut / "data.parquet").exists()
    run_cold_start(config, context(cut, zero))
    assert [path.stat().st_mtime_ns for path in done] == before  # nothing was sampled twice
    for name in ("data.parquet", "data_card.json", "stats.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    rows = [row for path in sorted((cut / ".work").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    drawn = [(row["key"], row["sample"]) for row in rows]
    asked = card(whole)["sampling"]
    assert len(drawn) == len(set(drawn)) == 2 * len({row["key"] for row in rows})
    assert len({row["key"] for row in rows}) == asked["prompts"] == 16 - asked["prompts_too_long"]


def test_own_conversations_are_added_and_held_out_text_is_not(ray_session, zero, tmp_path):
    listed, bench = tmp_path / "mine.jsonl", tmp_path / "bench.jsonl"
    leak = "a b c d e f g h i j k l"
    conversations = [("Hi?", "Hello."), (f"Once: {leak}", "Seen before.")]
    listed.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) + "\n"
            for q, a in conversations
        )
    )
    bench.write_text(json.dumps({"problem": f"Compute {leak}", "answer": "1", "year": 2024}) + "\n")
    config = ColdStartConfig(
        **settings(
            tmp_path, "plain", dataset=str(listed), max_rows=4, held_out_sources=(ProblemSource(path=str(bench)),)
        )
    )
    run_cold_start(config, context(tmp_path / "out", zero))
    assert [row["messages"][0]["content"] for row in table(tmp_path / "out")][-1] == "Hi?"
    facts = card(tmp_path / "out")
    assert facts["by_source"] == {"listed": 1, "zero_shot": 2} and facts["decontamination"]["dropped"] == 1


def test_questions_of_the_default_evaluation_are_dropped_whatever_the_stage_samples():
    asked = EvaluateConfig()
    pool = ProblemPool(asked.problems, "held_out", asked.problem_seed)
    held_out = [problem.question for problem in pool.draw_distinct(asked.num_problems, instruction_share=0.0)]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": "?"}] for q in (*held_out, "1+1 = ?")]
    config = CurationConfig(problems=ProblemsConfig(families=("sorting",)))
    rows, report = without_held_out([{"messages": messages} for messages in turns], config)
    assert [row["messages"][0]["content"] for row in rows] == ["1+1 = ?"]
    assert report["rows_compared"] == len(turns)
    assert report["dropped"] + report["dropped_equal_question"] == len(held_out)


def test_nothing_accepted_says_why(ray_session, llama_checkpoint, tmp_path):
    config = ColdStartConfig(**settings(tmp_path, "plain", prompts=2))
    with pytest.raises(StageError, match="none of 4 completions passed the filters"):
        run_cold_start(config, context(tmp_path / "out", llama_checkpoint))


def test_a_misspelt_reward_is_named_before_anything_starts(llama_checkpoint, tmp_path):
    rewards = ({"use": "rewards.accuracy:Acuracy"},)
    config = RejectionSamplingConfig(**settings(tmp_path, "chat", rewards=rewards, general_share=0.0))
    with pytest.raises(StageError, match=r"rewards\[0\].use"):
        run_rejection_sampling(config, context(tmp_path / "out", llama_checkpoint))


def test_a_domain_that_no_problem_of_the_files_has_is_found_before_anything_is_sampled(llama_checkpoint, tmp_path):
    rewards = ({"use": "rewards.accuracy:Accuracy", "domains": ["sum"]},)
    config = RejectionSamplingConfig(**settings(tmp_path, "chat", rewards=rewards, general_share=0.0))
    with pytest.raises(StageError, match=r"rewards\[0\].domains: no problem has domain 'sum'. Did you mean sums\?"):
        run_rejection_sampling(config, context(tmp_path / "out", llama_checkpoint))
    assert not (tmp_path / "out").exists()


def test_rejection_sampling_mixes_verified_samples_with_general_data(ray_session, dev2, tmp_path):
    rewards = ({"use": "rewards.accuracy:Accuracy"}, {"use": "rewards.format:Format", "options": {"layout": "summary"}})
    mine = tmp_path / "general.jsonl"
    talks = [
        [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"<think>\n\n</think>\n\n{n}"}]
        for n in range(50)
    ]
    mine.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    keys = settings(tmp_path, "chat", rewards=rewards, general_share=0.5, filters=FilterConfig(max_per_problem=2))
    config = RejectionSamplingConfig(**keys, general_dataset=str(mine))
    run_rejection_sampling(config, context(tmp_path / "out", dev2))
    rows, facts = table(tmp_path / "out"), card(tmp_path / "out")
    reasoning = [row for row in rows if row["domain"] == "sums"]
    general = [row for row in rows if row["domain"] == "general"]
    assert {row["messages"][0]["content"] for row in reasoning} == set(KNOWN) - set(TRUTH)
    assert len(general) == len(reasoning) and all(row["messages"] in talks for row in general)
    assert all(row["messages"][1]["content"].startswith("<think>\n") for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == facts["n_rows"]
    assert facts["by_source"] == {"general": len(general), "zero_shot": len(reasoning)}
    assert facts["tokens"]["total"] > 0 and facts["sampling"]["general_rows_listed"] == len(general)


def test_a_broken_row_of_general_data_is_found_before_anything_is_sampled(llama_checkpoint, tmp_path):
    mine = tmp_path / "general.jsonl"
    talk = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    mine.write_text(json.dumps({"messages": talk}) + '\n{"prompt": "Hi?", "completion": "Hello."}\n')
    config = RejectionSamplingConfig(**settings(tmp_path, "chat"), general_dataset=mine)
    with pytest.raises(StageError, match=r"general\.jsonl line 2: messages are missing or malformed"):
        run_rejection_sampling(config, context(tmp_path / "out", llama_checkpoint))
    assert not (tmp_path / "out").exists()


def test_the_tiny_chain_writes_its_general_answers_itself():
    written = written_candidates(40, RejectionSamplingConfig(), seed=1)
    assert len(written) == 40 and {candidate.language for candidate in written} == {"en", "zh"}
    assert all(candidate.completion.startswith("<think>\n") for candidate in written)
    assert {candidate.problem.domain for candidate in written} == {"general"}


def test_general_rows_among_problems_of_your_own_must_be_yours(tmp_path):
    with pytest.raises(ValueError, match=r"general_share 0\.25 would be instructions of the tiny chain"):
        RejectionSamplingConfig(problems=problems_file(tmp_path))
    with pytest.raises(ValueError, match="general_dataset is not used while general_share is 0"):
        RejectionSamplingConfig(general_share=0.0, general_dataset=tmp_path / "problems.jsonl")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((600, 0, 0.25, None), (600, 200)),
        ((600, 0, 0.25, 400), (300, 100)),
        ((100, 0, 0.25, 400), (100, 33)),
        ((0, 7, 0.25, 5), (0, 5)),
        ((9, 0, 0.0, None), (9, 0)),
    ],
)
def test_mixture_holds_the_share_and_the_limit(arguments, expected):
    assert mixture(*arguments) == expected

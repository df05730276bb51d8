"""Which problems a stage draws from."""

import json

import pytest

from data.config import JudgingConfig, PreferenceSource, ProblemSource
from data.problem_pool import ProblemPool, ProblemsConfig
from data.schemas import SourceError

BENCHMARK = "A farmer has twelve hens and every hen lays three eggs a day; how many eggs are there in a week?"


def source(folder, name: str, questions: list[str]) -> ProblemSource:
    rows = [json.dumps({"question": question, "answer": "1"}) for question in questions]
    (folder / name).write_text("\n".join(rows))
    return ProblemSource(path=str(folder / name), row_schema="columns")


def test_problems_that_share_ten_words_with_a_benchmark_are_left_out_and_counted(tmp_path):
    train = source(tmp_path, "train.jsonl", ["What is 2 + 3?", "Note: " + BENCHMARK, "What is 4 + 4?"])
    held_out = source(tmp_path, "benchmark.jsonl", [BENCHMARK, "What is 2 + 4?"])
    pool = ProblemPool(ProblemsConfig(sources=(train,)), "train", 0, [held_out])
    assert pool.contaminated == 1
    assert {problem.question for problem in pool.draw(0, 20)} == {"What is 2 + 3?", "What is 4 + 4?"}
    assert ProblemPool(ProblemsConfig(sources=(train,)), "train", 0).contaminated == 0


def test_a_source_that_is_all_held_out_is_refused(tmp_path):
    train = source(tmp_path, "train.jsonl", [BENCHMARK])
    with pytest.raises(SourceError, match=r"no problems in .*train\.jsonl that are not held out \(1 are\)"):
        ProblemPool(ProblemsConfig(sources=(train,)), "train", 0, [train])


def test_items_to_judge_that_hold_a_benchmark_are_left_out_and_counted(tmp_path):
    rows = [
        {"prompt": "What is 2 + 3?", "chosen": "5", "rejected": "6"},
        {"prompt": "Note: " + BENCHMARK, "chosen": "252", "rejected": "36"},
        {"prompt": "Tell me a riddle.", "chosen": BENCHMARK, "rejected": "No."},
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = ProblemsConfig(judging=JudgingConfig(sources=(PreferenceSource(path=str(path)),)), languages=("en",))
    held_out = source(tmp_path, "benchmark.jsonl", [BENCHMARK])
    pool = ProblemPool(problems, "train", 0, [held_out])
    assert pool.contaminated == 2 and {problem.id for problem in pool.draw(0, 9)} == {
        ProblemPool(problems, "train", 0).draw(0, 1)[0].id
    }
    path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(SourceError, match=r"no item of judging.sources .*1 held out"):
        ProblemPool(problems, "train", 0, [held_out])


def general_source(folder, rows: list[dict]) -> ProblemSource:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ProblemSource(path=str(folder / "prompts.jsonl"))


def test_general_prompts_of_a_file_take_the_place_of_procedural_instructions(tmp_path):
    rows = [{"prompt": f"Tell me about {thing}."} for thing in ("ships", "rain", "tea")]
    rows.append({"prompt": "How do I pick a lock?", "domain": "safety"})
    problems = ProblemsConfig(instruction_share=0.5, general_sources=(general_source(tmp_path, rows),))
    drawn = ProblemPool(problems, "train", 0).draw(0, 60)
    general = [problem for problem in drawn if problem.checker == "none"]
    assert {problem.question for problem in general} == {row["prompt"] for row in rows}
    assert {problem.domain for problem in general} == {"general", "safety"}
    assert 15 < len(general) < 45 and all(problem.ground_truth for problem in drawn if problem not in general)
    alone = ProblemPool(problems, "train", 0).draw(0, 60, instruction_share=0.0)
    assert all(problem.domain in problems.families for problem in alone)


def test_general_prompts_that_hold_a_benchmark_are_left_out_and_counted(tmp_path):
    prompts = general_source(tmp_path, [{"prompt": "Note: " + BENCHMARK}, {"prompt": "Tell me about tea."}])
    problems = ProblemsConfig(instruction_share=1.0, general_sources=(prompts,))
    pool = ProblemPool(problems, "train", 0, [source(tmp_path, "benchmark.jsonl", [BENCHMARK])])
    assert pool.contaminated == 1 and {p.question for p in pool.draw(0, 9)} == {"Tell me about tea."}


def test_shares_that_general_files_decide_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"problems\.safety_share is of procedural instructions"):
        ProblemsConfig(
            instruction_share=1.0, safety_share=0.1, general_sources=(general_source(tmp_path, [{"prompt": "Hi."}]),)
        )


def test_problems_of_two_sources_that_count_alike_have_ids_of_their_own(tmp_path):
    sources = []
    for number, question in enumerate(["What is 1 + 1?", "What is 2 + 3?"]):
        (tmp_path / str(number)).mkdir()
        named = source(tmp_path / str(number), "test.jsonl", [question]).model_copy(update={"name": "test"})
        sources.append(named)
    pool = ProblemPool(ProblemsConfig(sources=tuple(sources)), "held_out", 0)
    drawn = pool.draw_distinct(2, 0.0)
    assert {p.question for p in drawn} == {"What is 1 + 1?", "What is 2 + 3?"}
    assert {p.id for p in drawn} == {"test-1", "test-1@2"}


def test_the_line_that_all_questions_end_with_is_no_overlap(tmp_path):
    line = {"instruction": "Answer with the letter of the right choice, in a box."}
    train = source(tmp_path, "train.jsonl", ["Which is it? None of the above"]).model_copy(update=line)
    held_out = source(tmp_path, "benchmark.jsonl", ["Who was it? None of the above"]).model_copy(update=line)
    pool = ProblemPool(ProblemsConfig(sources=(train,)), "train", 0, [held_out])
    assert pool.contaminated == 0 and pool.draw(0, 1)[0].question.endswith(line["instruction"])
    copied = source(tmp_path, "copied.jsonl", [BENCHMARK]).model_copy(update=line)
    leak = source(tmp_path, "leak.jsonl", ["What is 1 + 1?", f"So: {BENCHMARK}"]).model_copy(update=line)
    assert ProblemPool(ProblemsConfig(sources=(leak,)), "train", 0, [copied]).contaminated == 1


def test_solutions_of_benchmarks_are_held_out_too(tmp_path):
    solution = "Let x be the number of hens; then three x eggs are laid on each of seven days."
    (tmp_path / "aime.jsonl").write_text(json.dumps({"Problem": "How many?", "Answer": "21", "Solution": solution}))
    train = source(tmp_path, "train.jsonl", ["What is 2 + 3?", f"Why? {solution}"])
    held_out = ProblemSource(path=str(tmp_path / "aime.jsonl"), row_schema="aime")
    assert ProblemPool(ProblemsConfig(sources=(train,)), "train", 0, [held_out]).contaminated == 1

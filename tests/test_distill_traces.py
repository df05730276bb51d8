"""Rows of one's own and of a teacher behind a server: filtered, deduplicated, decontaminated, cut to a budget."""

import json
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.config import ProblemSource
from data.dataset_files import dataset_files
from data.decontaminate import NgramIndex
from data.problem_pool import ProblemsConfig
from distill import trace_rows, traces
from distill.endpoint_sampler import text_of
from distill.fingerprints import hash_words
from distill.held_out_index import HeldOutIndex
from distill.suites import suite_sources
from distill.traces_config import NearDuplicatesConfig, TeacherConfig, TracesConfig
from rewards.endpoint import Reply
from rollouts.config import GeneratorConfig, RolloutConfig
from sft.conversations import read_conversations
from sft.filters import FilterConfig
from sft.held_out import HeldOut
from tests.chat_server import Server, said
from tests.test_sft_sampling_stages import KNOWN, TRUTH, problems_file, taught
from training.stage import StageContext, StageError

LEAK = "nine brown foxes jump over the lazy dog at noon on friday"
PARTS = ["rivers", "clouds", "seven", "apples", "trains", "winter", "letters", "stones", "paper", "yellow", "doors"]


def talk(number: int, question: str | None = None, extra: str = "") -> dict:
    """A readable row; different numbers have hardly a shingle in common."""
    said = " ".join(f"{part}{'x' * (number % 7)}{chr(97 + number // 7 % 26)}" for part in PARTS)
    asked = question or f"How many {said}?"
    answer = f"<think>\nFirst we look at {said} and count them.{extra}\n</think>\n\nThere are \\boxed{{{number}}}."
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def written(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(trace_rows, "BATCH_ROWS", 8)


def run(folder: Path, config: TracesConfig, inputs: dict | None = None, report=lambda event: None) -> list[dict]:
    context = StageContext(name="traces", inputs=inputs or {}, output=folder, seed=5, report=report)
    traces.run(config, context)
    return list(read_conversations(folder))


def card(folder: Path) -> dict:
    return json.loads((folder / "data_card.json").read_text())


def settings_of(file: Path, **keys) -> TracesConfig:
    return TracesConfig(source=(file,), filter_workers=1, **keys)


def payload(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_is_wrong_with_a_row_is_counted_and_the_rest_is_the_set(tmp_path):
    bench = written(tmp_path / "bench.jsonl", [{"question": f"Why do {LEAK}?", "answer": "#### 3"}])
    again = talk(1)
    again["messages"][0]["content"] = again["messages"][0]["content"].upper()
    other_number = talk(2)
    other_number["messages"][1]["content"] = other_number["messages"][1]["content"].replace("boxed{2}", "boxed{9}")
    rows = [
        *(talk(number) for number in range(20)),
        again,
        other_number,
        talk(30, extra=f" They say {LEAK}."),
        {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "No reasoning."}]},
        talk(31, extra=" wait no" * 40),
    ]
    config = settings_of(
        written(tmp_path / "mine.jsonl", rows),
        held_out_sources=(ProblemSource(path=str(bench)),),
        rows_per_shard=7,
    )
    kept = run(tmp_path / "out", config)
    assert [row["messages"] for row in kept] == [talk(number)["messages"] for number in range(20)]
    assert [row["id"] for row in kept] == [f"mine-{number}" for number in range(1, 21)]
    facts = card(tmp_path / "out")
    assert facts["rejected"] == {"duplicate": 1, "ill_formed": 1, "near_duplicate": 1, "repetitive": 1}
    assert facts["decontamination"]["dropped"] == 1
    assert facts["decontamination"]["examples"] == ["nine brown foxes jump over the lazy dog at noon"]
    assert facts["n_rows"] == 20 and facts["n_candidates"] == 25 and facts["by_source"] == {"mine": 20}
    assert facts["accept_rate"] == facts["accept_rate_by"]["language"]["en"] == 20 / 25
    assert [len(pq.read_table(file)) for file in dataset_files(tmp_path / "out")] == [7, 7, 6]
    assert facts["tokens"]["total"] == sum(-(-len(row["messages"][-1]["content"]) // 4) for row in kept)
    assert not list((tmp_path / "out" / ".work").iterdir())


def test_parquet_and_datasets_of_other_stages_give_the_same_set_as_lines(tmp_path):
    rows = [talk(number % 30) | {"id": f"r{number}", "source": "web"} for number in range(60)]
    lines = run(tmp_path / "a", settings_of(written(tmp_path / "rows.jsonl", rows)))
    assert run(tmp_path / "b", settings_of(written(tmp_path / "rows.parquet", rows))) == lines and len(lines) == 30
    assert run(tmp_path / "c", TracesConfig(filter_workers=1), {"dataset": tmp_path / "a"}) == lines


def test_the_set_does_not_depend_on_the_number_of_workers(tmp_path):
    rows = [talk(number % 25, extra=" Sure." * (number % 3)) for number in range(70)]
    config = settings_of(
        written(tmp_path / "rows.jsonl", rows), max_tokens=600, filters=FilterConfig(max_per_problem=1)
    )
    run(tmp_path / "one", config)
    run(tmp_path / "two", config.model_copy(update={"filter_workers": 2}))
    assert payload(tmp_path / "one") == payload(tmp_path / "two")


@pytest.mark.parametrize("killed_at", [1, 3, 8])
def test_a_killed_stage_judges_only_what_is_missing_and_ends_with_the_same_files(tmp_path, monkeypatch, killed_at):
    from distill import filter_pool

    config = settings_of(written(tmp_path / "rows.jsonl", [talk(number) for number in range(70)]), rows_per_shard=30)
    judged, real = [], filter_pool.judge_to_file

    def counting(filters, batch, folder):
        judged.append(batch.number)
        if len(judged) == killed_at:
            raise KeyboardInterrupt
        return real(filters, batch, folder)

    run(tmp_path / "whole", config)
    monkeypatch.setattr(filter_pool, "judge_to_file", counting)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config)
    assert not dataset_files(tmp_path / "cut")
    before = judged[:-1]
    run(tmp_path / "cut", config)
    assert sorted(before + judged[killed_at:]) == list(range(9))
    assert payload(tmp_path / "whole") == payload(tmp_path / "cut")


def test_a_damaged_batch_is_judged_again(tmp_path, monkeypatch):
    config = settings_of(written(tmp_path / "rows.jsonl", [talk(number) for number in range(20)]))
    monkeypatch.setattr(traces.shutil, "rmtree", lambda folder: None)
    run(tmp_path / "out", config)
    before = payload(tmp_path / "out")
    (tmp_path / "out" / ".work" / "judged" / "batch_0000001.parquet").write_bytes(b"torn")
    run(tmp_path / "out", config)
    assert payload(tmp_path / "out") == before


@settings(max_examples=15)
@given(st.integers(20, 2000), st.integers(0, 5))
def test_the_budget_is_kept_and_one_more_row_would_break_it(tmp_path_factory, budget, seed):
    folder = tmp_path_factory.mktemp("budget")
    file = written(folder / "rows.jsonl", [talk(number, extra=" So." * number) for number in range(20)])
    context = StageContext(name="traces", inputs={}, output=folder / "out", seed=seed)
    config = settings_of(file, max_tokens=budget, near_duplicates=NearDuplicatesConfig(threshold=None),
                         filters=FilterConfig(max_repetition=1))  # fmt: skip
    try:
        traces.run(config, context)
    except StageError as error:
        assert budget < 120 and f"max_tokens {budget} is less than the first row" in str(error)
        return
    tokens = card(folder / "out")["tokens"]
    whole = 20 - card(folder / "out")["rejected"].get("over_budget", 0)
    assert tokens["total"] <= budget and whole == card(folder / "out")["n_rows"]
    assert whole == 20 or tokens["total"] + 90 > budget  # no row has more


def test_a_limit_of_rows_is_a_sample_and_keeps_the_order(tmp_path):
    file = written(tmp_path / "rows.jsonl", [talk(number) for number in range(60)])
    kept = run(tmp_path / "out", settings_of(file, max_rows=15))
    places = [int(row["id"].removeprefix("rows-")) for row in kept]
    assert len(places) == 15 and places == sorted(places) and max(places) > 30


def test_the_students_tokenizer_counts(tmp_path):
    tokenizer = Path(__file__).parents[1] / "recipes/tiny/student_base/tokenizer.json"
    file = written(tmp_path / "rows.jsonl", [talk(1)])
    run(tmp_path / "out", settings_of(file, tokenizer=tokenizer))
    from tokenizers import Tokenizer

    answer = talk(1)["messages"][-1]["content"]
    expected = len(Tokenizer.from_file(str(tokenizer)).encode(answer, add_special_tokens=False).ids)
    assert card(tmp_path / "out")["tokens"]["total"] == expected
    assert card(tmp_path / "out")["sampling"]["tokens_counted_by"] == "the file tokenizer.json"


WORDS = st.lists(st.sampled_from(["a", "B", "天", "12", "é"]), max_size=16).map(" ".join)


@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=8))
def test_held_out_text_is_found_exactly_as_row_by_row(held_out, texts):
    index = NgramIndex(10)
    for text in held_out:
        index.add(text)
    expected = {number: found for number, text in enumerate(texts) if (found := index.first_overlap(text))}
    assert HeldOutIndex(HeldOut(held_out, frozenset())).overlaps(texts, hash_words(texts)) == expected


def test_suites_are_kept_out_like_other_benchmarks(tmp_path):
    written(tmp_path / "bench.jsonl", [{"question": f"Why do {LEAK}?", "answer": "#### 3"}])
    suite = tmp_path / "suite.yaml"
    suite.write_text("stage: evaluate\nproblems:\n  sources:\n    - {path: bench.jsonl}\n")
    (source,) = suite_sources([suite])
    assert source.path == str(tmp_path / "bench.jsonl")
    file = written(tmp_path / "rows.jsonl", [talk(1), talk(2, extra=f" {LEAK}")])
    assert len(run(tmp_path / "out", settings_of(file, suites=(suite,)))) == 1
    suite.write_text("stage: evaluate\n")
    with pytest.raises(StageError, match=r"is no suite with problems\.sources"):
        run(tmp_path / "other", settings_of(file, suites=(suite,)))


@pytest.mark.slow
def test_a_checkpoint_is_sampled_and_a_killed_stage_samples_nothing_twice(ray_session, llama_checkpoint, tmp_path):
    teacher = taught(llama_checkpoint, tmp_path / "teacher", "chat", "\n\\boxed{{{answer}}}")
    config = TracesConfig(
        problems=problems_file(tmp_path),
        prompts=8,
        samples_per_prompt=2,
        chunk_prompts=3,
        rollout=RolloutConfig(max_new_tokens=64),
        generator=GeneratorConfig(replicas=1, max_slots=8),
    )

    def kill(event):
        if event["step"] == 5:  # inside the second chunk
            raise KeyboardInterrupt

    inputs = {"policy": teacher}
    kept = run(tmp_path / "whole", config, inputs)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config, inputs, kill)
    (done,) = (tmp_path / "cut" / ".work").glob("prompts_*.parquet")
    before = done.stat().st_mtime_ns
    assert run(tmp_path / "cut", config, inputs) == kept and done.stat().st_mtime_ns == before
    assert payload(tmp_path / "whole") == payload(tmp_path / "cut")
    assert {row["messages"][0]["content"] for row in kept} == set(KNOWN) - set(TRUTH)
    assert card(tmp_path / "whole")["sampling"]["tokens_counted_by"].startswith("the policy's tokenizer")


# --- errors ---


def test_rows_come_from_exactly_one_place(tmp_path):
    file = written(tmp_path / "rows.jsonl", [talk(1)])
    endpoint = {"url": "http://127.0.0.1:1/v1", "model": "m"}
    with pytest.raises(ValidationError, match="endpoint and source are both given"):
        TracesConfig(source=(file,), endpoint=TeacherConfig(**endpoint))
    with pytest.raises(StageError, match=r"exactly one of .*; given: none"):
        run(tmp_path / "out", TracesConfig())
    with pytest.raises(StageError, match="given: the input policy and endpoint"):
        run(tmp_path / "out", TracesConfig(endpoint=TeacherConfig(**endpoint)), {"policy": tmp_path})
    with pytest.raises(ValidationError, match="samples_per_prompt would be ignored"):
        TracesConfig(source=(file,), samples_per_prompt=2)


def test_a_bad_line_is_named(tmp_path):
    file = written(tmp_path / "rows.jsonl", [talk(1), {"messages": "?"}])
    for workers in (1, 2):
        with pytest.raises(StageError, match=r"rows\.jsonl line 2: messages are missing or malformed"):
            run(tmp_path / "out", settings_of(file).model_copy(update={"filter_workers": workers}))
    file.write_text("{\n")
    with pytest.raises(StageError, match=r"rows\.jsonl line 1: not valid UTF-8 JSON"):
        run(tmp_path / "new", settings_of(file))


def test_nothing_left_says_why(tmp_path):
    file = written(tmp_path / "rows.jsonl", [talk(number, extra=" wait no" * 40) for number in range(3)])
    with pytest.raises(StageError, match=r"none of 3 rows passed \(repetitive 3\)"):
        run(tmp_path / "out", settings_of(file))


def test_a_budget_below_one_row_says_how_long_rows_are(tmp_path):
    file = written(tmp_path / "rows.jsonl", [talk(1), talk(2)])
    with pytest.raises(StageError, match=r"max_tokens 3 is less than .* the shortest of 2 rows has \d+ tokens"):
        run(tmp_path / "out", settings_of(file, max_tokens=3))


# --- a teacher behind a server ---


def teaches(number, body):
    """Every second sample of a sum is right; what is said depends on prompt and seed alone."""
    a, b = (int(part.strip("? ")) for part in body["messages"][-1]["content"].removeprefix("What is").split("+"))
    wrong = body["seed"] % 2
    words = " ".join(f"{part}{chr(97 + (body['seed'] + 3 * i) % 26)}" for i, part in enumerate(PARTS))
    return said(f"It is \\boxed{{{a + b + wrong}}}.", f"We think of {words} and add.")


@pytest.fixture
def sums(tmp_path):
    rows = [
        {"question": f"What is {number} + {number + 1}?", "answer": f"#### {2 * number + 1}"} for number in range(6)
    ]
    return ProblemsConfig(sources=(ProblemSource(path=str(written(tmp_path / "sums.jsonl", rows))),))


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr("distill.endpoint_sampler.PAUSE_S", 0.0)


def seeds(server) -> list[int]:
    return [body["seed"] for *_, body in server.asked]


def taught_by(server, problems, **keys) -> TracesConfig:
    teacher = {"url": server.url, "model": "teacher", "concurrency": 2} | keys.pop("endpoint", {})
    given = {"prompts": 6, "samples_per_prompt": 3, "chunk_prompts": 4, "rollout": RolloutConfig(max_new_tokens=50)}
    return TracesConfig(endpoint=TeacherConfig(**teacher), problems=problems, **given | keys)


def test_a_teacher_behind_a_server_is_sampled_and_verified(ray_session, tmp_path, sums, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "s3cret")
    server = Server(teaches)
    kept = run(tmp_path / "out", taught_by(server, sums, endpoint={"api_key_env": "TEACHER_KEY"}))
    assert len(server.asked) == 18 and {key for _, key, _ in server.asked} == {"Bearer s3cret"}
    asked = [body for *_, body in server.asked]
    assert len(set(seeds(server))) == 18
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in asked} == {("teacher", 50, 1.0)}
    right = [body for body in asked if body["seed"] % 2 == 0]
    assert len(kept) == len(right) > 0 and len({row["id"] for row in kept}) == len(kept)
    for row in kept:
        answer = row["messages"][-1]["content"]
        assert answer.startswith("<think>\nWe think of") and "</think>\n\nIt is \\boxed{" in answer
    facts = card(tmp_path / "out")
    assert facts["rejected"] == {"incorrect": 18 - len(right)} and facts["by_source"] == {"teacher": len(kept)}
    assert facts["sampling"]["tokens_counted_by"] == "a quarter of the UTF-8 bytes"
    assert "s3cret" not in "".join(path.read_text(errors="ignore") for path in (tmp_path / "out").rglob("*.json*"))


def test_no_answer_of_a_server_is_asked_for_twice(ray_session, tmp_path, sums):
    server = Server(teaches)
    run(tmp_path / "whole", taught_by(server, sums))
    down = Server(lambda number, body: teaches(number, body) if number <= 8 else (503, "{}"))
    config = taught_by(down, sums, endpoint={"retries": 0})
    with pytest.raises(StageError, match=r"endpoint: \d+ of 12 answers did not come.*kept") as caught:
        run(tmp_path / "cut", config)
    assert caught.value.retry
    back = Server(teaches)
    run(tmp_path / "cut", taught_by(back, sums))
    assert Counter(seeds(down)[:8] + seeds(back)) == Counter(seeds(server))
    for name in (path.name for path in dataset_files(tmp_path / "whole")):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert card(tmp_path / "whole")["n_rows"] == card(tmp_path / "cut")["n_rows"]


def test_busy_servers_are_asked_again_and_refusals_are_counted(ray_session, tmp_path, sums):
    replies = {1: (503, "{}"), 2: (429, "{}"), 3: (400, '{"error": "too long"}'), 4: said("")}
    server = Server(lambda number, body: replies.get(number) or teaches(number, body))
    config = taught_by(server, sums, chunk_prompts=6, endpoint={"failed_limit": 0.1})
    run(tmp_path / "out", config)
    assert len(server.asked) == 18 + 3
    assert card(tmp_path / "out")["rejected"]["no_answer"] == 1


@pytest.mark.parametrize(("status", "says"), [(401, "endpoint.api_key_env"), (404, "endpoint.model")])
def test_what_no_retry_can_mend_stops_at_once(ray_session, tmp_path, sums, status, says):
    server = Server(lambda number, body: (status, "{}"))
    with pytest.raises(StageError, match=f"^endpoint: .*status {status}.*{says}"):
        run(tmp_path / "out", taught_by(server, sums))
    assert len(server.asked) < 6


def test_a_missing_key_is_said_before_anything_starts(tmp_path, sums, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    config = taught_by(Server(teaches), sums, endpoint={"api_key_env": "NO_KEY"})
    started = time.monotonic()
    with pytest.raises(StageError, match=r"^endpoint: the environment variable NO_KEY"):
        run(tmp_path / "out", config)
    assert not (tmp_path / "out").exists() and time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply("7", "3 + 4"), "<think>\n3 + 4\n</think>\n\n7"),
        (Reply("<think>\n3 + 4\n</think>\n\n7"), "<think>\n3 + 4\n</think>\n\n7"),
        (Reply("3 + 4\n</think>\n\n7"), "<think>\n3 + 4\n</think>\n\n7"),
        (Reply("7"), "7"),
    ],
)
def test_answers_are_laid_out_alike_whatever_the_server_does_with_the_reasoning(reply, text):
    assert text_of(reply) == text


@pytest.mark.parametrize("suite", sorted(Path("recipes/suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_can_be_kept_out(suite):
    sources = list(suite_sources([suite]))
    assert sources and all(isinstance(source, ProblemSource) for source in sources)

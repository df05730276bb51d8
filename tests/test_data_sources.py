"""Reading problems from files, folders and `datasets`, and what a user is told when that fails."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config import Columns, ProblemSource
from data.problems import Problem
from data.schemas import SourceError, detect_language, last_boxed, problem_from_row, problem_to_row
from data.sources import check_first_row, read_problems, shuffled
from data.write import SFT_SCHEMA, DataCard, count_by, write_dataset
from rewards.accuracy import Accuracy

GSM8K = {
    "question": "Ann has 1,200 eggs and sells 2. How many are left?",
    "answer": "1200-2=<<1200-2=1198>>1198\n#### 1,198",
}
MATH = {
    "problem": "Half of 7?",
    "solution": "It is \\boxed{x}, no, \\boxed{\\frac{7}{2}}.",
    "level": "Level 3",
    "type": "Algebra",
}
MATH_500 = {
    "problem": "1+1?",
    "solution": "so",
    "answer": "2",
    "subject": "Algebra",
    "level": 1,
    "unique_id": "t/1",
}
AIME = {"ID": "2024-I-1", "Year": 2024, "Problem": "Find it.", "Answer": "025"}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path, **keys):
    return list(read_problems(ProblemSource(path=str(path), **keys)))


@pytest.mark.parametrize(
    ("row", "answer", "domain"),
    [(GSM8K, "1198", "gsm8k"), (MATH, "\\frac{7}{2}", "math"), (MATH_500, "2", "math"), (AIME, "25", "aime")],
)
def test_known_schemas_are_recognised(tmp_path, row, answer, domain):
    [problem] = read(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert (problem.ground_truth, problem.domain, problem.checker, problem.language) == (answer, domain, "math", "en")
    assert problem.question in row.values()


def test_ids_and_metadata_come_from_the_row_where_it_has_them(tmp_path):
    [problem] = read(write_jsonl(tmp_path / "a.jsonl", [MATH_500]))
    assert problem.id == "t/1"
    assert problem.metadata == {"solution": "so", "level": 1, "subject": "Algebra"}
    [problem] = read(write_jsonl(tmp_path / "b.jsonl", [AIME]))
    assert problem.id == "2024-I-1"
    first, second = read(write_jsonl(tmp_path / "c.jsonl", [GSM8K, GSM8K]), name="gsm")
    assert (first.id, second.id) == ("gsm-1", "gsm-2")


def test_gzip_parquet_and_folders_read_like_plain_jsonl(tmp_path):
    rows = [GSM8K, {**GSM8K, "question": "Another?"}]
    plain = write_jsonl(tmp_path / "train.jsonl", rows)
    with gzip.open(tmp_path / "zipped.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    expected = read(plain, name="x")
    assert read(tmp_path / "zipped.jsonl.gz", name="x") == expected
    assert read(tmp_path / "rows.parquet", name="x") == expected
    assert read(tmp_path, name="x") == expected


def test_a_folder_datasets_understands_is_read_through_it(tmp_path):
    (tmp_path / "train.csv").write_text("question,answer\nHow many?,#### 3\n")
    [problem] = read(tmp_path)
    assert problem.ground_truth == "3"


def test_hub_names_stream_with_subset_split_and_revision(monkeypatch):
    calls = []

    def load_dataset(path, subset, **keys):
        calls.append((path, subset, keys))
        return iter([GSM8K])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    [problem] = read("openai/gsm8k", subset="main", split="test", revision="abc")
    assert calls == [("openai/gsm8k", "main", {"split": "test", "revision": "abc", "streaming": True})]
    assert problem.id == "gsm8k-test-1"


def test_hub_failures_are_one_sentence(monkeypatch):
    def load_dataset(*args, **keys):
        raise ConnectionError("no network\nlong trace")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        SourceError, match=r"nobody/none: `datasets` cannot read split train.*no network.*give the folder"
    ):
        read("nobody/none")


def test_own_columns(tmp_path):
    path = write_jsonl(
        tmp_path / "own.jsonl", [{"q": "3 选 1？", "a": {"x": 1}, "lang": "ZH", "kind": "key_value", "no": 7}]
    )
    columns = Columns(question="q", answer="a", language="lang", checker="kind", id="no")
    [problem] = read(path, row_schema="columns", columns=columns, domain="stem")
    assert problem == Problem(
        id="7",
        messages=({"role": "user", "content": "3 选 1？"},),
        ground_truth='{"x": 1}',
        checker="key_value",
        domain="stem",
        language="zh",
    )


def test_a_struct_or_list_is_no_answer_of_a_checker_that_reads_text(tmp_path):
    rows = [{"prompt": "3 * 7?", "reward_model": {"ground_truth": "21"}}]  # as VERL writes them
    path = tmp_path / "verl.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    columns = Columns(question="prompt", answer="reward_model")
    expected = (
        r'verl.parquet row 1: column reward_model holds an object .*"21".* but checker math reads text; write it as'
    )
    with pytest.raises(SourceError, match=expected):
        read(path, row_schema="columns", columns=columns)
    [problem] = read(path, row_schema="columns", columns=columns, checker="own")  # another may read JSON
    assert problem.ground_truth == '{"ground_truth": "21"}'


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**MATH_500, "answer": ["2"]}, "answer"),
        ({**MATH_500, "problem": [{"role": "user", "content": "1+1?"}]}, "problem"),
        ({**GSM8K, "question": {"text": "1+1?"}}, "question"),
    ],
)
def test_lists_and_objects_never_become_text(tmp_path, row, column):
    with pytest.raises(
        SourceError, match=rf"line 1: column {column} holds (a list|an object) .*, but a text belongs there"
    ):
        read(write_jsonl(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize(
    ("tests", "fault"),
    [
        (
            {"tests": [{"input": "3 4", "output": "7"}]},
            "unknown key tests; known are language, stdio, calls, unit_tests",
        ),
        ({"stdio": [{"output": "7"}]}, r"stdio\.0\.input: Field required"),
        ({"stdio": [{"stdin": "3 4", "output": "7"}]}, r"unknown key stdio\.0\.stdin; known are input, output"),
        (
            {"stdio": [{"input": "3 4", "output": "7", "name": "a"}]},
            r"unknown key stdio\.0\.name; known are input, output",
        ),
        ({"stdio": []}, "there are none; known are stdio, calls and unit_tests"),
        ("print(7)", "Expecting value"),
    ],
)
def test_tests_of_programs_are_checked_when_they_are_read(tmp_path, tests, fault):
    good = {"question": "Add.", "answer": {"stdio": [{"input": "3 4", "output": "7"}]}}
    path = write_jsonl(tmp_path / "code.jsonl", [good, {"question": "Add.", "answer": tests}])
    with pytest.raises(SourceError, match=rf"code\.jsonl line 2: the tests of checker code cannot be read: {fault}"):
        read(path, row_schema="columns", checker="code")
    assert len(read(path, row_schema="columns", checker="code", limit=1)) == 1


def test_own_problems_survive_parquet(tmp_path):
    problems = [
        Problem(
            id=f"p{number}",
            messages=({"role": "system", "content": "s"}, {"role": "user", "content": "计算"}),
            ground_truth="6",
            checker="math",
            domain="chain_sum",
            language="zh",
            metadata={"level": 2, "nested": {"a": [1, 2]}},
        )
        for number in range(3)
    ]
    pq.write_table(pa.Table.from_pylist([problem_to_row(problem) for problem in problems]), tmp_path / "data.parquet")
    assert read(tmp_path) == problems
    assert [problem_from_row(json.loads(json.dumps(problem_to_row(problem)))) for problem in problems] == problems


def test_instruction_is_appended_to_the_last_turn(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GSM8K])
    [problem] = read(path, instruction="Put your final answer within \\boxed{}.")
    assert problem.question == GSM8K["question"] + "\nPut your final answer within \\boxed{}."


@pytest.mark.parametrize(
    ("text", "language"),
    [("计算 $x + yz + abc$ 的值，其中 \\alpha 是角", "zh"), ("What does 天 mean in English?", "en"), ("1 + 1", "en")],
)
def test_language_is_detected_by_script(text, language):
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1} then \\boxed{\\frac{a}{b}}", "\\frac{a}{b}"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\fbox{4}", "4"),
        ("no box", None),
    ],
)
def test_last_boxed_matches_braces(text, content):
    assert last_boxed(text) == content


def test_limit_and_shuffle(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{**GSM8K, "question": f"Q{number}?"} for number in range(50)])
    in_order = read(path)
    shuffled_once = read(path, shuffle_seed=1)
    assert [problem.question for problem in in_order] == [f"Q{number}?" for number in range(50)]
    assert shuffled_once != in_order and sorted(shuffled_once, key=lambda p: p.id) == sorted(
        in_order, key=lambda p: p.id
    )
    assert read(path, shuffle_seed=1) == shuffled_once != read(path, shuffle_seed=2)
    assert read(path, shuffle_seed=1, limit=5) == shuffled_once[:5]


@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 5))
def test_buffered_shuffle_loses_and_invents_nothing(count, buffer_size, seed):
    out = list(shuffled(range(count), seed=seed, buffer_size=buffer_size))
    assert sorted(out) == list(range(count))
    assert all(item < place + buffer_size + 1 for place, item in enumerate(out))


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GSM8K) + "\nbroken\n")
    problems = read_problems(ProblemSource(path=str(path)))
    assert next(problems).ground_truth == "1198"
    with pytest.raises(SourceError, match="line 2"):
        next(problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}\n", r"line 1: the row fits no known schema \(columns found: \(none\)\)"),
        ('\n{"question": "a", "answer": "b"}\n', r"line 2: .*columns found: answer, question.*row_schema: columns"),
        ('{"problem": "a", "answer": "1", "level": 1, "year": 2024}\n', "line 1: the row fits math and aime"),
        (
            json.dumps(GSM8K) + '\n{"question": "a"}\n',
            "line 2: column answer is missing; found columns question,",
        ),
        (json.dumps(GSM8K) + '\n{"question": "a", "answer": "5"}\n', "line 2: the answer has no '#### 18'"),
        (json.dumps(MATH) + '\n{"problem": "a", "solution": "b"}\n', "line 2: there is no answer"),
        ('{"Problem": "a", "Answer": "1000"}\n', "line 1: the answer '1000' is not a whole number from 0 to 999"),
        ("[1]\n", "line 1: expected a JSON object, found list"),
        ("[" * 100_000 + "\n", "line 1: not valid UTF-8 JSON"),
        (json.dumps(MATH_500) + "\n" + json.dumps(MATH_500) + "\n", "line 2: the id 't/1' appears twice"),
    ],
)
def test_bad_rows_name_file_line_and_remedy(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(SourceError, match=f"bad.jsonl {message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_bad_rows_can_be_skipped_with_a_warning(tmp_path, caplog):
    path = write_jsonl(tmp_path / "a.jsonl", [GSM8K, {"question": "a"}, GSM8K])
    assert [problem.id for problem in read(path, name="a", skip_bad_rows=True)] == ["a-1", "a-3"]
    assert "skipped 1 bad rows" in caplog.text and "line 2" in caplog.text


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: not a readable parquet file"):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(GSM8K).encode() * 1000)[:-20])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz: broken gzip data"):
        read(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(SourceError, match="unknown file type"):
        read(tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(SourceError, match=r"b\.jsonl line 1: not valid UTF-8"):
        read(tmp_path / "b.jsonl")
    with pytest.raises(SourceError, match="no such file or folder"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(SourceError, match="no such file or folder"):
        read("missing.jsonl")


def test_column_mapping_needs_its_schema():
    with pytest.raises(ValueError, match="row_schema: columns"):
        ProblemSource(path="a", columns=Columns(question="q"))


def test_dataset_is_written_whole_or_not_at_all(tmp_path):
    row = {"id": "a", "messages": [{"role": "user", "content": "hi"}], "domain": "d", "language": "en", "source": "s"}
    with pytest.raises(ValueError, match="counts 2 rows, but there are 1"):
        write_dataset(tmp_path, [row], DataCard(n_rows=2))
    with pytest.raises(ValueError, match="row 1 has columns"):
        write_dataset(tmp_path, [{"id": "a"}], DataCard(n_rows=1))
    assert not (tmp_path / "data.parquet").exists()
    write_dataset(tmp_path, [row], DataCard(n_rows=1, by_domain=count_by([row], "domain")))
    assert pq.read_table(tmp_path / "data.parquet").to_pylist() == [row]
    assert pq.read_schema(tmp_path / "data.parquet") == SFT_SCHEMA
    assert json.loads((tmp_path / "data_card.json").read_text())["by_domain"] == {"d": 1}


def test_prompts_without_answers_are_for_reward_models(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me about tea."}]
    rows = [
        {"prompt": "写一首关于大海的诗。", "rubric": "It names the sea."},
        {"prompt": turns, "id": "tea", "domain": "safety", "language": "en"},
    ]
    sea, tea = read(write_jsonl(tmp_path / "prompts.jsonl", rows))
    assert (sea.domain, sea.language, sea.checker, sea.ground_truth) == ("general", "zh", "none", "")
    assert sea.metadata == {"rubric": "It names the sea."} and sea.question == rows[0]["prompt"]
    assert tea.messages == tuple(turns) and (tea.id, tea.domain) == ("tea", "safety")
    score = Accuracy()(sea, "<think>a</think>b")
    assert score.value is None and "except_domains: [general]" in score.detail
    with pytest.raises(SourceError, match="column prompt is empty"):
        read(write_jsonl(tmp_path / "empty.jsonl", [{"prompt": " "}]))
    answered = write_jsonl(tmp_path / "answers.jsonl", [{"prompt": "What is 1 + 1?", "gold": "2"}])
    with pytest.raises(SourceError, match="fits no known schema"):  # perhaps answers: someone should say
        read(answered)
    assert read(answered, row_schema="prompts")[0].checker == "none"


def test_the_first_row_alone_is_checked(tmp_path, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GSM8K) + "\nno JSON\n")
    for named in (path, tmp_path):
        check_first_row(ProblemSource(path=str(named), shuffle_seed=1))
    path.write_text('{"text": "?"}\n')
    with pytest.raises(SourceError, match=r"train\.jsonl line 1: the row fits no known schema"):
        check_first_row(ProblemSource(path=str(tmp_path)))
    check_first_row(ProblemSource(path=str(path), skip_bad_rows=True))
    path.write_text("")
    with pytest.raises(SourceError, match="there are no rows"):
        check_first_row(ProblemSource(path=str(path)))
    monkeypatch.setattr("datasets.load_dataset", None)
    check_first_row(ProblemSource(path="openai/gsm8k"))


def test_gzip_data_with_a_damaged_middle_is_one_sentence(tmp_path):
    packed = bytearray(gzip.compress(json.dumps(GSM8K).encode() * 50))
    packed[20:30] = bytes(10)
    (tmp_path / "train.jsonl.gz").write_bytes(packed)
    with pytest.raises(SourceError, match=r"train\.jsonl\.gz: broken gzip data"):
        read(tmp_path)

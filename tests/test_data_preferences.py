"""Preference records, and reading them from the files of others."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config import PreferenceSource
from data.instructions import instruction_problem
from data.preference_sources import Tally, read_pairs, read_ranked, read_safety_labels
from data.preferences import (
    SCHEMAS,
    BadRecord,
    PreferencePair,
    RankedResponses,
    SafetyLabel,
    about,
    from_row,
    preference_row,
)
from data.schemas import SourceError

ULTRAFEEDBACK = {
    "instruction": "Name a fruit.",
    "completions": [
        {"response": "A plum.", "overall_score": 8.5, "fine-grained_score": 4.5},
        {"response": "No.", "overall_score": 10, "fine-grained_score": 1.25},
        {"response": "Fruit is nice.", "overall_score": 5, "fine-grained_score": None},
    ],
}
BINARIZED = {
    "prompt": "Name a fruit.",
    "chosen": [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A plum."}],
    "rejected": [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "No."}],
    "score_chosen": 8.0,
    "score_rejected": 3.5,
}
HELPSTEER2_PREFERENCE = {
    "prompt": "Hi<extra_id_1>Assistant\nHello!<extra_id_1>User\nName a fruit.",
    "response_1": "No.",
    "response_2": "A plum.",
    "preference_strength": 2,
}
USER, CHOSEN, REJECTED = (
    {"role": role, "content": text}
    for role, text in [("user", "Name a fruit."), ("assistant", "A plum."), ("assistant", "No.")]
)
TRL = {"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]}  # its conversational layout
PLAIN = {"prompt": "Name a fruit.", "chosen": "A plum.", "rejected": "No."}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def source(path, **keys):
    return PreferenceSource(path=str(path), **keys)


@pytest.mark.parametrize(
    ("row", "gap", "rejected"),
    [
        (PLAIN, None, "No."),
        (BINARIZED, 4.5, "No."),
        (ULTRAFEEDBACK, 3.25, "No."),
        (HELPSTEER2_PREFERENCE, 2, "No."),
        (TRL, None, "No."),
        ({"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, None, "No."),
        ({"prompt": [USER], "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, None, "No."),
    ],
)
def test_layouts_are_recognised_by_their_columns(tmp_path, row, gap, rejected):
    if row is ULTRAFEEDBACK:
        row = {**row, "completions": row["completions"][:2]}
    [pair] = read_pairs(source(write(tmp_path / "set.jsonl", [row])))
    assert (pair.prompt, pair.chosen, pair.rejected, pair.gap) == ("Name a fruit.", "A plum.", rejected, gap)
    assert (pair.id, pair.source, pair.language) == ("set-1", "set", "en")


def test_earlier_turns_become_the_history(tmp_path):
    [pair] = read_pairs(source(write(tmp_path / "set.jsonl", [HELPSTEER2_PREFERENCE])))
    assert [turn["content"] for turn in pair.messages] == ["Hi", "Hello!", "Name a fruit."]
    assert [turn["role"] for turn in pair.messages] == ["user", "assistant", "user"]


def test_turns_of_a_trl_row_are_the_prompts_and_then_the_responses(tmp_path):
    system, hello = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "What?"}
    again = {"role": "user", "content": "说一种水果。"}
    row = {"prompt": [system, USER], "chosen": [hello, again, CHOSEN], "rejected": [hello, again, REJECTED]}
    [pair] = read_pairs(source(write(tmp_path / "set.jsonl", [row])))
    assert [*pair.messages] == [system, USER, hello, again]
    assert (pair.chosen, pair.rejected) == ("A plum.", "No.")


def test_the_language_is_found_in_lists_of_turns_too(tmp_path):
    asked = {"role": "user", "content": "说一种水果。"}
    rows = [{**TRL, "prompt": [asked]}, {**TRL, "prompt": None, "chosen": [asked, CHOSEN]}]
    assert [pair.language for pair in read_pairs(source(write(tmp_path / "set.jsonl", rows)))] == ["zh", "zh"]


@pytest.mark.parametrize("prompt", [[], [CHOSEN], ["Name a fruit."], [{"role": "user"}]])
def test_a_prompt_that_is_no_conversation_is_refused(tmp_path, prompt):
    path = write(tmp_path / "set.jsonl", [TRL, {**TRL, "prompt": prompt}])
    tally = Tally()
    assert len(list(read_pairs(source(path, bad_row_limit=1.0), tally))) == tally.refused.total() == 1


def test_helpsteer2_rows_of_one_prompt_are_one_record(tmp_path):
    rows = [
        {"prompt": prompt, "response": response, "helpfulness": score, "verbosity": 1}
        for prompt, response, score in [("a?", "x", 4), ("a?", "y", 1), ("b?", "x", 2), ("b?", "z", 2)]
    ]
    path = write(tmp_path / "set.jsonl", rows)
    first, second = read_ranked(source(path))
    assert (first.responses, first.truth, first.best) == (("x", "y"), (4, 1), 0)
    assert second.best is None
    tally = Tally()
    [pair] = read_pairs(source(path), tally)
    assert (pair.chosen, pair.gap) == ("x", 3)
    assert tally.refused == {"tied": 1} and "line 3" in tally.examples["tied"]


@pytest.mark.parametrize(
    ("label", "safe"),
    [
        ({"safe": True}, True),
        ({"is_safe": False, "category": {}}, False),
        ({"label": "Unsafe"}, False),
        ({"response_harm_label": "unharmful"}, True),
    ],
)
def test_safety_labels_in_the_words_of_several_sets(tmp_path, label, safe):
    path = write(tmp_path / "set.jsonl", [{"prompt": "q", "response": "r", **label}])
    [found] = read_safety_labels(source(path))
    assert found.safe is safe


def test_rows_without_a_label_are_counted_and_are_no_fault(tmp_path):
    """WildGuard's rows of prompts alone."""
    row = {"prompt": "q", "response": "r", "response_harm_label": "harmful"}
    rows = [row, *[{**row, "response": None, "response_harm_label": None}] * 9]
    tally = Tally()
    [label] = read_safety_labels(source(write(tmp_path / "set.jsonl", rows), bad_row_limit=0.0), tally)
    assert not label.safe and tally.refused == {"unlabelled": 9} and "line 2: there is no label" in str(tally.examples)
    with pytest.raises(SourceError, match=r"there are no safety labels: 9 unlabelled"):
        list(read_safety_labels(source(write(tmp_path / "none.jsonl", rows[1:]))))


def test_a_tally_of_several_sources_lends_none_of_them_its_rows(tmp_path):
    good, bad = (
        write(tmp_path / "good.jsonl", [PLAIN] * 98),
        write(tmp_path / "bad.jsonl", [PLAIN, {**PLAIN, "chosen": ""}]),
    )
    tally = Tally()
    assert len(list(read_pairs(source(good), tally))) == 98
    with pytest.raises(SourceError, match=r"bad.jsonl: 50% of the rows"):
        list(read_pairs(source(bad), tally))
    assert tally.kept == 99 and tally.refused == {"empty": 1}


def test_bad_rows_are_left_out_counted_and_named(tmp_path):
    bad = [
        {**PLAIN, "chosen": " "},
        {**PLAIN, "rejected": "A plum. "},
        {**PLAIN, "chosen": 3},
        {**PLAIN, "rejected": "A plum."},
    ]
    path = write(tmp_path / "set.jsonl", [PLAIN, *bad])
    tally = Tally()
    assert len(list(read_pairs(source(path, bad_row_limit=0.8), tally))) == 1
    assert tally.refused == {"empty": 1, "identical": 2, "malformed": 1}
    assert tally.examples["empty"].endswith("line 2: chosen is empty")
    with pytest.raises(SourceError, match=r"80% of the rows .* 2 identical .*line 3.*bad_row_limit"):
        list(read_pairs(source(path)))


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = write(tmp_path / "set.jsonl", [{"prompt": "q", "response": "r", "safe": True}])
    with pytest.raises(SourceError, match="line 1: rows of layout safety hold no preference pairs"):
        list(read_pairs(source(path)))
    with pytest.raises(SourceError, match=r"fits no known layout .*question.*helpsteer2"):
        list(read_pairs(source(write(tmp_path / "other.jsonl", [{"question": "q", "answer": "a"}]))))
    with pytest.raises(SourceError, match="no preference pairs: 1 identical"):
        list(read_pairs(source(write(tmp_path / "same.jsonl", [{**PLAIN, "rejected": "A plum."}]))))


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n{broken\n")
    stream = read_pairs(source(path))
    assert next(stream).chosen == "A plum."
    with pytest.raises(SourceError, match="line 2"):
        next(stream)


texts = st.text(min_size=1).filter(str.strip)


@given(prompt=texts, first=texts, second=texts, gap=st.none() | st.floats(0.01, 2))
def test_pairs_survive_parquet_or_are_refused(tmp_path_factory, prompt, first, second, gap):
    make = {"id": "1", "prompt": prompt, "chosen": first, "rejected": second, "gap": gap}
    if first.strip() == second.strip():
        with pytest.raises(BadRecord):
            PreferencePair(**make)
        return
    pair = PreferencePair(**make)
    assert from_row(PreferencePair, preference_row(pair)) == pair


def test_our_rows_are_read_back_with_the_problem_they_were_made_from(tmp_path):
    problem = instruction_problem(3, "train", "zh", 0)
    records = [
        PreferencePair(id="p", chosen="好", rejected="不", gap=1.5, source="judge:rule", **about(problem)),
        RankedResponses(id="r", responses=("a", "b", "c"), truth=(0.5, 0.25, 1.0), source="file", **about(problem)),
        SafetyLabel(id="s", response="<think>x</think>y", safe=False, source="human", **about(problem)),
    ]
    for record, read in zip(records, (read_pairs, read_ranked, read_safety_labels), strict=True):
        folder = tmp_path / record.id
        folder.mkdir()
        table = pa.Table.from_pylist([preference_row(record)], SCHEMAS[type(record)])
        pq.write_table(table, folder / "data.parquet")
        assert list(read(source(folder))) == [record]
        assert record.problem == problem


def test_scores_and_responses_must_match():
    with pytest.raises(BadRecord, match="2 scores for 3 responses"):
        RankedResponses(id="r", prompt="q", responses=("a", "b", "c"), truth=(1.0, 2.0))
    with pytest.raises(BadRecord, match="not a finite number"):
        RankedResponses(id="r", prompt="q", responses=("a",), truth=(float("nan"),))

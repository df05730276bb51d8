"""Checkable instructions: each kind, the share, and what dumping text earns."""

import json

import pytest

from data.problems import Problem
from rewards.accuracy import Accuracy
from rewards.instruction import KINDS, check_instruction
from rewards.reward import Verdict


def problem(*checks) -> Problem:
    truth = json.dumps({"checks": list(checks)})
    return Problem(id="p", messages=(), ground_truth=truth, checker="instruction", domain="general", language="en")


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CASES = [
    ({"kind": "one_line"}, "A river.", "A\nriver."),
    ({"kind": "use_word", "word": "river"}, "The River flows.", "The rivers flow."),
    ({"kind": "use_word", "word": "河"}, "这条河很长。", "这条江很长。"),
    ({"kind": "avoid_word", "word": "river"}, "The stream flows.", "The river flows."),
    ({"kind": "max_words", "n": 3}, "One two three.", "One two three four."),
    ({"kind": "max_words", "n": 3}, "三个字。", "四个字了。"),
    ({"kind": "min_words", "n": 3}, "One two three.", "One two."),
    ({"kind": "n_items", "n": 2}, "- one\n- two", "- one\n- two\n- three"),
    ({"kind": "n_items", "n": 2}, "1. one\n2. two", "one, two"),
    ({"kind": "language", "code": "zh"}, "今天天气很好", "The weather is fine"),
    ({"kind": "starts_with", "text": "Dear"}, "Dear friend", "My dear friend"),
    ({"kind": "ends_with", "text": "."}, "Yes.", "Yes"),
    ({"kind": "n_words", "n": 2}, "Two words.", "Not two words."),
    ({"kind": "n_lines", "n": 2}, "one\n\ntwo", "one"),
    ({"kind": "max_lines", "n": 2}, "one\ntwo", "one\ntwo\nthree"),
    ({"kind": "n_sentences", "n": 2}, "Dr. Lee left at 3.15 today. Why?", "One. Two. Three."),
    ({"kind": "n_sentences", "n": 2}, "天气很好。我们走吧！", "天气很好。"),
    ({"kind": "min_sentences", "n": 2}, "One. Two", "One, two."),
    ({"kind": "max_sentences", "n": 1}, "Only one!", "One. Two."),
    ({"kind": "n_paragraphs", "n": 2}, "one\ntwo\n\nthree", "one\ntwo"),
    ({"kind": "n_sections", "marker": "Section", "n": 2}, "Section 1\na\n**Section 2**\nb", "Section 1\na"),
    ({"kind": "word_times", "word": "tea", "n": 2}, "Tea, more tea.", "Tea, tea, tea."),
    ({"kind": "min_word_times", "word": "tea", "n": 2}, "Tea, more tea.", "Tea and steam."),
    ({"kind": "max_word_times", "word": "tea", "n": 1}, "Tea and steam.", "Tea, more tea."),
    ({"kind": "use_words", "words": ["sun", "moon"]}, "The moon, then the sun.", "The moon."),
    ({"kind": "avoid_words", "words": ["sun", "moon"]}, "The sunset.", "The moon."),
    ({"kind": "min_letter_times", "letter": "z", "n": 2}, "Zigzag buzz", "Zig"),
    ({"kind": "max_letter_times", "letter": "z", "n": 1}, "Zig", "Zigzag"),
    ({"kind": "min_capital_words", "n": 1}, "This is BIG.", "This is Big."),
    ({"kind": "max_capital_words", "n": 1}, "This is BIG.", "THIS is BIG."),
    ({"kind": "no_commas"}, "One and two", "One, two"),
    ({"kind": "no_commas"}, "一和二", "一，二"),
    ({"kind": "quoted"}, '"All of it."', '"Some" of it.'),
    ({"kind": "title"}, "<<Rivers>>\nThey flow.", "<<>> They flow."),
    ({"kind": "json"}, '```json\n{"a": [1, 2]}\n```', "{'a': 1}"),
    ({"kind": "json"}, '["a"]', "[NaN, 1, 2]"),
    ({"kind": "json_schema", "schema": SCHEMA}, '{"name": "Ann", "age": 7}', '{"name": "Ann", "age": 7.5}'),
    ({"kind": "min_placeholders", "n": 2}, "Dear [name], see [place].", "Dear [name]."),
    ({"kind": "min_highlights", "n": 1}, "This *matters* now", "This * matters"),
    ({"kind": "postscript", "marker": "P.S."}, "Bye.\nP.S. Write soon", "Bye, write soon"),
    ({"kind": "one_of", "options": ["Yes", "No"]}, "yes.", "Yes and no"),
    ({"kind": "repeat", "text": "go on", "n": 2}, "go on\ngo on", "go on go on go on"),
    ({"kind": "lowercase"}, "all small", "Not all small"),
    ({"kind": "uppercase"}, "ALL BIG", "Not all big"),
    ({"kind": "uppercase"}, "A B", "123 好"),
]


def test_every_kind_has_a_case():
    assert {case[0]["kind"] for case in CASES} == set(KINDS)


@pytest.mark.parametrize(("check", "good", "bad"), CASES)
def test_kind(check, good, bad):
    assert check_instruction(problem(check), good).value == 1.0
    score = check_instruction(problem(check), bad)
    assert (score.verdict, score.value) == (Verdict.FAIL, 0.0)


def test_value_is_the_share_but_only_all_checks_pass():
    asked = problem({"kind": "one_line"}, {"kind": "use_word", "word": "river"}, {"kind": "ends_with", "text": "."})
    assert check_instruction(asked, "A river.").verdict is Verdict.PASS
    score = check_instruction(asked, "A river")
    assert (score.verdict, score.value) == (Verdict.FAIL, pytest.approx(2 / 3))


def test_dumping_words_earns_nothing():
    asked = problem({"kind": "use_word", "word": "river"})
    assert check_instruction(asked, " ".join(["dog", "sun", "river"] * 30)).value == 0.0


@pytest.mark.parametrize("final", ["", "  \n", "..."])
def test_empty_final_answer_earns_nothing(final):
    assert check_instruction(problem({"kind": "one_line"}, {"kind": "avoid_word", "word": "x"}), final).value == 0.0


def test_reasoning_is_not_read():
    accuracy = Accuracy()
    asked = problem({"kind": "use_word", "word": "river"})
    assert accuracy(asked, "<think>river</think>A stream.").value == 0.0
    assert accuracy(asked, "<think>stream</think>A river.").value == 1.0
    assert accuracy(asked, "<think>river").value == 0.0


@pytest.mark.parametrize(
    "value", ['{"name": "", "age": 7}', '{"name": "Ann"}', '{"name": "Ann", "age": -1}', '{"name": "Ann", "age": true}',
              '{"name": "Ann", "age": 7, "more": 1}', "[1, 2]", "[" * 5000]
)  # fmt: skip
def test_json_that_breaks_the_schema_fails(value):
    assert check_instruction(problem({"kind": "json_schema", "schema": SCHEMA}), value).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": ".*"},
        {"type": "text"},
        {"items": {"format": "date"}},
        {"type": ["string", "null"]},
        {"properties": 5},
        {"required": 5},
        {"required": [5]},
        {"minimum": "5"},
        {"maxLength": True},
    ],
)
def test_schema_that_is_not_understood_is_an_error_not_a_pass(schema):
    score = check_instruction(problem({"kind": "json_schema", "schema": schema}), "{}")
    assert score.verdict is Verdict.ERROR and "JSON schema" in score.detail


def test_true_is_not_one():
    check = {"kind": "json_schema", "schema": {"enum": [1]}}
    assert check_instruction(problem(check), "1").verdict is Verdict.PASS
    assert check_instruction(problem(check), "true").verdict is Verdict.FAIL


def test_deep_json_that_no_schema_looks_into_passes():
    check = {"kind": "json_schema", "schema": {"type": "array"}}
    assert check_instruction(problem(check), "[" * 600 + "1" + "]" * 600).verdict is Verdict.PASS


def test_repeating_the_question_earns_nothing():
    asked = Problem(
        id="p",
        messages=({"role": "user", "content": "Use the word river in a sentence."},),
        ground_truth='{"checks": [{"kind": "use_word", "word": "river"}]}',
        checker="instruction",
        domain="general",
        language="en",
    )
    assert check_instruction(asked, "use the word river in a sentence").value == 0.0
    assert check_instruction(asked, "The river is wide.").value == 1.0

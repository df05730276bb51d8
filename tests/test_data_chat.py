"""Reading completions: what counts as reasoning, and that it is never graded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.chat import parse_completion

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@pytest.mark.parametrize(
    ("text", "reasoning", "final", "answer"),
    [
        ("<think>r</think><answer>7</answer>", "r", "<answer>7</answer>", "7"),
        (" \n<think>\nr\n</think>\n<answer> 7 </answer>\n", "r", "<answer> 7 </answer>", "7"),
        ("<think>r</think>The answer is 7.", "r", "The answer is 7.", None),
        ("no tags", None, "no tags", None),
        ("<answer>7</answer>", None, "<answer>7</answer>", "7"),
        ("", None, "", None),
        ("<think>", None, "", None),
        ("<think>never closed <answer>7</answer>", None, "", None),
        ("r</think><answer>7</answer>", None, "<answer>7</answer>", "7"),
        ("before <think>r</think><answer>7</answer>", None, "<answer>7</answer>", "7"),
        ("</think><think>", None, "", None),
        ("<think>a<think>b</think>c</think>d", None, "d", None),
        ("<think>a</think>b<think>c</think>d", None, "d", None),
        ("<think>a</think>b<think>c <answer>7</answer>", None, "", None),
        ("<think>a<answer>1</answer></think><answer>7</answer>", "a<answer>1</answer>", "<answer>7</answer>", "7"),
        ("<think>a</think><answer>1</answer><answer>7</answer>", "a", "<answer>1</answer><answer>7</answer>", None),
        ("<think>a</think></answer>7<answer>", "a", "</answer>7<answer>", None),
        ("<think>a</think><answer>7", "a", "<answer>7", None),
        ("<think></think><answer></answer>", "", "<answer></answer>", ""),
        ("<THINK>a</THINK>b", None, "<THINK>a</THINK>b", None),
    ],
)
def test_truth_table(text, reasoning, final, answer):
    parsed = parse_completion(text)
    assert (parsed.reasoning, parsed.final, parsed.answer) == (reasoning, final, answer)


tokens = st.sampled_from([*TAGS, " ", "\n", "<", "think>"])
pieces = st.lists(st.one_of(tokens, st.text(max_size=5)), max_size=12)


@given(pieces.map("".join))
def test_never_raises_and_parts_come_from_the_text(text):
    parsed = parse_completion(text)
    assert parsed.final in text
    assert parsed.answer is None or parsed.answer in parsed.final
    assert parsed.reasoning is None or parsed.reasoning in text
    assert "</think>" not in parsed.final


@given(pieces)
def test_nothing_inside_the_reasoning_is_graded(parts):
    """Each piece gets its own mark; a mark after an open tag and before its end must not be in the final part."""
    text, inside, marks = "", False, []
    for number, part in enumerate(part for part in parts if part in TAGS[:2]):
        inside = part == "<think>"
        text += f"{part}[{number}]"
        if inside:
            marks.append(f"[{number}]")
    final = parse_completion(text).final
    assert not any(mark in final for mark in marks)

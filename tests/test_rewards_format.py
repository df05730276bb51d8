"""The two layouts, as truth tables."""

import pytest

from data.problems import Problem
from rewards.format import Format, FormatOptions
from rewards.reward import Verdict


def judge(layout, completion, checker="math"):
    problem = Problem(id="p", messages=(), ground_truth="1", checker=checker, domain="d", language="en")
    score = Format(FormatOptions(layout=layout))(problem, completion)
    assert score.value == (1.0 if score.verdict is Verdict.PASS else 0.0)
    return score.value


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        (" <think>\na\n</think>\n\n<answer> b </answer>\n", 1),
        ("<think>a</think>so <answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer>done", 0),
        ("hm <think>a</think><answer>b</answer>", 0),
        ("<think> </think><answer>b</answer>", 0),
        ("<think>a</think><answer> </answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0),
        ("<think>a<think>b</think><answer>b</answer>", 0),
        ("<think>a</think></answer>b<answer>", 0),
        ("<think>a<answer>b</answer>", 0),
        ("<think>a</think>b", 0),
        ("", 0),
    ],
)
def test_answer_tags(completion, value):
    assert judge("answer_tags", completion) == value


@pytest.mark.parametrize(
    ("completion", "with_answer", "instruction"),
    [
        (r"<think>a</think>It is \boxed{2}.", 1, 1),
        (r"<think>a</think>It is \boxed{\frac{1}{2}}.", 1, 1),
        ("<think>a</think>It is 2.", 0, 1),
        (r"<think>a</think>\boxed{1}\boxed{1}", 0, 1),
        (r"<think>\boxed{2}</think>It is 2.", 0, 1),
        (r"<think>a</think>\boxed{2", 0, 1),
        (r"<think></think>\boxed{2}", 0, 0),
        ("<think>a</think>", 0, 0),
        (r"<think>a</think><answer>\boxed{2}</answer>", 0, 0),
        (r"<think>a</think><think>\boxed{2}", 0, 0),
        (r"a</think>\boxed{2}", 0, 0),
        (r"\boxed{2}", 0, 0),
    ],
)
def test_summary(completion, with_answer, instruction):
    assert judge("summary", completion) == with_answer
    assert judge("summary", completion, checker="instruction") == instruction

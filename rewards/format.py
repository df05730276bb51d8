"""Format reward: 1 when the completion has the asked layout, else 0 (DeepSeek-R1, Sections 2.2 and 3.2.1).

answer_tags (R1-Zero)   <think> reasoning </think> <answer> answer </answer> and nothing else
summary (R1)            <think> reasoning </think> summary without tags, with one \\boxed{...} where an answer is asked
"""

from pydantic import BaseModel, Field

from data.chat import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, Layout, parse_completion
from data.problems import Problem
from rewards.math_answer import find_boxes
from rewards.reward import Score


class FormatOptions(BaseModel, extra="forbid", frozen=True):
    """Options of the format reward."""

    layout: Layout = Field(
        default="answer_tags",
        description="answer_tags: R1-Zero's think and answer tags; summary: R1's think tags and a summary.",
    )


class Format:
    """1.0 or 0.0. What is inside the reasoning and the answer does not matter, only that both are there."""

    name = "format"
    judges = frozenset({"layout"})
    Options = FormatOptions

    def __init__(self, options: FormatOptions | None = None):
        self.options = options or FormatOptions()

    def __call__(self, problem: Problem, completion: str) -> Score:
        if self.options.layout == "answer_tags":
            fault = find_answer_tags_fault(completion)
        else:
            fault = find_summary_fault(completion, needs_box=problem.checker != "instruction")
        return Score.failed(detail=fault) if fault else Score.passed(detail="layout kept")


def find_answer_tags_fault(completion: str) -> str:
    """What breaks the R1-Zero layout, or an empty string."""
    for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE):
        if completion.count(tag) != 1:
            return f"{tag} occurs {completion.count(tag)} times, not once"
    parsed = parse_completion(completion)
    if parsed.reasoning is None:
        return "the completion does not start with the reasoning"
    if not parsed.reasoning:
        return "the reasoning is empty"
    if parsed.answer is None or not (parsed.final.startswith(ANSWER_OPEN) and parsed.final.endswith(ANSWER_CLOSE)):
        return "text outside the tags"
    return "" if parsed.answer else "the answer is empty"


def find_summary_fault(completion: str, needs_box: bool) -> str:
    """What breaks the R1 layout, or an empty string."""
    parsed = parse_completion(completion)
    if parsed.reasoning is None:
        return "no single pair of think tags at the start"
    if not parsed.reasoning:
        return "the reasoning is empty"
    if not parsed.final:
        return "the summary is empty"
    if ANSWER_OPEN in completion or ANSWER_CLOSE in completion:
        return "answer tags do not belong to this layout"
    if needs_box:
        boxes, unclosed = find_boxes(parsed.final)
        if unclosed or len(boxes) != 1:
            return f"{len(boxes)} boxed answers in the summary, not one"
    return ""

"""The record every stage starts from: one problem, its ground truth and how to check it."""

from dataclasses import dataclass, field
from typing import Any

INSTRUCTION = "instruction"  # key of metadata: the line that a source adds to every question
TEXT_ANSWERS = ("math", "choice", "options")  # checkers whose ground truth is a text; others take JSON
UNCHECKED = "none"  # the checker of what no rule can judge: its answers are for reward models


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One task. Plain data: it crosses process borders as JSON and parquet.

    Example:
        Problem(
            id="chain_sum-train-17-zh",
            messages=({"role": "user", "content": "计算 3 + 8 - 5"},),
            ground_truth="6", checker="math", domain="chain_sum", language="zh",
        )
    """

    id: str
    messages: tuple[dict[str, str], ...]  # chat turns, the last one from the user
    ground_truth: str  # what `checker` needs: an answer, or JSON (countdown, instruction, ifeval, code)
    checker: (
        str  # grader name: math | list | choice | options | key_value | countdown | instruction | ifeval | code | none
    )
    domain: str  # family for metrics and reward routing: chain_sum, ..., general
    language: str  # ISO 639-1 code of the prompt: en | zh
    metadata: dict[str, Any] = field(default_factory=dict)  # e.g. {"level": 2, "index": 17}

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]

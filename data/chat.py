"""One template and one parser for rollouts, SFT and rewards.

A prompt that is rendered differently while sampling and while training shows up as generator/trainer
mismatch, so every stage renders through `render_prompt`, and every reward reads through `parse_completion`.
"""

from dataclasses import dataclass
from typing import Literal

Template = Literal["chat", "r1_zero", "plain"]
Layout = Literal["answer_tags", "summary"]

# DeepSeek-R1, arXiv:2501.12948, Table 1: the prompt of R1-Zero.
R1_ZERO_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
    "User: {question}. Assistant:"
)
# The same frame without the instruction, for base models too small to follow one.
PLAIN_PROMPT = "User: {question}\nAssistant:"

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


def render_prompt(tokenizer, messages, template: Template = "chat") -> list[int]:
    """Token ids of the prompt, up to the point where the completion starts."""
    if template == "chat":
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    frame = R1_ZERO_PROMPT if template == "r1_zero" else PLAIN_PROMPT
    text = frame.format(question=messages[-1]["content"])
    return tokenizer(text, add_special_tokens=True)["input_ids"]


@dataclass(frozen=True, slots=True)
class ParsedCompletion:
    reasoning: str | None  # inside <think>, or None when the tags are not there exactly once, in order, at the start
    final: str  # everything after </think>; the whole text when there are no think tags; "" when never closed
    answer: str | None  # inside <answer> of the final part (exactly one pair), else None


def parse_completion(text: str) -> ParsedCompletion:
    """Split a completion into reasoning, final part and tagged answer. Never raises.

    The final part starts after the *last* `</think>`, so nothing written inside the reasoning is ever graded.
    """
    opens, closes = text.count(THINK_OPEN), text.count(THINK_CLOSE)
    reasoning = None
    never_closed = text.rfind(THINK_OPEN) > text.rfind(THINK_CLOSE)
    final = "" if never_closed else text.rpartition(THINK_CLOSE)[2]
    if opens == closes == 1 and text.lstrip().startswith(THINK_OPEN):
        reasoning = text.lstrip()[len(THINK_OPEN) :].partition(THINK_CLOSE)[0].strip()
    answer = None
    if final.count(ANSWER_OPEN) == final.count(ANSWER_CLOSE) == 1:
        _, _, tail = final.partition(ANSWER_OPEN)
        if ANSWER_CLOSE in tail:
            answer = tail.partition(ANSWER_CLOSE)[0].strip()
    return ParsedCompletion(reasoning=reasoning, final=final.strip(), answer=answer)

"""One template and one parser for rollouts, SFT and rewards.

A prompt that is rendered differently while sampling and while training shows up as generator/trainer
mismatch, so every stage renders through `render_prompt`, and every reward reads through `parse_completion`.

Problems and conversations are untrusted text: a question that spells `<｜Assistant｜>` must not open a turn. Special
tokens come from the template alone; in messages their spelling is tokenised as ordinary text (`text_ids`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
_PIPED = re.compile(r"<[|｜].+[|｜]>")  # how chat formats spell their markers


class PromptError(ValueError):
    """A conversation does not fit the template. The message is one sentence that says how to mend it."""


def render_prompt(tokenizer, messages: Sequence[Mapping[str, str]], template: Template = "chat") -> list[int]:
    """Token ids of the prompt, up to the point where the completion starts.

    Raises PromptError for system turns or several turns in a template that has room for one question only, and for a
    chat template that is not there or fails.
    """
    if template == "chat":
        cut, contents = _cut_markers(tokenizer, [message["content"] for message in messages])
        turns = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        text = _chat(tokenizer, turns)
        return _ids_between_cuts(tokenizer, text, cut, add_special_tokens=False)
    if [message["role"] for message in messages] != ["user"]:
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise PromptError(f"template {template} holds one user turn, got {roles}; use template chat for conversations")
    cut, (question,) = _cut_markers(tokenizer, [messages[0]["content"]])
    frame = R1_ZERO_PROMPT if template == "r1_zero" else PLAIN_PROMPT
    return _ids_between_cuts(tokenizer, frame.format(question=question), cut, add_special_tokens=True)


def _chat(tokenizer, turns: Sequence[Mapping[str, str]]) -> str:
    if not tokenizer.chat_template:
        raise PromptError("the tokenizer has no chat template; add one, or take the template plain or r1_zero")
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of somebody else
        roles = ", ".join(turn["role"] for turn in turns)
        said = f"{type(error).__name__}: {error}"
        raise PromptError(f"the tokenizer's chat template fails at a conversation of {roles} ({said})") from error
    if not text:
        raise PromptError("the tokenizer's chat template makes nothing of a question; mend it")
    return text


def template_fault(tokenizer, template: Template) -> str | None:
    """A sentence about a tokenizer that cannot make prompts of this template, or whose completions could not end."""
    if tokenizer.eos_token_id is None:
        return "the tokenizer has no EOS token, so completions could not end; set eos_token"
    try:
        render_prompt(tokenizer, [{"role": "user", "content": "1 + 1?"}], template)
    except PromptError as error:
        return str(error)
    return None


def jinja_template(tokenizer, template: Template) -> str | None:
    """The template for programs that render chats by themselves; None where it is the tokenizer's own.

    Raises PromptError when the tokenizer has none, or when it would read a rendered prompt otherwise than
    `render_prompt`.
    """
    if template == "chat":
        if not tokenizer.chat_template:
            raise PromptError("the tokenizer has no chat template; try --template plain")
        return None
    before, after = (R1_ZERO_PROMPT if template == "r1_zero" else PLAIN_PROMPT).split("{question}")
    before = tokenizer.decode(tokenizer("")["input_ids"]) + before  # BOS, where the tokenizer puts one
    refusal = f"template {template} holds one user turn; use template chat for conversations"
    jinja = (
        "{% if messages | map(attribute='role') | list != ['user'] %}"
        f"{{{{ raise_exception({_quoted(refusal)}) }}}}{{% endif %}}"
        f"{{{{ {_quoted(before)} ~ messages[0]['content'] ~ {_quoted(after)} }}}}"
    )
    probe = [{"role": "user", "content": "1 + 1?"}]
    text = tokenizer.apply_chat_template(probe, chat_template=jinja, tokenize=False)
    if tokenizer(text, add_special_tokens=False)["input_ids"] != render_prompt(tokenizer, probe, template):
        raise PromptError(f"template {template} cannot be written as a chat template of this tokenizer")
    return jinja


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def opened_by(tokenizer, prompt_ids: Sequence[int]) -> str:
    """What the prompt has opened of the answer: "<think>\\n" (or without the line break) at its end, or "".

    R1's released chat template opens the reasoning, so that a completion starts inside of it.
    """
    end = tokenizer.decode(list(prompt_ids[-len(THINK_OPEN) - 1 :]))
    return next((opening for opening in (f"{THINK_OPEN}\n", THINK_OPEN) if end.endswith(opening)), "")


def text_ids(tokenizer, text: str) -> list[int]:
    """Token ids of untrusted text, without BOS: thinking tags are tokens, but no spelling opens or ends a turn."""
    cut, (marked,) = _cut_markers(tokenizer, [text])
    return _ids_between_cuts(tokenizer, marked, cut, add_special_tokens=False)


def _cut_markers(tokenizer, texts: Sequence[str]) -> tuple[str | None, list[str]]:
    """The texts with a cut after the first character of each marker's spelling; no marker: None and the texts.

    The cut is a private-use character that is in none of the texts, so it survives whatever a chat template does.
    """
    markers = _marker_pattern(_markers(tokenizer))
    if not any(markers.search(text) for text in texts):
        return None, list(texts)
    used = set().union(*texts)
    cut = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    return cut, [markers.sub(lambda match: match[0] + cut, text) for text in texts]


def _ids_between_cuts(tokenizer, text: str, cut: str | None, add_special_tokens: bool) -> list[int]:
    """Tokenised piece by piece: a marker that is cut in two is none."""
    first, *rest = [text] if cut is None else text.split(cut)
    ids = list(tokenizer(first, add_special_tokens=add_special_tokens)["input_ids"])
    for piece in rest:
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def _markers(tokenizer) -> tuple[str, ...]:
    """Spellings that structure a prompt: special tokens, and added ones like `<|user|>` or that the template writes.

    DeepSeek's `<｜User｜>` is an added token that is not declared special. Thinking tags are part of completions.
    """
    template = str(tokenizer.chat_template or "")
    found = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        written = token.content in template and not token.content.isalnum()
        if token.special or written or _PIPED.fullmatch(token.content):
            found.add(token.content)
    found -= {THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE}
    return tuple(sorted(marker for marker in found if len(marker) > 1 and marker.strip()))


@lru_cache(maxsize=16)
def _marker_pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the first character of every marker, overlapping ones too; nothing when there are none."""
    return re.compile(f"(?={'|'.join(map(re.escape, markers))})." if markers else r"(?!)", re.DOTALL)


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

"""A reasoning parser for vLLM's server: from `<think>` at the start to the first `</think>`, also as it streams.

vLLM's own parsers for these tags take a completion without tags for reasoning, and in later turns of a conversation
they stream the tags as content. This one reads text, so the tags need not be single tokens. vLLM loads this file by its
path, in its own processes; that is why it imports nothing of this project.
"""

# pyright: reportMissingImports=false

import re
from collections.abc import Iterable, Sequence

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser, ReasoningParserManager

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_PART_OF_CLOSE = re.compile(r"<(/(t(h(i(nk?)?)?)?)?)?\Z")


class ThinkTags(ReasoningParser):
    """For templates whose completions write `<think>` themselves; without it at the start all is content."""

    engine_based_streaming = True  # vLLM then fetches what is held back when a completion ends
    opened = False

    def __init__(self, tokenizer, *args, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        self._part = "reasoning" if self.opened else "start"
        self._held = ""

    def _split(self, text: str, last: bool = False) -> tuple[str | None, str | None]:
        """Reasoning and content in the next piece of a completion. A tag may be spread over pieces, so what may become
        one is held back until the `last` piece."""
        text, self._held = self._held + text, ""
        if self._part == "start":
            begin = text.lstrip()
            if not last and len(begin) < len(THINK_OPEN) and THINK_OPEN.startswith(begin):
                self._held = text
                return None, None
            self._part = "reasoning" if begin.startswith(THINK_OPEN) else "content"
            text = begin.removeprefix(THINK_OPEN) if self._part == "reasoning" else text
        if self._part == "content":
            return None, text or None
        reasoning, close, content = text.partition(THINK_CLOSE)
        if close:
            self._part = "content"
        elif not last and (part := _PART_OF_CLOSE.search(reasoning)):
            reasoning, self._held = reasoning[: part.start()], part[0]
        return reasoning or None, content or None

    @property
    def reasoning_start_str(self) -> str:
        return THINK_OPEN

    @property
    def reasoning_end_str(self) -> str:
        return THINK_CLOSE

    def extract_reasoning(self, model_output, request) -> tuple[str | None, str | None]:
        return type(self)(self.model_tokenizer)._split(model_output, last=True)

    def extract_reasoning_streaming(
        self, previous_text, current_text, delta_text, previous_token_ids, current_token_ids, delta_token_ids
    ) -> DeltaMessage | None:
        return _message(*self._split(delta_text))

    def has_engine_confirmed_reasoning_end(self) -> bool:
        return self._part == "content"

    def finish_streaming(self) -> DeltaMessage | None:
        return _message(*self._split("", last=True))

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        return False  # asked of prompts: tags of earlier turns say nothing about the next completion

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Whether the tag has just been closed. From there on vLLM enforces structured outputs."""
        tail = len(list(delta_ids)) + len(THINK_CLOSE) - 1
        return THINK_CLOSE in self.model_tokenizer.decode(list(input_ids[-tail:]))

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        return []  # for tool parsers that read tokens, which these models have no use for

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Tokens before `</think>`, where the tags are tokens."""
        ids, start = list(token_ids), self.vocab.get(THINK_OPEN)
        if not self.opened:
            if start not in ids[:1]:
                return 0
            ids = ids[1:]
        close = self.vocab.get(THINK_CLOSE)
        return ids.index(close) if close in ids else len(ids)


class OpenedThinkTags(ThinkTags):
    """For templates that open `<think>` at the end of the prompt."""

    opened = True


ReasoningParserManager.register_module("r1", module=ThinkTags)
ReasoningParserManager.register_module("r1_opened", module=OpenedThinkTags)


def _message(reasoning: str | None, content: str | None) -> DeltaMessage | None:
    return DeltaMessage(reasoning=reasoning, content=content) if reasoning or content else None

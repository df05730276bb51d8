"""The program in a completion: the last fenced code block of the answer."""

import re
from collections.abc import Iterator

from rewards.sandbox.languages import LANGUAGES

_FENCE = re.compile(r"[ \t]*```[ \t]*([A-Za-z0-9+#_.-]*)")


def extract_program(final: str, language: str) -> str | None:
    """The last block marked as `language`, else the last one without a mark; None when there is none.

    `final` is the part after the reasoning. A block that is never closed does not count: the completion was cut off.
    """
    blocks = list(_closed_blocks(final))
    names = LANGUAGES[language].code_fences if language in LANGUAGES else (language,)
    for wanted in (names, ("",)):
        found = [source for mark, source in blocks if mark in wanted]
        if found:
            return found[-1]
    return None


def _closed_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(mark, content) of each fenced block, line by line: a regular expression would try every opening to the end."""
    mark: str | None = None
    content: list[str] = []
    for line in text.split("\n"):
        if mark is None:
            opening = _FENCE.match(line)
            mark, content = (opening[1].lower() if opening else None), []
        elif line.strip(" \t\r") == "```":
            yield mark, "".join(content)
            mark = None
        else:
            content.append(line + "\n")

"""The program in a completion: the last fenced code block of the answer, by the rules of CommonMark.

A fence is three or more backticks or tildes; as many of the same end the block, at most three spaces deeper than the
first. It may stand in a list item, at any depth; its indentation is taken off the lines of the block.
"""

import re
from collections.abc import Iterator

from rewards.sandbox.languages import LANGUAGES

_FENCE = re.compile(r"(?P<before>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>.*)")
_MARK = re.compile(r"[A-Za-z0-9+#_.-]*")


def extract_program(answer: str, language: str) -> str | None:
    """The last block marked as `language`, else the last one without a mark; None when there is none.

    `answer` is the part after the reasoning, or what its answer tag holds. A block that is never closed does not count:
    the completion was cut off.
    """
    blocks = list(_closed_blocks(answer))
    names = LANGUAGES[language].code_fences if language in LANGUAGES else (language,)
    for wanted in (names, ("",)):
        found = [source for mark, source in blocks if mark in wanted]
        if found:
            return found[-1]
    return None


def _closed_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(mark, content) of each fenced block, line by line: a regular expression would try every opening to the end."""
    opening: re.Match[str] | None = None
    content: list[str] = []
    for line in text.split("\n"):
        if opening is None:
            opening, content = _opening(line), []
        elif _closes(line, opening):
            mark = _MARK.match(opening["info"])
            yield (mark[0].lower() if mark else ""), "".join(content)
            opening = None
        else:
            content.append(_unindented(line, opening) + "\n")


def _opening(line: str) -> re.Match[str] | None:
    found = _FENCE.match(line)
    inline = found is not None and found["fence"][0] == "`" and "`" in found["info"]  # code within a line of text
    return None if inline else found


def _closes(line: str, opening: re.Match[str]) -> bool:
    fence = line.strip(" \t\r")
    depth = len(line) - len(line.lstrip(" \t"))
    same = len(fence) >= len(opening["fence"]) and set(fence) == {opening["fence"][0]}
    return same and depth <= len(opening["before"]) + 3


def _unindented(line: str, opening: re.Match[str]) -> str:
    before = opening["before"]
    if line.startswith(before):
        return line[len(before) :]
    spaces = len(line) - len(line.lstrip(" "))
    return line[min(spaces, len(before)) :]

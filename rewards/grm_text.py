"""What a generative reward model wrote, read as integer scores: strictly, and never by running any of it.

A judgement ends with one line such as `Scores: [7, 3]`: an integer from 1 to 10 for each response. Markdown marks, a
box, other brackets and Chinese labels are forgiven, and answer tags around it. Brackets must be there and closed: of
`Scores: 7, 1` nobody knows whether a 10 was cut off. Quoted lines are not read. Everything else cannot be read, for a
reason to be counted:

    truncated       the length limit ended it: its last line may be a quotation
    no_scores       the last line holds no scores in brackets
    several_scores  another line of it names other scores: which are meant?
    not_integers    scores such as 7.5, 7/10 or "high"
    out_of_range    a score below 1 or above 10
    wrong_count     more or fewer scores than responses
"""

import re
from dataclasses import dataclass
from typing import Literal

from data.judging import HIGHEST, LOWEST
from rewards.own_words import own_lines

Reason = Literal["truncated", "no_scores", "several_scores", "not_integers", "out_of_range", "wrong_count"]

_LABELS = ("score", "scores", "final score", "final scores", "评分", "分数", "得分", "最终评分")
_MARKS = " \t*_#`$"  # of markdown and LaTeX, around a label or its scores
_BRACKETS = {"[": "]", "(": ")", "{": "}", "【": "】", "（": "）"}
_SEPARATOR = re.compile(r"\s*[,，、;；]\s*|\s+")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_DIGITS = 4  # more are out of range without being read


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A judgement without scores, and why."""

    reason: Reason


def read_scores(text: str, count: int, truncated: bool = False) -> tuple[int, ...] | Unreadable:
    """The scores of `count` responses, each in 1..10, or why there are none. Never raises for any text.

    Only what the judge wrote itself after its reasoning is read, and of it the last line. Raises ValueError for a count
    below 1.
    """
    if count < 1:
        raise ValueError(f"read_scores: there must be at least one response, got {count}")
    if truncated:
        return Unreadable("truncated")
    lines = own_lines(text)
    named = [payload for line in lines if (payload := _payload(line)) is not None]
    if not named or _payload(lines[-1]) is None:
        return Unreadable("no_scores")
    pieces = [_pieces(payload) for payload in named]
    if any(_are_integers(other) and other != pieces[-1] for other in pieces[:-1]):
        return Unreadable("several_scores")
    return _scores(pieces[-1], count)


def _payload(line: str) -> str | None:
    """What follows the label of a score line; None for other lines."""
    label, colon, rest = line.replace("：", ":", 1).partition(":")
    is_label = " ".join(label.strip(_MARKS).casefold().split()) in _LABELS
    return rest.strip(_MARKS) if colon and is_label else None


def _pieces(payload: str) -> list[str]:
    """What stands between the brackets; nothing when they are missing or open."""
    boxed = payload.strip(_MARKS + ".。").removeprefix("\\boxed").strip()
    if len(boxed) < 2 or boxed[-1] != _BRACKETS.get(boxed[0]):
        return []
    inner = boxed[1:-1].strip()
    return _SEPARATOR.split(inner) if inner else []


def _are_integers(pieces: list[str]) -> bool:
    return bool(pieces) and all(_INTEGER.fullmatch(piece) for piece in pieces)


def _scores(pieces: list[str], count: int) -> tuple[int, ...] | Unreadable:
    if not pieces:
        return Unreadable("no_scores")
    if not _are_integers(pieces):
        return Unreadable("not_integers")
    if len(pieces) != count:
        return Unreadable("wrong_count")
    if any(len(piece) > _DIGITS or not LOWEST <= int(piece) <= HIGHEST for piece in pieces):
        return Unreadable("out_of_range")
    return tuple(map(int, pieces))

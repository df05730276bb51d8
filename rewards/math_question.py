"""What the question says about its answer: what is counted, and whether a percentage is wanted."""

import re

from rewards.exact import parse_number
from rewards.math_quantity import split_unit
from rewards.math_units import counted_words

_FORMULAS = re.compile(r"\$\$.{0,999}?\$\$|\$[^$\n]*\$|\\\(.{0,999}?\\\)|\\\[.{0,999}?\\\]", re.DOTALL)
_WANTS_PERCENT = re.compile(
    r"\b(?:what|which|find|calculate|determine|compute|express|give|by|as an?|in)\s+"
    r"(?:(?!(?:number|many|much|amount)\b)[A-Za-z'-]+\s+){0,4}?percent(?:age)?s?\b|百分之几|百分之多少|百分比|百分率",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"\s*\\%$")


def as_asked(question: str, gold: str, answer: str) -> str:
    """The normalised answer without what the question has settled: the things it counts, the percentage it wants.

    Only where the gold answer is a bare number. A share below 1 is no number of percent.
    """
    number = parse_number(gold)
    if number is None:
        return answer
    if _PERCENT.search(answer):
        bare = _PERCENT.sub("", answer)
        wanted = abs(number) >= 1 and not _PERCENT.search(gold) and _WANTS_PERCENT.search(question)
        return bare if wanted else answer
    return split_unit(answer, counted_words(_FORMULAS.sub(" ", question))).value

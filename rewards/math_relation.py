"""Inequalities of one variable as sets of numbers, in text: `x<-2 \\lor x>2` is `(-\\infty,-2) \\cup (2,\\infty)`."""

import re
from dataclasses import dataclass

_SIGN = re.compile(r"\\(leq|geq)(?![a-zA-Z])\s*|([<>])")
_VARIABLE = re.compile(r"(?:[a-zA-Z]|\\(?:theta|alpha|beta|lambda|mu|phi|omega|rho|sigma|tau))(?:_\{?\w\}?)?")
_FLIPPED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}
_INFINITY = "\\infty"


@dataclass(frozen=True, slots=True)
class Range:
    """The values of `name` from `low` to `high`; `signs` say whether the ends belong to it: `<` or `\\leq`."""

    name: str
    low: str = f"-{_INFINITY}"
    high: str = _INFINITY
    signs: tuple[str, str] = ("<", "<")

    @property
    def interval(self) -> str:
        opening, closing = "(" if self.signs[0] == "<" else "[", ")" if self.signs[1] == "<" else "]"
        return f"{opening}{self.low},{self.high}{closing}"

    @property
    def chain(self) -> str:
        low = "" if self.low == f"-{_INFINITY}" else f"{self.low} {self.signs[0]} "
        return low + self.name + ("" if self.high == _INFINITY else f" {self.signs[1]} {self.high}")


def ascending(text: str) -> str | None:
    """A chain of at least two inequalities written upwards: `3>x>2` as `2 < x < 3`; None for all else."""
    sides, signs = _split(text)
    if len(signs) < 2 or not all(sides):
        return None
    if all(sign in (">", "\\geq") for sign in signs):
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    if not all(sign in ("<", "\\leq") for sign in signs):
        return None
    return sides[0] + "".join(f" {sign} {side}" for sign, side in zip(signs, sides[1:], strict=True))


def read_range(text: str) -> Range | None:
    """`x>2`, `2<x` or `2<x<3` as a range of x; None for all else."""
    sides, signs = _split(ascending(text) or text)
    if len(sides) == 3 and _VARIABLE.fullmatch(sides[1]):
        return Range(sides[1], sides[0], sides[2], (signs[0], signs[1]))
    if len(sides) != 2:
        return None
    if _VARIABLE.fullmatch(sides[1]) and not _VARIABLE.fullmatch(sides[0]):
        sides, signs = sides[::-1], [_FLIPPED[signs[0]]]
    if not _VARIABLE.fullmatch(sides[0]) or not sides[1]:
        return None
    upwards = signs[0] in (">", "\\geq")
    end = "<" if signs[0] in "<>" else "\\leq"
    if upwards:
        return Range(sides[0], low=sides[1], signs=(end, "<"))
    return Range(sides[0], high=sides[1], signs=("<", end))


def intersect(ranges: list[Range]) -> Range | None:
    """A lower and an upper bound of the same variable as one range; None for all else."""
    if len(ranges) != 2 or ranges[0].name != ranges[1].name:
        return None
    below, above = ranges if ranges[0].high == _INFINITY else ranges[::-1]
    if below.high != _INFINITY or above.low != f"-{_INFINITY}":
        return None
    return Range(below.name, below.low, above.high, (below.signs[0], above.signs[1]))


def _split(text: str) -> tuple[list[str], list[str]]:
    signs = [f"\\{match[1]}" if match[1] else match[2] for match in _SIGN.finditer(text)]
    sides = [side.strip() for side in re.split(r"\\(?:leq|geq)(?![a-zA-Z])|[<>]", text)]
    return sides, signs

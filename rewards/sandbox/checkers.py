"""When is an output right? All comparison happens here, on our side of the wall; expected outputs never cross it."""

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_NUMERAL = re.compile("-?[0-9]+")
_MAX_NUMBER = 400  # characters; longer ones are compared as text


@dataclass(frozen=True, slots=True)
class Exact:
    """Every byte, but a missing or additional line break at the very end."""

    def __call__(self, expected: bytes, output: bytes) -> str:
        """ "" when right, else what is wrong."""
        if output == expected or output.removesuffix(b"\n") == expected.removesuffix(b"\n"):
            return ""
        return _difference(expected.splitlines(), output.splitlines(), "line")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The same words between ASCII white space, byte by byte: full-width digits are not digits."""

    def __call__(self, expected: bytes, output: bytes) -> str:
        wanted, got = expected.split(), output.split()
        return "" if wanted == got else _difference(wanted, got, "token")


@dataclass(frozen=True, slots=True)
class Lines:
    """The same lines but for white space around them; a line of numbers may write them otherwise, 1.0 for 1.

    As LiveCodeBench compares: numbers exactly, as decimals, and never within a line that holds anything else.
    """

    def __call__(self, expected: bytes, output: bytes) -> str:
        wanted, got = _stripped_lines(expected), _stripped_lines(output)
        if len(wanted) == len(got) and all(
            mine == theirs or _same_numbers(mine, theirs) for mine, theirs in zip(wanted, got, strict=True)
        ):
            return ""
        return _difference(wanted, got, "line")


@dataclass(frozen=True, slots=True)
class Floats:
    """Like Tokens, but where a finite number is expected, a close one will do. NaN is close to nothing."""

    absolute: float = 1e-6
    relative: float = 1e-6

    def __call__(self, expected: bytes, output: bytes) -> str:
        wanted, got = expected.split(), output.split()
        if len(wanted) == len(got) and all(self._close(*pair) for pair in zip(wanted, got, strict=True)):
            return ""
        return _difference(wanted, got, "token")

    def _close(self, wanted: bytes, got: bytes) -> bool:
        if wanted == got:
            return True
        if max(len(wanted), len(got)) > _MAX_NUMBER or not (_NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(got)):
            return False
        return close(float(wanted), float(got), self.absolute, self.relative)


@dataclass(frozen=True, slots=True)
class Custom:
    """A Python function `check(stdin, output, expected) -> bool` of the data set, run in a jail of its own."""

    source: str


class OutputChecker(Protocol):
    """What Exact, Lines, Tokens and Floats are."""

    def __call__(self, expected: bytes, output: bytes) -> str: ...


Checker = OutputChecker | Custom


def close(wanted: float, got: float, absolute: float, relative: float) -> bool:
    if not (math.isfinite(wanted) and math.isfinite(got)):
        return wanted == got
    return abs(wanted - got) <= max(absolute, relative * abs(wanted))


def same_value(wanted: Any, got: Any, tolerance: float = 0.0) -> bool:
    """Whether two plain forms (`jail.plain`) are of the same value; `got` may be a hostile claim.

    Lists equal tuples, and a number as key equals its text: JSON has neither tuples nor such keys. 1 equals 1.0 but not
    True; a finite number may be off by `tolerance`, absolute or relative. Hashes strings only: the hashes of hostile
    numbers can all be the same.
    """
    (kind, mine), (other, theirs) = _kind(wanted), _kind(got)
    if kind != other:
        return False
    if kind == "list":
        return len(mine) == len(theirs) and all(same_value(*pair, tolerance) for pair in zip(mine, theirs, strict=True))
    if kind == "set":
        return len(mine) == len(theirs) and set(map(_key, mine)) == set(map(_key, theirs))
    if kind == "dict":
        found = {_key(key): value for key, value in theirs}
        return len(mine) == len(theirs) and all(_same_entry(key, value, found, tolerance) for key, value in mine)
    if kind == "number":
        if tolerance > 0 and float in (type(mine), type(theirs)):
            return _close_numbers(mine, theirs, tolerance)
        return mine == theirs
    return mine == theirs and not (kind in ("float", "complex") and "nan" in str(mine))


_KINDS = {"tuple": "list", "deque": "list", "frozenset": "set", "Counter": "dict"}


def _kind(form: Any) -> tuple[str, Any]:
    """(kind, content) of a plain form, with kinds that can be equal under one name."""
    if isinstance(form, dict):
        kind, content = next(iter(form.items()))
        return _KINDS.get(kind, str(kind)), content
    if isinstance(form, list):
        return "list", form
    return ("number" if type(form) in (int, float) else type(form).__name__), form


def _key(form: Any) -> str:
    """A text that is the same for equal values, to put into hash tables."""
    kind, content = _kind(form)
    if kind == "number":
        return str(int(content)) if content == content // 1 else repr(content)
    if kind in ("list", "set"):
        parts = [_key(item) for item in content]
        return f"{kind}({','.join(parts if kind == 'list' else sorted(parts))})"
    return json.dumps(content)


def _same_entry(key: Any, value: Any, found: dict[str, Any], tolerance: float) -> bool:
    names = [_key(key), *([key] if isinstance(key, str) and _NUMERAL.fullmatch(key) else [])]
    return any(name in found and same_value(value, found[name], tolerance) for name in names)


def _close_numbers(wanted: float, got: float, tolerance: float) -> bool:
    try:
        return close(float(wanted), float(got), tolerance, tolerance)
    except OverflowError:
        return False


def _stripped_lines(text: bytes) -> list[bytes]:
    return [line.strip() for line in text.strip().split(b"\n")]


def _same_numbers(wanted: bytes, got: bytes) -> bool:
    mine, theirs = wanted.split(), got.split()
    return (
        len(mine) == len(theirs)
        and all(len(word) <= _MAX_NUMBER and _NUMBER.fullmatch(word) for word in (*mine, *theirs))
        and all(Decimal(left.decode()) == Decimal(right.decode()) for left, right in zip(mine, theirs, strict=True))
    )


def _difference(wanted: list[bytes], got: list[bytes], unit: str) -> str:
    """Says where, never what was expected: the sentence may end up in a log that a model is trained on."""
    if len(wanted) != len(got):
        return f"{len(got)} {unit}s, {len(wanted)} expected"
    place = next((place for place, pair in enumerate(zip(wanted, got, strict=True)) if pair[0] != pair[1]), 0)
    return f"{unit} {place + 1} differs"

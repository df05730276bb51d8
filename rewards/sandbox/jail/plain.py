"""Plain values as JSON and back: None, bool, int, float, str, bytes, list, tuple, set, frozenset, dict, deque, Counter.

Exact types only, so no object with an `__eq__` of its own ever leaves a jail; a defaultdict or OrderedDict goes as a
dict and a named tuple as a tuple. Lists and scalars are themselves in JSON; everything else is an object with one key
that names its type. The judge never makes the values of a claim: it checks their form (`check`), and
compares that or passes it on.
"""

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

MAX_DEPTH = 50
MAX_CHARS = 1 << 20  # of a value that a program gives
MAX_REQUEST_CHARS = 8 << 20  # of the arguments it gets: they come from the problem
MAX_DIGITS = 1000  # Python's int() and str() are quadratic in them
_HUGE = 10**MAX_DIGITS
_HASHABLE = {"tuple": tuple, "frozenset": frozenset}
_COLLECTIONS = {**_HASHABLE, "set": set, "deque": deque}
_DICTS = {"dict": dict, "Counter": Counter}
_ODD_FLOATS = ("nan", "inf", "-inf")


class NotPlain(ValueError):
    """A value that has no plain form, or text that is none."""


def encode(value: Any) -> str:
    """One line of ASCII JSON. Raises NotPlain for other types, depth over 50, huge numbers and over 1 MiB."""
    text = json.dumps(to_json(value), separators=(",", ":"))
    if len(text) > MAX_CHARS:
        raise NotPlain(f"a value of over {MAX_CHARS} characters")
    return text


def decode(text: str) -> Any:
    """The value of `encode`. Raises NotPlain. Not for the judge: hashes of hostile numbers can collide."""
    form = parse(text)
    check(form)
    return from_json(form)


def parse(text: str) -> Any:
    """JSON within the bounds of this module, of hostile text. Raises NotPlain."""
    if len(text) > MAX_CHARS + 4096:
        raise NotPlain("too long")
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=_bounded_int)
    except NotPlain:
        raise
    except (ValueError, RecursionError) as error:
        raise NotPlain(f"not JSON ({type(error).__name__})") from None


def check(form: Any, depth: int = 0, hashable: bool = False) -> None:
    """Refuse parsed JSON that `to_json` cannot have written. Raises NotPlain. Hashes nothing but strings.

    `hashable`: whether it must be the form of a value that sets may hold.
    """
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH}")
    if form is None or isinstance(form, bool | int | str) or (isinstance(form, float) and math.isfinite(form)):
        return
    if isinstance(form, list) and not hashable:
        for item in form:
            check(item, depth + 1)
        return
    if isinstance(form, dict) and len(form) == 1:
        ((kind, content),) = form.items()
        if _check_content(kind, content, depth, hashable):
            return
    raise NotPlain("JSON that is no plain value")


def _check_content(kind: str, content: Any, depth: int, hashable: bool) -> bool:
    if kind in (_HASHABLE if hashable else _COLLECTIONS) and isinstance(content, list):
        for item in content:
            check(item, depth + 1, hashable or kind in ("set", "frozenset"))
        return True
    if kind in _DICTS and not hashable and isinstance(content, list):
        for pair in content:
            if not isinstance(pair, list) or len(pair) != 2:
                return False
            check(pair[0], depth + 1, hashable=True)
            check(pair[1], depth + 1)
        return True
    if kind == "complex":
        return isinstance(content, list) and len(content) == 2 and all(map(_is_float, content))
    if kind == "bytes":
        return isinstance(content, str) and len(content) % 2 == 0 and set(content) <= set("0123456789abcdef")
    return _is_float({kind: content})


def _is_float(form: Any) -> bool:
    return isinstance(form, float) or (isinstance(form, dict) and form in [{"float": odd} for odd in _ODD_FLOATS])


def to_json(value: Any, depth: int = 0) -> Any:
    """The form of a value. Raises NotPlain."""
    kind = type(value)
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH}")
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        if not -_HUGE < value < _HUGE:
            raise NotPlain("a number with too many digits")
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind is list:
        return [to_json(item, depth + 1) for item in value]
    if kind in (tuple, set, frozenset, deque) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        name = "tuple" if issubclass(kind, tuple) else kind.__name__
        return {name: [to_json(item, depth + 1) for item in value]}
    if kind in (dict, Counter, defaultdict, OrderedDict):
        pairs = [[to_json(key, depth + 1), to_json(item, depth + 1)] for key, item in value.items()]
        return {"Counter" if kind is Counter else "dict": pairs}
    if kind is complex:
        return {"complex": [to_json(value.real), to_json(value.imag)]}
    if kind is bytes:
        return {"bytes": value.hex()}
    raise NotPlain(f"a value of type {kind.__name__[:50]}")


def from_json(form: Any) -> Any:
    """The value of a form that `check` has let through."""
    if isinstance(form, list):
        return [from_json(item) if isinstance(item, list | dict) else item for item in form]
    if not isinstance(form, dict):
        return form
    ((kind, content),) = form.items()
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](from_json(item) for item in content)
    if kind in _DICTS:
        return _DICTS[kind]({from_json(key): from_json(item) for key, item in content})
    if kind == "complex":
        return complex(*map(from_json, content))
    return bytes.fromhex(content) if kind == "bytes" else float(content)


def _no_constant(name: str) -> Any:
    raise NotPlain(f"{name} written as a number")


def _bounded_int(digits: str) -> int:
    if len(digits.removeprefix("-")) > MAX_DIGITS:
        raise NotPlain("a number with too many digits")
    return int(digits)

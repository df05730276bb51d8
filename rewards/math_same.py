"""Whether two answers are equal, part by part. The rules are those of `rewards.math_shape`."""

import re
from fractions import Fraction

from rewards.exact import parse_number
from rewards.math_quantity import Formulas, same_decimal_comma, same_value
from rewards.math_relation import read_range
from rewards.math_shape import ELLIPSIS, MAX_PARTS, RELATION, Shape, read_shape

_SET_OPERATION = re.compile(r"\\(?:cup|cap|setminus|bigcup)(?![a-zA-Z])")
_CALL = re.compile(r"([A-Za-z])\s*\(\s*([a-z])\s*\)")


def same_answer(gold: str, answer: str, formulas: Formulas) -> bool:
    """Whether two normalised answers are equal. `formulas` compares what has no structure and may raise."""
    decided = same_decimal_comma(gold, answer)  # before its comma is taken for a list
    return _same(read_shape(gold), read_shape(answer), formulas) if decided is None else decided


def _same(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    if {gold.kind, answer.kind} & {"either", "both"}:
        return _same_conditions(gold, answer, formulas)
    if gold.kind == "chain" and answer.kind in ("chain", "named"):
        same_text = gold.text.replace(" ", "") == answer.text.replace(" ", "")
        return same_text or formulas(gold.text, answer.text)
    if gold.kind == "chain":
        if RELATION.search(answer.text):
            return formulas(gold.text, answer.text)
        plain = not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", gold.text))  # `6 \cdot 7 = 42` is 42
        return plain and _same(gold.parts[-1], answer, formulas)
    if gold.kind == "named":
        return _same_named(gold, answer, formulas)
    if answer.kind == "named" and _mentions_itself(answer):
        return False
    if answer.kind == "named" or answer.kind == "chain":
        return _all_same(gold, answer, formulas)
    if answer.kind == "approximation" and gold.kind != "approximation":
        exact, rounded = answer.parts
        return _same(gold, exact, formulas) and _rounds_to(exact.text, rounded.text, formulas)
    if _is_plural(gold) or _is_plural(answer):
        return _same_plural(gold, answer, formulas)
    if gold.parts and answer.parts and gold.kind != "approximation":
        if gold.kind != answer.kind or len(gold.parts) != len(answer.parts):
            return False
        return all(_same(left, right, formulas) for left, right in zip(gold.parts, answer.parts, strict=True))
    return same_value(gold.text, answer.text, formulas)


def _mentions_itself(shape: Shape) -> bool:
    """`x = x + 1` names no value."""
    symbol = re.escape(shape.name.partition("(")[0])
    return symbol != "" and any(re.search(rf"(?<![a-zA-Z\\]){symbol}(?![a-zA-Z_])", part.text) for part in shape.parts)


def _all_same(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    """Whether every side of the answer's chain is the gold value. The first is a name where the chain has one."""
    return all(_same(gold, side, formulas) for side in answer.parts)


def _same_named(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    value = gold.parts[-1]
    if answer.kind == "chain":
        return formulas(gold.text, answer.text)
    if answer.kind != "named":
        return _same(value, answer, formulas)
    if gold.name == answer.name:
        return _all_same(value, answer, formulas)
    left, right = _CALL.fullmatch(gold.name), _CALL.fullmatch(answer.name)
    if left and right and left[1] == right[1]:
        rename = rf"(?<![a-zA-Z\\]){right[2]}(?![a-zA-Z])"
        return all(same_value(value.text, re.sub(rename, left[2], side.text), formulas) for side in answer.parts)
    return len(gold.parts) == len(answer.parts) == 1 and formulas(gold.text, answer.text)


def _same_conditions(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    """`x<1 \\lor x>2` is the same in any order, as a list, and as a union of intervals."""
    if gold.kind == answer.kind or "list" in (gold.kind, answer.kind):
        return _same_members(gold, answer, formulas)
    if "both" in (gold.kind, answer.kind):
        return False
    left, right = _as_union(gold), _as_union(answer)
    return left is not None and right is not None and same_value(left, right, formulas)


def _as_union(shape: Shape) -> str | None:
    """The values that a condition allows, as text; None where they are no intervals or single numbers."""
    if shape.kind == "named":
        return shape.parts[0].text if len(shape.parts) == 1 else None
    if shape.kind != "either":
        return shape.text
    pieces = [
        f"\\{{{part.parts[0].text}\\}}" if part.kind == "named" else (found := read_range(part.text)) and found.interval
        for part in shape.parts
    ]
    return None if None in pieces else " \\cup ".join(map(str, pieces))


def _is_plural(shape: Shape) -> bool:
    return shape.kind in ("list", "set", "sequence")


def _same_plural(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    if _SET_OPERATION.search(gold.text) or _SET_OPERATION.search(answer.text):
        return formulas(gold.text, answer.text)
    if "sequence" in (gold.kind, answer.kind):
        return gold.kind == answer.kind and _same_in_order(gold, answer, formulas)
    if not _is_plural(gold):
        if len(answer.parts) == 1:
            return _same(gold, answer.parts[0], formulas)
        listed = answer.kind == "list" and gold.kind == "()" and len(gold.parts) == len(answer.parts)
        same = _same_members if _names(gold) and _names(answer) else _same_in_order
        return listed and same(gold, answer, formulas)
    if not _is_plural(answer):
        if len(gold.parts) == 1:
            return _same(gold.parts[0], answer, formulas)
        listed = answer.kind in ("()", "[]") and gold.kind == "list"
        same = _same_in_order if _names(gold) and not _names(answer) else _same_members
        return listed and len(answer.parts) == len(gold.parts) and same(gold, answer, formulas)
    if (_names(gold) and not _names(answer)) or (_names(answer) and not _names(gold)):
        return len(gold.parts) == len(answer.parts) and _same_in_order(gold, answer, formulas)
    return _same_members(gold, answer, formulas)


def _names(shape: Shape) -> bool:
    """Whether the parts bear different names, so that leaving the names out leaves an order behind."""
    names = {part.name for part in shape.parts}
    return "" not in names and len(names) == len(shape.parts) > 1


def _same_in_order(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    if len(gold.parts) != len(answer.parts):
        return False
    for left, right in zip(gold.parts, answer.parts, strict=True):
        if ELLIPSIS in (left.text, right.text):
            if left.text != right.text:
                return False
        elif not _same_part(left, right, formulas):
            return False
    return True


def _same_members(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    """As sets: everything in one is in the other."""
    if len(gold.parts) > MAX_PARTS or len(answer.parts) > MAX_PARTS:
        return _same_in_order(gold, answer, formulas)
    unmatched = list(gold.parts)
    matched: list[Shape] = []
    for part in answer.parts:
        for candidates in (unmatched, matched):
            found = next((candidate for candidate in candidates if _same_part(candidate, part, formulas)), None)
            if found is not None:
                break
        else:
            return False
        if found in unmatched:
            unmatched.remove(found)
            matched.append(found)
    return all(any(_same_part(left, right, formulas) for right in matched) for left in unmatched)


def _same_part(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    """As `_same`, but inside of a list a set of one value is not this value."""
    return (gold.kind == "set") == (answer.kind == "set") and _same(gold, answer, formulas)


def _rounds_to(exact: str, rounded: str, formulas: Formulas) -> bool:
    """Whether the decimal `rounded` is `exact`, rounded or cut off at its last place."""
    value, target = parse_number(rounded), parse_number(exact)
    if value is None:
        return False
    places = 10 ** len(rounded.partition(".")[2].strip())
    sign = "-" if value < 0 else ""
    if target is not None:
        return Fraction(-1, 2) <= (target - value) * (-places if sign else places) < 1
    # Algebra can only say what is equal: this is 0 where the sizes differ by -1/2 to 1 of the last place.
    difference = f"{sign}({exact} - ({rounded}))"
    return formulas("0", f"\\lfloor \\frac{{2 ({difference}) \\cdot {places} + 1}}{{3}} \\rfloor")

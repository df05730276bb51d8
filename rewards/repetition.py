"""Repetition: the share of n-grams that occurred before. A measure of readability for filters of training data."""

import re

_UNITS = re.compile(r"[㐀-䶿一-鿿ぁ-ゖァ-ヺ]|[^\W_㐀-䶿一-鿿ぁ-ゖァ-ヺ]+")


def repetition_ratio(text: str, n: int = 4) -> float:
    """1 - distinct n-grams / n-grams, in [0, 1); 0 for texts of fewer than n units.

    Units are words (letters and digits, lower case) and single Chinese or Japanese characters.
    """
    if n < 1:
        raise ValueError(f"repetition_ratio needs n >= 1, got {n}.")
    units = [unit.lower() for unit in _UNITS.findall(text)]
    total = len(units) - n + 1
    if total < 1:
        return 0.0
    distinct = {tuple(units[start : start + n]) for start in range(total)}
    return 1 - len(distinct) / total

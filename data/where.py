"""Which rows of a source are kept, by the values of their columns."""

from collections.abc import Mapping
from datetime import date
from typing import Any

from data.config import Where


def keeps(row: Mapping[str, Any], where: Mapping[str, Where]) -> bool:
    """Whether a row meets all conditions. Raises ValueError for a column that is missing or not comparable."""
    return all(_meets(row, column, condition) for column, condition in where.items())


def _meets(row: Mapping[str, Any], column: str, condition: Where) -> bool:
    value: Any = row.get(column)
    if value is None:
        raise ValueError(f"where: column {column} is missing or empty; found columns {', '.join(sorted(row))}")
    comparable: Any = value.isoformat() if isinstance(value, date) else value
    low: Any = condition.at_least
    high: Any = condition.below
    try:
        in_range = (low is None or comparable >= low) and (high is None or comparable < high)
        return in_range and (not condition.one_of or comparable in condition.one_of)
    except TypeError:
        raise ValueError(
            f"where: column {column} holds {value!r}, which does not compare with the ends given"
        ) from None

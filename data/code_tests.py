"""The tests of a problem that asks for a program, as JSON in its ground truth; `rewards.code` says what they mean.

Read when the problem is, so that tests which nothing could run are refused before anything is sampled.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from data.packed import unpack


class _Part(BaseModel, extra="forbid", strict=True):
    """Of the JSON. Nothing is converted: a list in place of a text is a broken test, not its text."""


class Stdio(_Part):
    input: str
    output: str


class Call(_Part):
    function: str
    args: list[Any]
    expected: Any
    kwargs: dict[str, Any] = {}
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class UnitTests(_Part):
    source: str
    setup: str = ""
    entry_points: list[str] = []


class FloatsChecker(_Part):
    floats: float = Field(ge=0, allow_inf_nan=False)


class CustomChecker(_Part):
    custom: str


class CodeTests(_Part):
    language: str = "python"
    stdio: list[Stdio] = []
    calls: list[Call] = []
    unit_tests: list[UnitTests] = []
    prelude: str = ""
    checker: Literal["tokens", "lines", "exact"] | FloatsChecker | CustomChecker = "tokens"
    cpu_s: float | None = None
    memory_mb: int | None = None


_LISTS: dict[Any, type[BaseModel]] = {"stdio": Stdio, "calls": Call, "unit_tests": UnitTests}


def read_code_tests(ground_truth: str) -> CodeTests:
    """The tests, at least one; packed ones too (`data.packed`). Raises ValueError, in one line, for anything else."""
    try:
        tests = CodeTests.model_validate(json.loads(unpack(ground_truth), parse_constant=_constant))
    except ValidationError as error:
        raise ValueError(_fault(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not (tests.stdio or tests.calls or tests.unit_tests):
        raise ValueError("there are none; known are stdio, calls and unit_tests")
    return tests


def _fault(error: ValidationError) -> str:
    """The worst fault in one line. A key that is not known explains one that is missing; the known ones are named."""
    for each in error.errors():
        *above, key = each["loc"] or ("",)
        known = _LISTS.get(above[0]) if above else CodeTests
        if each["type"] == "extra_forbidden" and known is not None:
            return f"unknown key {'.'.join(map(str, (*above, key)))}; known are {', '.join(known.model_fields)}"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is equal to nothing, so no program could pass")
    return float(name)

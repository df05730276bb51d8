"""Rows of LiveCodeBench (Jain et al. 2024, arXiv:2403.07974) as problems with tests that a program must pass.

Columns of livecodebench/code_generation_lite, of which `public_test_cases` and `metadata` are JSON in text, and
`private_test_cases` is too, or base64 of zlib of a pickle of such a text, which is read without unpickling it.
A test is {"input", "output", "testtype": "stdin" | "functional"}. Inputs of a functional test are JSON, an argument a
line, for the method `func_name` of the metadata.

Prompt, limits and comparison are those of the public runner (lcb_runner): its generic prompt, in one turn of the user
as it asks reasoning models; 6 s for a test; and star imports of what contest programs use before the program.
"""

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from data.packed import inflate, pack, text_of_pickle

Row = Mapping[str, Any]

TEST_S = 6.0  # lcb_runner's time limit for a test
MEMORY_MB = 1024  # AtCoder's limit; the runner sets none

_TASK = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests. You will NOT return anything except "
    "for the program."
)
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
_WITH_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows."
)
# In this order: names that several of them have are those of the last one.
_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)
PRELUDE = "".join(
    [f"from {module} import *\n" for module in (*_MODULES, "builtins", "typing")]
    + [f"import {module}\n" for module in _MODULES]
    + ["sys.setrecursionlimit(50000)\n"]
)


def is_live_code_bench(row: Row) -> bool:
    return {"question_content", "starter_code", "public_test_cases", "private_test_cases"} <= set(row)


def read_live_code_bench(row: Row) -> dict[str, Any]:
    """The fields of a problem. Raises ValueError for tests that cannot be read, are none or name no function."""
    question = str(row.get("question_content") or "").strip()
    if not question:
        raise ValueError("question_content is missing or empty")
    starter = str(row.get("starter_code") or "")
    public = _tests("public_test_cases", row.get("public_test_cases"))
    private = _tests("private_test_cases", row.get("private_test_cases"))
    if not public and not private:
        raise ValueError("there are no tests")
    truth = _truth([*public, *private], starter, _function(row.get("metadata")))
    about = {key: str(row[key]) for key in ("question_title", "platform", "difficulty") if row.get(key)}
    day = row.get("contest_date")
    if day:
        about["contest_date"] = day.isoformat() if isinstance(day, date) else str(day)
    return {
        "question": _prompt(question, starter),
        "answer": pack(json.dumps(truth, ensure_ascii=False)),
        "checker": "code",
        "domain": "live_code_bench",
        "language": "en",
        "id": str(row["question_id"]) if row.get("question_id") else None,
        "metadata": about,
    }


def _prompt(question: str, starter: str) -> str:
    asked, code = (_WITH_STARTER, starter) if starter else (_WITH_STDIN, "# YOUR CODE HERE")
    return (
        f"{_TASK}\n\n### Question:\n{question}\n\n### Format: {asked}\n```python\n{code}\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )


def _tests(column: str, cell: Any) -> list[dict[str, str]]:
    try:
        tests = cell if isinstance(cell, list) else json.loads(_json_text(str(cell or "[]")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{column} cannot be read: {error}") from None
    for test in tests if isinstance(tests, list) else [tests]:
        if not (isinstance(test, dict) and all(isinstance(test.get(key), str) for key in ("input", "output"))):
            raise ValueError(f"{column} must be a list of {{input, output, testtype}}")
        if test.get("testtype") not in ("stdin", "functional"):
            raise ValueError(f"{column} has a test of type {test.get('testtype')!r}, not stdin or functional")
    return tests


def _json_text(cell: str) -> str:
    return cell if cell.lstrip().startswith("[") else text_of_pickle(inflate(cell))


def _function(metadata: Any) -> str | None:
    try:
        parsed = json.loads(metadata or "{}") if isinstance(metadata, str | None) else metadata
    except ValueError as error:
        raise ValueError(f"metadata cannot be read: {error}") from None
    name = parsed.get("func_name") if isinstance(parsed, dict) else None
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"func_name {name!r} in metadata is no name of a function")
    return name


def _truth(tests: list[dict[str, str]], starter: str, function: str | None) -> dict[str, Any]:
    """What `rewards.code` reads."""
    called = [test for test in tests if test["testtype"] == "functional"]
    if called and function is None:
        raise ValueError("metadata names no func_name, which functional tests call")
    name = f"Solution.{function}" if "class Solution" in starter else function
    return {
        "language": "python",
        "prelude": PRELUDE,
        "stdio": [{"input": test["input"], "output": test["output"]} for test in tests if test["testtype"] == "stdin"],
        "calls": [{"function": name, **_call(test)} for test in called],
        "checker": "lines",
        "cpu_s": TEST_S,
        "memory_mb": MEMORY_MB,
    }


def _call(test: dict[str, str]) -> dict[str, Any]:
    try:
        args = [json.loads(line) for line in test["input"].strip().split("\n")]
        return {"args": args, "expected": json.loads(test["output"])}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a functional test is no JSON, an argument a line ({error})") from None

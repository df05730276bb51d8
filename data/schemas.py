"""From one row of a dataset to a Problem, for each known row layout. Pure functions; reading files is `data.sources`.

Known layouts: r1 (a Problem as `problem_to_row` writes it), gsm8k, math (Hendrycks MATH, MATH-500), aime, gpqa, mmlu,
ifeval, live_code_bench, prompts (what only a model can judge the answers to) and columns (your own file with a column
mapping).
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from data.choice_schemas import is_gpqa, is_mmlu, read_gpqa, read_mmlu
from data.code_tests import read_code_tests
from data.config import ProblemSource
from data.ifeval import is_ifeval, read_ifeval
from data.live_code_bench import is_live_code_bench, read_live_code_bench
from data.packed import PACKED
from data.problems import INSTRUCTION, TEXT_ANSWERS, UNCHECKED, Problem

Row = Mapping[str, Any]

EXPECTED = {
    "r1": "id, messages, ground_truth, checker, domain, language",
    "gsm8k": "question, answer ending in '#### 18'",
    "math": "problem, solution with \\boxed{} or answer, and level, subject or type",
    "aime": "problem or Problem, answer or Answer, and year or a whole-number Answer",
    "gpqa": "Question, Correct Answer, and Incorrect Answer 1 to 3",
    "mmlu": "question, choices, answer",
    "ifeval": "prompt, instruction_id_list, kwargs",
    "live_code_bench": "question_content, starter_code, public_test_cases, private_test_cases",
    "prompts": "prompt, a text or turns, no answer, and perhaps id, domain, language, rubric",
    "columns": "the columns named under `columns`",
}
_PROMPT_COLUMNS = {"prompt", "id", "domain", "language", "rubric", "source"}  # with others, say row_schema: prompts
R1_KEYS = ("id", "messages", "ground_truth", "checker", "domain", "language")

_SHOWN = 60  # characters of a cell in a sentence about it
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")
_LATEX = re.compile(r"\$[^$]*\$|\\[A-Za-z]+")


class SourceError(ValueError):
    """A data source cannot be read. The message is one sentence: which file and row, what is wrong, how to mend it."""


def problem_to_row(problem: Problem) -> dict[str, Any]:
    """A JSON- and parquet-friendly row. Metadata is a JSON string, so that all rows have one schema."""
    return {
        "id": problem.id,
        "messages": [dict(message) for message in problem.messages],
        "ground_truth": problem.ground_truth,
        "checker": problem.checker,
        "domain": problem.domain,
        "language": problem.language,
        "metadata": json.dumps(problem.metadata, ensure_ascii=False, sort_keys=True),
    }


def problem_from_row(row: Row) -> Problem:
    """The inverse of `problem_to_row`; metadata may be a JSON string, an object or missing. Raises SourceError."""
    missing = [key for key in R1_KEYS if row.get(key) is None]
    if missing:
        raise SourceError(f"column {missing[0]} is missing or empty; {_found_and_expected(row, 'r1')}")
    metadata = row.get("metadata") or {}
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError as error:
            raise SourceError(f"metadata is not valid JSON ({error})") from None
    if not isinstance(metadata, dict):
        raise SourceError(f"metadata must be an object, got {type(metadata).__name__}")
    checker = _text(row, "checker")
    return Problem(
        id=_text(row, "id"),
        messages=_messages(row["messages"]),
        ground_truth=_ground_truth(row, "ground_truth", checker),
        checker=checker,
        domain=_text(row, "domain"),
        language=_text(row, "language"),
        metadata=metadata,
    )


def detect_schema(row: Row) -> str:
    """The one known layout that fits this row. Raises SourceError when none or several fit."""
    fitting = [name for name, fits in _FITS.items() if fits(row)]
    if len(fitting) == 1:
        return fitting[0]
    fault = f"fits {' and '.join(fitting)}" if fitting else "fits no known schema"
    known = "; ".join(f"{name} ({EXPECTED[name]})" for name in _FITS)
    raise SourceError(
        f"the row {fault} (columns found: {_names(row)}); expected one of {known}: "
        "name one with row_schema, or set row_schema: columns and columns.question, columns.answer"
    )


def problem_from_source_row(row: Row, schema: str, source: ProblemSource, default_id: str) -> Problem:
    """Read one row laid out as `schema` (not auto). Raises SourceError without the place, which the reader adds."""
    problem = problem_from_row(row) if schema == "r1" else _problem_of_layout(row, schema, source, default_id)
    _check_tests(problem)
    return problem if not source.instruction else with_instruction(problem, source.instruction)


def _problem_of_layout(row: Row, schema: str, source: ProblemSource, default_id: str) -> Problem:
    fields = _READERS[schema](row, source)
    messages = fields.get("messages") or ({"role": "user", "content": fields["question"]},)
    question = messages[-1]["content"]
    language = fields.get("language") or (detect_language(question) if source.language == "auto" else source.language)
    return Problem(
        id=fields.get("id") or default_id,
        messages=messages,
        ground_truth=fields["answer"],
        checker=fields.get("checker") or source.checker,
        domain=fields.get("domain") or source.domain or ("math" if schema == "columns" else schema),
        language=language,
        metadata=fields.get("metadata", {}),
    )


def _check_tests(problem: Problem) -> None:
    """Refuse tests that nothing could run. Packed ones, which may be large, come from a reader that checked them."""
    if problem.checker == "code" and not problem.ground_truth.startswith(PACKED):
        try:
            read_code_tests(problem.ground_truth)
        except ValueError as error:
            raise SourceError(f"the tests of checker code cannot be read: {error}") from None


def detect_language(text: str) -> str:
    """'zh' where Han characters outnumber Latin words outside LaTeX, else 'en'."""
    prose = _LATEX.sub(" ", text)
    return "zh" if len(_HAN.findall(prose)) > len(_LATIN_WORD.findall(prose)) else "en"


def last_boxed(text: str) -> str | None:
    """Content of the last complete `\\boxed{...}` or `\\fbox{...}` (braces matched), or None."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        depth = 1
        for end in range(match.end(), len(text)):
            escaped = text[end - 1] == "\\" and text[end - 2] != "\\"
            if text[end] == "{" and not escaped:
                depth += 1
            elif text[end] == "}" and not escaped:
                depth -= 1
                if depth == 0:
                    return text[match.end() : end].strip()
    return None


def _read_gsm8k(row: Row, source: ProblemSource) -> dict[str, Any]:
    solution = _text(row, "answer", schema="gsm8k")
    _, mark, final = solution.rpartition("####")
    if not mark or not final.strip():
        raise SourceError(f"the answer has no '#### 18' at its end; {_found_and_expected(row, 'gsm8k')}")
    return {
        "question": _text(row, "question", schema="gsm8k"),
        "answer": final.strip().replace(",", ""),
        "metadata": {"solution": solution},
    }


def _read_math(row: Row, source: ProblemSource) -> dict[str, Any]:
    solution = "" if row.get("solution") is None else _text(row, "solution")
    answer = last_boxed(solution) if row.get("answer") is None else _text(row, "answer")
    if not answer:
        raise SourceError(f"there is no answer and no \\boxed{{}} in the solution; {_found_and_expected(row, 'math')}")
    metadata: dict[str, Any] = {"solution": solution}
    if row.get("level") is not None:
        metadata["level"] = _level(row["level"])
    subject = row.get("subject") or row.get("type")
    if subject:
        metadata["subject"] = str(subject)
    return {
        "question": _text(row, "problem", schema="math"),
        "answer": answer,
        "id": _optional(row, "unique_id"),
        "metadata": metadata,
    }


def _read_aime(row: Row, source: ProblemSource) -> dict[str, Any]:
    names = {name.lower(): name for name in row}
    for needed in ("problem", "answer"):
        if needed not in names:
            raise SourceError(f"column {needed} is missing; {_found_and_expected(row, 'aime')}")
    answer = _text(row, names["answer"])
    if not re.fullmatch(r"\d{1,3}", answer):
        raise SourceError(f"the answer {answer!r} is not a whole number from 0 to 999, as AIME answers are")
    year = row.get(names.get("year", "year"))
    solution = _optional(row, names.get("solution", "solution"))
    return {
        "question": _text(row, names["problem"]),
        "answer": str(int(answer)),
        "id": _optional(row, names.get("id", "id")),
        "metadata": ({} if year is None else {"year": int(year)}) | ({"solution": solution} if solution else {}),
    }


def _read_benchmark(
    read: Callable[[Row], dict[str, Any]], schema: str
) -> Callable[[Row, ProblemSource], dict[str, Any]]:
    def reader(row: Row, source: ProblemSource) -> dict[str, Any]:
        try:
            fields = read(row)
        except (ValueError, KeyError) as error:
            raise SourceError(f"{error}; {_found_and_expected(row, schema)}") from None
        return fields | ({"domain": source.domain} if source.domain else {})

    return reader


def _read_prompts(row: Row, source: ProblemSource) -> dict[str, Any]:
    prompt = row.get("prompt")
    rubric = _optional(row, "rubric")
    fields: dict[str, Any] = {
        "answer": "",
        "checker": UNCHECKED,
        "id": _optional(row, "id"),
        "domain": _optional(row, "domain") or source.domain or "general",
        "language": _optional(row, "language"),
        "metadata": {"rubric": rubric} if rubric else {},
    }
    if isinstance(prompt, list | tuple):
        return {**fields, "messages": _messages(prompt)}
    return {**fields, "question": _text(row, "prompt", schema="prompts")}


def _read_columns(row: Row, source: ProblemSource) -> dict[str, Any]:
    columns = source.columns
    fields: dict[str, Any] = {"question": _text(row, columns.question, schema="columns")}
    for field, column in (("id", columns.id), ("domain", columns.domain), ("checker", columns.checker)):
        if column is not None:
            fields[field] = _text(row, column, schema="columns")
    fields["answer"] = _ground_truth(row, columns.answer, fields.get("checker", source.checker), schema="columns")
    if columns.language is not None:
        fields["language"] = _text(row, columns.language, schema="columns").lower()
        if not re.fullmatch(r"[a-z]{2}", fields["language"]):
            raise SourceError(
                f"column {columns.language} holds {fields['language']!r}, not an ISO 639-1 code such as en or zh"
            )
    return fields


_READERS: dict[str, Callable[[Row, ProblemSource], dict[str, Any]]] = {
    "gsm8k": _read_gsm8k,
    "math": _read_math,
    "aime": _read_aime,
    "gpqa": _read_benchmark(read_gpqa, "gpqa"),
    "mmlu": _read_benchmark(read_mmlu, "mmlu"),
    "ifeval": _read_benchmark(read_ifeval, "ifeval"),
    "live_code_bench": _read_benchmark(read_live_code_bench, "live_code_bench"),
    "prompts": _read_prompts,
    "columns": _read_columns,
}


def _fits_math(row: Row) -> bool:
    return "problem" in row and ("solution" in row or "answer" in row) and bool({"level", "subject", "type"} & set(row))


def _fits_aime(row: Row) -> bool:
    names = {name.lower() for name in row}
    return {"problem", "answer"} <= names and ("Answer" in row or "year" in names)


_FITS: dict[str, Callable[[Row], bool]] = {
    "r1": lambda row: all(key in row for key in R1_KEYS),
    "gsm8k": lambda row: "question" in row and "####" in str(row.get("answer", "")),
    "math": _fits_math,
    "aime": _fits_aime,
    "gpqa": is_gpqa,
    "mmlu": is_mmlu,
    "ifeval": is_ifeval,
    "live_code_bench": is_live_code_bench,
    "prompts": lambda row: "prompt" in row and set(row) <= _PROMPT_COLUMNS,
}


def with_instruction(problem: Problem, instruction: str) -> Problem:
    """The line stands in `metadata` too, so that decontamination can leave out what all questions share."""
    *history, last = problem.messages
    asked = {**last, "content": f"{last['content'].rstrip()}\n{instruction}"}
    return replace(problem, messages=(*history, asked), metadata={**problem.metadata, INSTRUCTION: instruction})


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    try:
        messages = tuple({"role": str(turn["role"]), "content": str(turn["content"])} for turn in value)
    except (TypeError, KeyError):
        raise SourceError("messages must be a list of {role, content}") from None
    if not messages or messages[-1]["role"] != "user":
        raise SourceError("messages must end with a turn of the user")
    return messages


def _ground_truth(row: Row, column: str, checker: str, schema: str | None = None) -> str:
    """A cell as what `checker` reads: lists and objects become JSON for those that take JSON."""
    value = row.get(column)
    if isinstance(value, list | dict):
        if checker in TEXT_ANSWERS:
            raise SourceError(
                f"{_nested(column, value, f'checker {checker} reads text')}, or name the checker that reads it so"
            )
        return json.dumps(value, ensure_ascii=False)
    return _text(row, column, schema)


def _text(row: Row, column: str, schema: str | None = None) -> str:
    """A cell as text. Numbers are written out; lists and objects are refused, as their JSON is not what they mean."""
    value = row.get(column)
    if isinstance(value, list | dict):
        raise SourceError(_nested(column, value, "a text belongs there"))
    text = "" if value is None else str(value).strip()
    if not text:
        hint = f"; {_found_and_expected(row, schema)}" if schema else ""
        raise SourceError(f"column {column} is {'empty' if column in row else 'missing'}{hint}")
    return text


def _nested(column: str, value: Any, wanted: str) -> str:
    kind = "a list" if isinstance(value, list) else "an object"
    shown = json.dumps(value, ensure_ascii=False, default=str)[:_SHOWN]
    return f"column {column} holds {kind} ({shown}), but {wanted}; write it as text, in a column of its own"


def _optional(row: Row, column: str) -> str | None:
    return None if row.get(column) in (None, "") else str(row[column])


def _level(value: Any) -> int | str:
    """Hendrycks writes 'Level 5' (a few rows 'Level ?'), MATH-500 writes 5."""
    digits = re.search(r"\d+", str(value))
    return int(digits.group()) if digits else str(value)


def _found_and_expected(row: Row, schema: str) -> str:
    return f"found columns {_names(row)}, expected {EXPECTED[schema]}"


def _names(row: Row) -> str:
    return ", ".join(sorted(row)) or "(none)"

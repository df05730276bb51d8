"""Multiple-choice rows (GPQA, MMLU) as questions with lettered options, graded by the letter."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

LETTERS = "ABCDEFGH"  # those that the grader `choice` knows
GPQA_COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def is_gpqa(row: Row) -> bool:
    return set(GPQA_COLUMNS) <= set(row)


def is_mmlu(row: Row) -> bool:
    return {"question", "choices", "answer"} <= set(row)


def read_gpqa(row: Row) -> dict[str, Any]:
    """GPQA lists the right answer first, so its options are shuffled, by the question alone. Raises ValueError."""
    question, *options = (str(row.get(column) or "").strip() for column in GPQA_COLUMNS)
    right = options[0]
    random.Random(question).shuffle(options)
    fields = lettered(question, options, options.index(right))
    subject, solution = row.get("High-level domain"), str(row.get("Explanation") or "").strip()
    metadata = {"subject": str(subject)} if subject else {}
    return fields | {
        "id": str(row["Record ID"]) if row.get("Record ID") else None,
        "domain": "gpqa",
        "metadata": metadata | ({"solution": solution} if solution else {}),
    }


def read_mmlu(row: Row) -> dict[str, Any]:
    """`answer` is the number of the right choice, from 0, or its letter. Raises ValueError."""
    answer: Any = row.get("answer")
    is_letter = isinstance(answer, str) and len(answer) == 1 and not answer.isdigit()
    place = LETTERS.find(answer) if is_letter else answer
    try:
        fields = lettered(str(row.get("question") or "").strip(), [str(c).strip() for c in row["choices"]], int(place))
    except TypeError:
        raise ValueError(f"choices must be a list and answer a number or a letter, got answer {answer!r}") from None
    subject = row.get("subject")
    return fields | {"domain": "mmlu", "metadata": {"subject": str(subject)} if subject else {}}


def lettered(question: str, options: Sequence[str], right: int) -> dict[str, Any]:
    """The question with its options below, one on each line. Raises ValueError for what is not one right choice."""
    if not question or not all(options) or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"a question and 2 to {len(LETTERS)} options, none empty, are needed; got {len(options)}")
    if not 0 <= right < len(options):
        raise ValueError(f"the right option is number {right} of {len(options)}")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return {"question": "\n".join([question, "", *lines]), "answer": LETTERS[right], "checker": "choice"}

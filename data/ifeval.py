"""Rows of IFEval (Zhou et al. 2023, arXiv:2311.07911): a prompt, and the instructions that a program can check in it.

Columns of google/IFEval: `key`, `prompt`, `instruction_id_list`, and `kwargs`, one object for each instruction in which
the arguments of all others are null. As ground truth they are JSON, {"instructions": [{"id": "punctuation:no_comma"},
{"id": "length_constraints:number_words", "relation": "at least", "num_words": 300}, ...]}.

What each id asks for is in `rewards.ifeval`; here are its arguments, so that a row which nothing could check is refused
when it is read. The public checker draws an argument that is missing at random; nobody can have followed that.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Instruction = dict[str, Any]  # {"id": ..., and its arguments}

AT_LEAST, LESS_THAN = "at least", "less than"
LANGUAGES = (
    *("en", "es", "pt", "ar", "hi", "fr", "ru", "de", "ja", "it", "bn", "uk", "th", "ur", "ta", "te", "bg", "ko"),
    *("pl", "he", "fa", "vi", "ne", "sw", "kn", "mr", "gu", "pa", "ml", "fi"),
)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_letter(value: Any) -> bool:
    return _is_text(value) and len(value) == 1


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_relation(value: Any) -> bool:
    return value in (AT_LEAST, LESS_THAN)


def _is_language(value: Any) -> bool:
    return value in LANGUAGES


# id -> argument -> what it must be
INSTRUCTIONS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "keywords:existence": {"keywords": _is_texts},
    "keywords:frequency": {"keyword": _is_text, "frequency": _is_count, "relation": _is_relation},
    "keywords:forbidden_words": {"forbidden_words": _is_texts},
    "keywords:letter_frequency": {"letter": _is_letter, "let_frequency": _is_count, "let_relation": _is_relation},
    "language:response_language": {"language": _is_language},
    "length_constraints:number_sentences": {"num_sentences": _is_count, "relation": _is_relation},
    "length_constraints:number_paragraphs": {"num_paragraphs": _is_count},
    "length_constraints:number_words": {"num_words": _is_count, "relation": _is_relation},
    "length_constraints:nth_paragraph_first_word": {
        **{"num_paragraphs": _is_count, "nth_paragraph": _is_count, "first_word": _is_text},
    },
    "detectable_content:number_placeholders": {"num_placeholders": _is_count},
    "detectable_content:postscript": {"postscript_marker": _is_text},
    "detectable_format:number_bullet_lists": {"num_bullets": _is_count},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": _is_count},
    "detectable_format:multiple_sections": {"section_spliter": _is_text, "num_sections": _is_count},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": _is_text},
    "startend:end_checker": {"end_phrase": _is_text},
    "startend:quotation": {},
    "change_case:capital_word_frequency": {"capital_frequency": _is_count, "capital_relation": _is_relation},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
}


def is_ifeval(row: Row) -> bool:
    return {"prompt", "instruction_id_list", "kwargs"} <= set(row)


def read_ifeval(row: Row) -> dict[str, Any]:
    """The fields of a problem. Raises ValueError for an instruction, or arguments of one, that are not known."""
    prompt, names, arguments = row.get("prompt"), row.get("instruction_id_list"), row.get("kwargs")
    if not _is_text(prompt):
        raise ValueError("the prompt is missing or empty")
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments):
        raise ValueError("instruction_id_list and kwargs must be lists of one length")
    instructions = [_instruction(name, given) for name, given in zip(names, arguments, strict=True)]
    truth = json.dumps({"instructions": instructions}, ensure_ascii=False)
    read_instructions(truth)
    return {
        "question": prompt,
        "answer": truth,
        "checker": "ifeval",
        "domain": "instruction",
        "id": None if row.get("key") is None else f"ifeval-{row['key']}",
    }


def read_instructions(ground_truth: str) -> list[Instruction]:
    """The instructions of a ground truth, all of them known. Raises ValueError saying what is wrong."""
    parsed = json.loads(ground_truth)
    instructions = parsed.get("instructions") if isinstance(parsed, dict) else None
    if not isinstance(instructions, list) or not instructions:
        raise ValueError('expected {"instructions": [...]} with at least one of them')
    for instruction in instructions:
        _check(instruction)
    return instructions


def _instruction(name: Any, given: Any) -> Instruction:
    if not isinstance(given, dict | None):
        raise ValueError(f"the kwargs of instruction {name!r} are no object")
    # Tables that know no whole number with gaps hold 3.0.
    whole = {key: int(value) if isinstance(value, float) and value.is_integer() else value
             for key, value in (given or {}).items() if value is not None}  # fmt: skip
    return {"id": name, **whole}


def _check(instruction: Any) -> None:
    name = instruction.get("id") if isinstance(instruction, dict) else None
    if not isinstance(name, str) or name not in INSTRUCTIONS:
        raise ValueError(f"there is no instruction {name!r} among the {len(INSTRUCTIONS)} of IFEval")
    expected = INSTRUCTIONS[name]
    given = {key: value for key, value in instruction.items() if key != "id"}
    if given.keys() != expected.keys() or not all(is_valid(given[key]) for key, is_valid in expected.items()):
        raise ValueError(f"instruction {name} takes {', '.join(expected) or 'no arguments'}; got {given}")

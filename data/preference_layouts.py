"""From one row of a preference data set to a record, for each known layout. Pure functions.

    pairs                   prompt, chosen, rejected: texts, or lists of {role, content} of which the last turn is the
                            response, with the turns of the prompt before it (UltraFeedback binarized, HH as messages)
                            or without, where prompt is a list too (TRL); score_chosen, score_rejected or gap
    ranked                  prompt, responses, and perhaps truth (or scores)
    ultrafeedback           instruction, completions with response and overall_score (or fine-grained_score)
    helpsteer2              prompt, response, helpfulness; the rows of one prompt follow each other
    helpsteer2_preference   prompt, response_1, response_2, preference_strength from -3 (first) to 3 (second)
    safety                  prompt, response and safe, is_safe, label (safe | unsafe | harmless | harmful ...), or
                            response_harm_label (WildGuard); rows where all of these are null have no label

Rows that r1 wrote itself are `pairs`, `ranked` and `safety` with more columns.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from data.preferences import BadRecord, Preference, PreferencePair, RankedResponses, SafetyLabel, Turns

Row = Mapping[str, Any]
Common = Mapping[str, Any]  # id, source, and language when it is given

EXPECTED = {
    "pairs": "prompt, chosen, rejected",
    "ranked": "prompt, responses",
    "ultrafeedback": "instruction, completions",
    "helpsteer2": "prompt, response, helpfulness",
    "helpsteer2_preference": "prompt, response_1, response_2, preference_strength",
    "safety": "prompt, response and safe, is_safe, label or response_harm_label",
}
_SAFE = {"safe": True, "harmless": True, "unharmful": True, "unsafe": False, "harmful": False}
_SAFE_COLUMNS = ("safe", "is_safe", "label", "response_harm_label")
_TURN = re.compile(r"<extra_id_1>(User|Assistant)\n")  # how HelpSteer2 writes earlier turns


def read_pair(row: Row, common: Common) -> PreferencePair:
    """Where chosen and rejected are conversations, what comes before the last turn belongs to the prompt."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    before: Turns = ()
    if isinstance(chosen, list) and isinstance(rejected, list):
        before, chosen = _last_turn(chosen)
        _, rejected = _last_turn(rejected)
    history, prompt = _prompt(row, before)
    gap = _number(row, "gap")
    if gap is None and None not in (scores := (_number(row, "score_chosen"), _number(row, "score_rejected"))):
        gap = float(scores[0]) - float(scores[1])  # pyright: ignore[reportArgumentType]
    return PreferencePair(
        prompt=prompt,
        chosen=_text(chosen),
        rejected=_text(rejected),
        gap=gap,
        history=history,
        **_own(row, common),
    )


def read_ranked(row: Row, common: Common) -> RankedResponses:
    truth = row.get("truth") or row.get("scores")
    return RankedResponses(
        prompt=_text(row["prompt"]),
        responses=tuple(_text(text) for text in row["responses"] or ()),
        truth=None if truth is None else tuple(map(float, truth)),
        history=_turns(row.get("history")),
        **_own(row, common),
    )


def read_safety(row: Row, common: Common) -> SafetyLabel:
    value = next((row[name] for name in _SAFE_COLUMNS if row.get(name) is not None), None)
    if value is None:
        raise BadRecord("unlabelled", "there is no label")
    safe = value if isinstance(value, bool) else _SAFE.get(str(value).strip().lower())
    if safe is None:
        raise BadRecord("malformed", f"the label {value!r} is none of {', '.join(_SAFE)}, true and false")
    history, prompt = _turns(row.get("history")), _text(row["prompt"])
    return SafetyLabel(prompt=prompt, response=_text(row["response"]), safe=safe, history=history, **_own(row, common))


def read_ultrafeedback(row: Row, common: Common) -> RankedResponses:
    completions = row["completions"]
    if not isinstance(completions, list):
        raise BadRecord("malformed", "completions is not a list")
    return RankedResponses(
        prompt=_text(row["instruction"]),
        responses=tuple(_text(each.get("response")) for each in completions),
        truth=_scores(completions),
        **common,
    )


def read_helpsteer2(row: Row, common: Common) -> RankedResponses:
    """`row` is several that follow each other: response and helpfulness (0 to 4) are lists. See `merged`."""
    history, prompt = _helpsteer_turns(_text(row["prompt"]))
    return RankedResponses(
        prompt=prompt,
        responses=tuple(_text(text) for text in row["response"]),
        truth=tuple(map(float, row["helpfulness"])),
        history=history,
        **common,
    )


def read_helpsteer2_preference(row: Row, common: Common) -> PreferencePair:
    history, prompt = _helpsteer_turns(_text(row["prompt"]))
    strength = _number(row, "preference_strength") or 0.0
    first, second = _text(row["response_1"]), _text(row["response_2"])
    chosen, rejected = (second, first) if strength > 0 else (first, second)
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, gap=abs(strength), history=history, **common)


READERS: dict[str, Callable[[Row, Common], Preference]] = {
    "pairs": read_pair,
    "ranked": read_ranked,
    "ultrafeedback": read_ultrafeedback,
    "helpsteer2": read_helpsteer2,
    "helpsteer2_preference": read_helpsteer2_preference,
    "safety": read_safety,
}


def fitting_layout(row: Row) -> str | None:
    """The one layout whose columns this row has, the most particular first; None when none fits."""
    names = set(row)
    if {"prompt", "response_1", "response_2", "preference_strength"} <= names:
        return "helpsteer2_preference"
    if {"instruction", "completions"} <= names:
        return "ultrafeedback"
    if {"chosen", "rejected"} <= names and ("prompt" in names or isinstance(row["chosen"], list)):
        return "pairs"
    if {"prompt", "responses"} <= names:
        return "ranked"
    if {"prompt", "response"} <= names and names & set(_SAFE_COLUMNS):
        return "safety"
    return "helpsteer2" if {"prompt", "response", "helpfulness"} <= names else None


def _own(row: Row, common: Common) -> dict[str, Any]:
    """What rows of r1 say themselves takes the place of what the reader knows."""
    own = {name: str(row[name]) for name in ("id", "source", "language") if row.get(name)}
    metadata = row.get("metadata")
    if isinstance(metadata, str) and "history" in row:  # a row of ours; others mean other things by the name
        own["metadata"] = json.loads(metadata)
    return {**common, **own}


def _scores(completions: list[Any]) -> tuple[float, ...]:
    """The mean of the fine-grained scores (1 to 5) where all have one, else the overall ones (1 to 10), of which some
    are ten times too large in UltraFeedback's first release."""
    for name in ("fine-grained_score", "overall_score"):
        scores = [_number(each, name) for each in completions]
        if None not in scores:
            return tuple(float(score) for score in scores if score is not None)
    raise BadRecord("malformed", "a completion has neither fine-grained_score nor overall_score")


def _helpsteer_turns(text: str) -> tuple[Turns, str]:
    """Earlier turns stand in the prompt: "Hi<extra_id_1>Assistant\\nHello<extra_id_1>User\\nTell me more"."""
    pieces = ["User", *_TURN.split(text)]
    turns = [
        {"role": role.lower(), "content": said.strip()}
        for role, said in zip(pieces[::2], pieces[1::2], strict=True)
        if said.strip()
    ]
    return _asked(tuple(turns))


def _last_turn(turns: list[Any]) -> tuple[Turns, str]:
    """(what was said before, the assistant's last turn)."""
    *before, last = _turns(turns) or ({"role": "", "content": ""},)
    if last["role"] != "assistant":
        raise BadRecord("malformed", "the last turn of a response is not the assistant's")
    return tuple(before), last["content"]


def _prompt(row: Row, before: Turns) -> tuple[Turns, str]:
    """(history, prompt) of a pair. `before`: what stands before the response in `chosen`, with or without the turns of
    the prompt, or nothing."""
    prompt = row.get("prompt")
    if "history" in row:  # a row of ours
        return _turns(row["history"]), _text(prompt)
    if isinstance(prompt, list):
        asked = _turns(prompt)
        return _asked(before if before[: len(asked)] == asked else (*asked, *before))
    return _asked(before) if before else ((), _text(prompt))


def _asked(turns: Turns) -> tuple[Turns, str]:
    if not turns:
        raise BadRecord("empty", "prompt is empty")
    *history, last = turns
    if last["role"] != "user":
        raise BadRecord("malformed", f"the turn before the response is the {last['role']}'s, not the user's")
    return tuple(history), last["content"]


def _turns(value: Any) -> Turns:
    try:
        return tuple({"role": str(turn["role"]), "content": str(turn["content"])} for turn in value or ())
    except (TypeError, KeyError):
        raise BadRecord("malformed", "turns must be a list of {role, content}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecord("malformed", f"expected a text, found {type(value).__name__}")
    return value


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise BadRecord("malformed", f"{name} is {type(value).__name__}, not a number")

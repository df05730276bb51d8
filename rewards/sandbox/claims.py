"""What a jail claims that runs a model's program: hostile text, read into something harmless or nothing at all."""

from typing import Any

from rewards.sandbox.jail import plain


def read_answer(line: str) -> dict[str, Any] | None:
    """An answer of `python_runner.serve_module`; None for anything else, never an exception.

    Keys: value and args, checked plain forms; raised, [type, message]; object, a number; why, a sentence.
    """
    try:
        answer = plain.parse(line)
        if not isinstance(answer, dict) or not answer.keys() & {"value", "raised", "object", "why"}:
            return None
        for key in answer.keys() & {"value", "args"}:
            plain.check(answer[key])
    except Exception:  # whatever it breaks, the program has broken it
        return None
    raised = answer.get("raised", ["", ""])
    readable = isinstance(raised, list) and len(raised) == 2 and all(isinstance(part, str) for part in raised)
    readable = readable and isinstance(answer.get("object", 0), int) and isinstance(answer.get("why", ""), str)
    return answer if readable and isinstance(answer.get("args", []), list) else None


def printable(text: str) -> str:
    """The beginning of a text of a program, for a sentence that is written to files: no half characters."""
    return text[:300].encode(errors="replace").decode()

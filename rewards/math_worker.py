"""The child process of `rewards.grader_process`: decides whether two formulas are equal, one JSON line at a time.

    stdin   {"gold": str, "answer": str}
    stdout  {"ready": true} once, then per request {"equal": bool} | {"unparsed": "gold" | "answer"} | {"error": str}

Text is read by latex2sympy's grammar (ANTLR) alone: math-verify's plain-expression reader calls sympy's `parse_expr`,
which evaluates Python, so it is left out. Parsing may still allocate or compute without end (`9^{9^9}`); the limits on
memory and processor time below and the parent's deadline are what stops it. This is not a sandbox for programs.

Not guaranteed: where a library swallows the MemoryError of an enormous intermediate, the reply is "not equal" instead
of an error. It is never "equal" for that reason.

Run as: python -m rewards.math_worker MEMORY_MB CPU_SECONDS_PER_CHECK
"""

import json
import logging
import math
import os
import resource
import sys
import time
from typing import Any, TextIO

# A proof of readiness that also warms sympy's caches, so that the first deadline measures grading, not importing.
WARM_UP = ("\\frac{1}{2}", "\\sqrt{4}-\\frac{3}{2}")


def compare(gold: str, answer: str) -> dict[str, Any]:
    """Whether `answer` equals `gold` by math-verify, with its own timeouts (SIGALRM) off."""
    from math_verify import verify

    parsed_gold = parse_formula(gold)
    if not parsed_gold:
        return {"unparsed": "gold"}
    parsed_answer = parse_formula(answer)
    if not parsed_answer:
        return {"unparsed": "answer"}
    equal = bool(verify(parsed_gold, parsed_answer, timeout_seconds=None, raise_on_error=True))
    return {"equal": equal and not differ_in_size(parsed_gold[0], parsed_answer[0])}


def differ_in_size(gold: Any, answer: Any) -> bool:
    """Whether two numbers are apart by more than 1e-5 of the larger one.

    Verify rounds to six decimals, so it would call `1/2004!` and `1/2006!` equal: both are nearly 0.
    """
    from sympy import Expr, N

    if not all(isinstance(side, Expr) and side.is_number for side in (gold, answer)):
        return False
    gold_value, answer_value = N(gold), N(answer)
    if not (gold_value.is_finite and answer_value.is_finite):
        return False
    return bool(abs(gold_value - answer_value) > max(abs(gold_value), abs(answer_value)) / 10**5)


def parse_formula(text: str) -> list[Any]:
    """The sympy object written as LaTeX in `text`, in a list; empty when it is not a formula."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        "\\boxed{" + text + "}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # type: ignore[arg-type]  # None is documented: no signals, the caller keeps time
    )


def limit_memory(megabytes: int) -> None:
    """Cap the address space. Platforms that refuse (macOS) keep the deadline as their only limit."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    except (ValueError, OSError):
        logging.getLogger(__name__).warning("no memory limit: this platform refuses RLIMIT_AS")


def limit_cpu(seconds: float) -> None:
    """Let the kernel end this process after `seconds` more of processor time.

    The parent's deadline normally comes first. This one is for the case that the parent is gone.
    """
    soft = math.ceil(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def serve(requests: TextIO, replies: TextIO, cpu_seconds: float) -> None:
    """Answer until stdin closes. After running out of memory the process ends, since its caches may be damaged."""
    for line in requests:
        limit_cpu(cpu_seconds)
        request = json.loads(line)
        try:
            reply = compare(request["gold"], request["answer"])
        except MemoryError:
            reply = {"error": "out of memory"}
        except Exception as error:
            reply = {"error": f"{type(error).__name__} while comparing"}
        send(replies, reply)
        if reply.get("error") == "out of memory":
            return


def send(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def main() -> None:
    memory_mb, cpu_seconds = int(sys.argv[1]), float(sys.argv[2])
    # Libraries may print; the pipe to the parent is for replies only.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    limit_memory(memory_mb)
    try:
        warm = compare(*WARM_UP)
    except Exception as error:
        send(replies, {"error": f"grader cannot start: {type(error).__name__}: {error}"})
        return
    send(replies, {"ready": True} if warm == {"equal": True} else {"error": f"grader failed its self-test: {warm}"})
    serve(sys.stdin, replies, cpu_seconds)


if __name__ == "__main__":
    main()

"""Maths checks per second and latency: our grader against math-verify called in this process, alternating in one run.

    python benchmarks/math_grader.py [--rounds 5] [--seconds 4] [--json FILE]

Both get the same pairs of gold and final answer, in the same order, each warmed up. Ours goes through
`rewards.math_answer.grade_math` with one grader process, so that both use one core at a time. Workloads:

mixed       what policies write: mostly plain numbers, some fractions, formulas, lists and words
formulas    pairs that all need algebra: every check goes to the grader process
groups      formulas again, but sixteen answers to each gold answer, as in a GRPO group

In-process math-verify has no deadline here (its own is a signal, which works in main threads only).
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conditions import conditions

from rewards.grader_process import GraderPool
from rewards.math_answer import grade_math

Pair = tuple[str, str]
FORMULAS = [
    ("x^2-1", "(x-1)(x+1)"), ("x^2-1", "(x-1)(x+2)"), (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}"),
    (r"2\sqrt{2}", r"\sqrt{8}"), (r"\frac{\pi}{6}", r"\frac{2\pi}{12}"), ("2^{n+1}", r"2 \cdot 2^n"),
    (r"\sin^2 x", r"1-\cos^2 x"), (r"\frac{1}{x}+1", r"\frac{x+1}{x}"), (r"\sqrt{17}", "4.12"), (r"3+2i", r"2i+3"),
]  # fmt: skip
MORE_THAN_KEPT = 300  # golds of a kind, more than either side keeps in a cache


def numbers(number: int) -> list[Pair]:
    return [
        (f"{42 + number}", f"{42 + number}"), (f"{7425 + number}", f"{7425 + number:,}"),
        (f"-{3 + number}", f"{3 + number}"), (f"{number}.5", rf"\frac{{{2 * number + 1}}}{{2}}"),
        (f"{18 + number}", f"{18 + number}.0"), (f"{4 * number + 3}/4", f"{number}.75"),
    ]  # fmt: skip


def others(number: int) -> list[Pair]:
    return [
        (r"\text{odd}", "odd"), (f"1, {number + 2}", f"{number + 2}, 1"), (f"({number}, 2)", f"({number},2)"),
        ("B", "(C)"), (rf"{number}\%", f"{number / 100:.2f}"),
    ]  # fmt: skip


def mixed() -> list[Pair]:
    return [
        pair
        for number in range(MORE_THAN_KEPT)
        for pair in (*numbers(number), formula(number), others(number)[number % 5])
    ]


def formula(number: int) -> Pair:
    gold, answer = FORMULAS[number % len(FORMULAS)]
    return shift(gold, number // len(FORMULAS)), shift(answer, number // len(FORMULAS))


def formulas() -> list[Pair]:
    return [formula(number) for number in range(MORE_THAN_KEPT)]


def groups() -> list[Pair]:
    return [(gold, shift(answer, number)) for gold, answer in FORMULAS for number in range(16)]


def shift(formula: str, number: int) -> str:
    """Another formula of the same shape."""
    return f"{formula} + {number}" if number else formula


WORKLOADS: dict[str, Callable[[], list[Pair]]] = {"mixed": mixed, "formulas": formulas, "groups": groups}


def check_in_process(gold: str, answer: str) -> bool:
    from math_verify import parse, verify

    # A dollar around each, as math-verify wants; timeouts off, as in threads and Ray actors.
    parsed = [parse(f"${side}$", parsing_timeout=None) for side in (gold, answer)]  # type: ignore[arg-type]
    return bool(verify(*parsed, timeout_seconds=None))


def latencies(check: Callable[[str, str], object], pairs: Sequence[Pair], seconds: float) -> list[float]:
    """Seconds per check, over whole passes until the time is over."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for gold, answer in pairs:
            start = time.perf_counter()
            check(gold, answer)
            taken.append(time.perf_counter() - start)
    return taken


def measure(pairs: Sequence[Pair], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Alternating rounds; per side the median over rounds of checks/s, and p50 and p99 of all latencies in ms."""
    with GraderPool() as pool:
        sides = {"ours": lambda gold, answer: grade_math(gold, answer, pool), "math-verify": check_in_process}
        for check in sides.values():
            latencies(check, pairs, 0.1)
        taken: dict[str, list[list[float]]] = {side: [] for side in sides}
        for number in range(rounds):
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            for side in order:
                taken[side].append(latencies(sides[side], pairs, seconds))
    return {side: summarise(rows) for side, rows in taken.items()}


def summarise(rounds: list[list[float]]) -> dict[str, float]:
    everything = sorted(value for taken in rounds for value in taken)
    rates = [len(taken) / sum(taken) for taken in rounds]
    return {
        "checks_per_s": statistics.median(rates),
        "slowest_round_per_s": min(rates),
        "fastest_round_per_s": max(rates),
        "p50_ms": 1000 * everything[len(everything) // 2],
        "p99_ms": 1000 * everything[len(everything) * 99 // 100],
    }


def lines(results: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    yield f"{'workload':10} {'side':12} {'checks/s':>9} {'p50 ms':>8} {'p99 ms':>8}"
    for workload, sides in results.items():
        for side, row in sides.items():
            yield f"{workload:10} {side:12} {row['checks_per_s']:9.0f} {row['p50_ms']:8.3f} {row['p99_ms']:8.2f}"
        ratio = sides["ours"]["checks_per_s"] / sides["math-verify"]["checks_per_s"]
        yield f"{workload:10} ours / math-verify: {100 * ratio:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="per side and round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    head = conditions("math-verify", "sympy")
    logging.disable(logging.CRITICAL)
    results = {name: measure(make(), arguments.rounds, arguments.seconds) for name, make in WORKLOADS.items()}
    print("\n".join(lines(results)))
    if arguments.json:
        record = {**head, "rounds": arguments.rounds, "seconds": arguments.seconds, "results": results}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Which detector tells the languages of a chain of thought apart? Ours by script, beside py3langid and lingua.

    python benchmarks/language_detector.py --json docs/results/language_detector.json

Each text is a worked solution of the tiny chain's families whose steps are in English or in Chinese, step by step at
random, so the true share of English words is known. py3langid and lingua judge step by step; lingua also divides the
whole text by itself. All are limited to the two languages. n texts, three rounds in turns. Needs the `bench` extra.
"""

import argparse
import importlib.metadata
import json
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import psutil
from rich.console import Console
from rich.table import Table

from data import families
from rewards.language import count_words_by_script, language_consistency

ROUNDS = 3
Steps = list[tuple[str, str]]  # (language, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300, help="texts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    texts = [mixed_solution(random.Random(f"language-{i}")) for i in range(arguments.n)]
    truths = [true_share(steps) for steps in texts]
    detectors = {
        "script (ours)": by_script, "py3langid by step": by_py3langid(), "lingua by step": by_lingua(),
        "lingua, own division": by_lingua_division(),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in detectors}
    errors: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, detect in detectors.items():
            started = time.perf_counter()
            shares = [detect(steps) for steps in texts]
            seconds[name].append((time.perf_counter() - started) / len(texts))
            errors[name] = [abs(share - truth) for share, truth in zip(shares, truths, strict=True)]
    rows = {
        name: {
            "mean_error": mean(errors[name]),
            "share_within_0.05": mean(error <= 0.05 for error in errors[name]),
            "worst_error": max(errors[name]),
            "us_per_text": {"min": 1e6 * min(seconds[name]), "median": 1e6 * median(seconds[name]),
                            "max": 1e6 * max(seconds[name])},
        }
        for name in detectors
    }  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in ("py3langid", "lingua-language-detector")}
    show(rows, arguments.n)
    if arguments.json:
        record = {
            "command": "python benchmarks/language_detector.py --json docs/results/language_detector.json",
            "machine": {"cores": psutil.cpu_count(), "python": platform.python_version()},
            "versions": versions, "n": arguments.n, "rounds": ROUNDS, "detectors": rows,
        }  # fmt: skip
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def mixed_solution(rng: random.Random) -> Steps:
    """Steps of one solution, each with its language."""
    chosen: list[str] = []

    def step_language() -> str:
        chosen.append(rng.choice(families.LANGUAGES))
        return chosen[-1]

    task = families.make_task(rng.choice(families.FAMILIES), rng.choice(families.LEVELS), "train", rng)
    steps, _ = families.solve(task, step_language, families.careful)
    return list(zip(chosen, steps, strict=True))


def words(text: str) -> int:
    return sum(count_words_by_script(text).values())


def true_share(steps: Steps) -> float:
    """Share of English words; a step is in one language, so its words need no detector."""
    return sum(words(text) for language, text in steps if language == "en") / sum(words(text) for _, text in steps)


def by_script(steps: Steps) -> float:
    return language_consistency("".join(text for _, text in steps), "en") or 0.0


def _by_step(detect: Callable[[str], bool]) -> Callable[[Steps], float]:
    """Share of the words that are in steps which `detect` takes for English."""

    def share(steps: Steps) -> float:
        counted = [(words(text), detect(text)) for _, text in steps]
        return sum(count for count, english in counted if english) / sum(count for count, _ in counted)

    return share


def by_py3langid() -> Callable[[Steps], float]:
    import py3langid

    py3langid.set_languages(["en", "zh"])
    return _by_step(lambda text: py3langid.classify(text)[0] == "en")


def _lingua():
    from lingua import Language, LanguageDetectorBuilder

    languages = (Language.ENGLISH, Language.CHINESE)
    return LanguageDetectorBuilder.from_languages(*languages).with_preloaded_language_models().build(), languages[0]


def by_lingua() -> Callable[[Steps], float]:
    detector, english = _lingua()
    return _by_step(lambda text: detector.detect_language_of(text) == english)


def by_lingua_division() -> Callable[[Steps], float]:
    detector, english = _lingua()

    def share(steps: Steps) -> float:
        text = "".join(text for _, text in steps)
        parts = [
            (words(text[p.start_index : p.end_index]), p.language == english)
            for p in detector.detect_multiple_languages_of(text)
        ]
        return sum(count for count, is_english in parts if is_english) / max(1, sum(count for count, _ in parts))

    return share


def show(rows: dict, n: int) -> None:
    table = Table(title=f"Share of English words in {n} mixed solutions")
    for column in ("detector", "mean error", "within 0.05", "worst", "us per text (min / median / max)"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for name, row in rows.items():
        spread = row["us_per_text"]
        table.add_row(
            name, f"{row['mean_error']:.3f}", f"{row['share_within_0.05']:.0%}", f"{row['worst_error']:.2f}",
            f"{spread['min']:.0f} / {spread['median']:.0f} / {spread['max']:.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()

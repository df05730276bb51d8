"""A million rows through the traces stage: filters, exact and near duplicates, 10-grams of held-out text, shards.

    python benchmarks/trace_filter.py [--rows 1000000] [--rounds 3] [--workers 2] [--json FILE]

The stage is run as a recipe runs it, with `source`, in a process of its own whose memory is watched from outside with
that of its workers. A round takes from the call to the last shard, start-up of workers included. Rows are made once:
short traces, about 100 words (their bytes are reported), of which known shares are

exact       a row again, in capitals and other white space             dropped as duplicate
near        a row again with one word changed                          dropped as near_duplicate
leak        12 words of a held-out problem in the question or answer   dropped as held out
half        a row with every eighth word changed (similarity ~ 0.3)    kept
nine        9 words of a held-out problem                              kept
plain       English, a tenth of it with formulas; Chinese              kept
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conditions import conditions
from memory_watch import MemoryWatch

SHARES = {"exact": 0.05, "near": 0.05, "leak": 0.02, "half": 0.01, "nine": 0.01}
KEPT = ("plain", "half", "nine")
CHINESE, FORMULAS = 0.05, 0.1  # of the plain rows
QUESTION, REASONING, FINAL = 20, 70, 10  # words
LONGEST_BACK = 10_000  # rows between a row and its copy
COMMON = (
    *("the", "of", "and", "to", "in", "is", "that", "it", "for", "as", "we", "so", "then", "add", "all", "both"),
    *("first", "now", "get", "from", "each", "into", "with"),
)
Turn = tuple[str, str, str]  # question, reasoning, final part


def make_rows(count: int, held_out: list[list[str]], rng: random.Random) -> Iterator[dict[str, Any]]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(3, 10))) for _ in range(20_000)]
    vocabulary += COMMON * 450  # a third of all words
    recent: list[Turn] = []
    for number in range(count):
        kind = rng.choices([*SHARES, "plain"], [*SHARES.values(), 1 - sum(SHARES.values())])[0]
        kind = "plain" if number < 100 else kind
        if kind in ("exact", "near", "half"):
            turn = changed(rng.choice(recent), kind, vocabulary, rng)
        elif kind in ("leak", "nine"):
            words = rng.choice(held_out)
            shown = 12 if kind == "leak" else 9
            start = rng.randrange(len(words) - shown + 1)
            turn = planted(english(vocabulary, rng, False), words[start : start + shown], rng)
        else:
            turn = chinese(rng) if rng.random() < CHINESE else english(vocabulary, rng, rng.random() < FORMULAS)
            if number % 7 == 0 and turn[0].isascii():
                recent = [*recent[-LONGEST_BACK // 10 :], turn]
        question, reasoning, final = turn
        answer = f"<think>\n{reasoning}\n</think>\n\n{final}"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        language = "en" if question.isascii() else "zh"
        yield {"id": f"{kind}-{number}", "messages": messages, "domain": "sums", "language": language, "source": "made"}


def english(vocabulary: list[str], rng: random.Random, formulas: bool) -> Turn:
    words = rng.choices(vocabulary, k=QUESTION + REASONING + FINAL)
    if formulas:
        for place in range(5, len(words), 9):
            words[place] = f"$x_{rng.randrange(99)} = \\frac{{{rng.randrange(999)}}}{{{rng.randrange(99)}}}$"
    return prose(words)


def prose(words: list[str]) -> Turn:
    lines = [" ".join(words[start : start + 14]) + "." for start in range(QUESTION, QUESTION + REASONING, 14)]
    return " ".join(words[:QUESTION]) + "?", "\n".join(lines), " ".join(words[QUESTION + REASONING :]) + "."


def chinese(rng: random.Random) -> Turn:
    said = ["".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(length)) for length in (20, 40, 30, 10)]
    return f"{said[0]}?", f"{said[1]}。\n{said[2]}。", f"{said[3]}。"


def changed(turn: Turn, kind: str, vocabulary: list[str], rng: random.Random) -> Turn:
    if kind == "exact":
        question, reasoning, final = turn
        return question.upper(), reasoning.replace(" ", "  ", 3), f"{final} "
    parts = [part.split(" ") for part in turn]
    places = [(part, place) for part in range(3) for place in range(len(parts[part]))]
    chosen = [places[len(places) // 2]] if kind == "near" else places[::8]
    for part, place in chosen:
        parts[part][place] = f"{rng.choice(vocabulary)}{rng.randrange(10**6)}"
    return tuple(" ".join(part) for part in parts)  # type: ignore[return-value]


def planted(turn: Turn, words: list[str], rng: random.Random) -> Turn:
    parts = list(turn)
    part = rng.randrange(3)
    parts[part] = f"{parts[part]} Xq {' '.join(words)} qX."
    return tuple(parts)  # type: ignore[return-value]


def held_out_problems(rng: random.Random, count: int = 5000) -> list[list[str]]:
    """Words that no row has by chance, so that nine of them are nine and not ten."""
    return [[f"h{rng.randrange(10**6)}" for _ in range(40)] for _ in range(count)]


def run_stage(source: Path, held_out: Path, output: Path, workers: int) -> None:
    """In a process of its own: prints what it took."""
    from data.config import ProblemSource
    from distill.traces import run
    from distill.traces_config import TracesConfig
    from training.stage import StageContext

    config = TracesConfig(
        source=(source,), held_out_sources=(ProblemSource(path=str(held_out)),), filter_workers=workers
    )
    start = time.time()
    run(config, StageContext(name="traces", inputs={}, output=output, seed=0))
    end = time.time()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"start": start, "end": end, "cpu_s": sum(each.ru_utime + each.ru_stime for each in used)}))


def measure(source: Path, held_out: Path, output: Path, rows: int, workers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--stage", str(source), str(held_out), str(output), "--workers", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with MemoryWatch(process.pid) as watch:
        printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the stage ended with {process.returncode}")
    took = json.loads(printed.splitlines()[-1])
    seconds = took["end"] - took["start"]
    return {
        "seconds": seconds,
        "rows_per_s": rows / seconds,
        "cpu_us_per_row": 1e6 * took["cpu_s"] / rows,
        **watch.peak(took["start"], took["end"]),
    }


def outcome(output: Path, planted: Counter[str]) -> dict[str, Any]:
    """Per kind of row: how many there were, and how many are in the set."""
    import pyarrow.parquet as pq

    from data.dataset_files import dataset_files

    kept: Counter[str] = Counter()
    files = dataset_files(output)
    for file in files:
        kept.update(name.partition("-")[0] for name in pq.read_table(file, columns=["id"])["id"].to_pylist())
    found = {kind: {"rows": planted[kind], "kept": kept[kind]} for kind in planted}
    dropped_bad = sum(planted[kind] - kept[kind] for kind in planted if kind not in KEPT)
    dropped_good = sum(planted[kind] - kept[kind] for kind in planted if kind in KEPT)
    bad = sum(planted[kind] for kind in planted if kind not in KEPT)
    return {
        "kinds": found,
        "recall": dropped_bad / bad,
        "precision": dropped_bad / (dropped_bad + dropped_good),
        "innocent_rows_dropped": dropped_good,
        "shards": len(files),
        "rejected": json.loads((output / "data_card.json").read_text())["rejected"],
    }


def prepare(folder: Path, rows: int) -> tuple[Path, Path, Counter[str]]:
    rng = random.Random(0)
    held_out = held_out_problems(rng)
    benchmark, source = folder / "held_out.jsonl", folder / "rows.jsonl"
    problems = [{"question": " ".join(words), "answer": "#### 1"} for words in held_out]
    benchmark.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    kinds: Counter[str] = Counter()
    with source.open("w") as file:
        for row in make_rows(rows, held_out, rng):
            kinds[row["id"].partition("-")[0]] += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return source, benchmark, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--stage", type=Path, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(*arguments.stage, arguments.workers)
        return
    head = conditions("numpy", "pyarrow", "pydantic")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, benchmark, kinds = prepare(folder, arguments.rows)
        size = source.stat().st_size / arguments.rows
        rounds = []
        for number in range(arguments.rounds):
            output = folder / f"out{number}"
            rounds.append(measure(source, benchmark, output, arguments.rows, arguments.workers))
            print(json.dumps(rounds[-1]), flush=True)
        found = outcome(output, kinds)
    rates = [each["rows_per_s"] for each in rounds]
    result = {
        **head,
        "rows": arguments.rows,
        "bytes_per_row": round(size),
        "workers": arguments.workers,
        "rows_per_s": {
            "median": statistics.median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
            "n": len(rates),
        },
        "peak_pss_mib": max(each["pss_mib"] for each in rounds),
        "peak_rss_mib": max(each["rss_mib"] for each in rounds),
        "rounds": rounds,
        "found": found,
    }
    print(f"{result['rows_per_s']}, peak PSS {result['peak_pss_mib']:.0f} MiB, RSS {result['peak_rss_mib']:.0f} MiB")
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

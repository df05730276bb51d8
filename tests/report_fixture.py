"""A finished run folder without a run: every file the report reads, with numbers that look like the paper's story."""

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.statistics import summarise

DOMAINS, LANGUAGES, K = ("chain_sum", "countdown", "calendar"), ("en", "zh"), 4
# checkpoint: (accuracy, language consistency, format rate, length)
CHECKPOINTS = {
    "base": (0.06, 0.90, 0.55, 60),
    "zero": (0.55, 0.86, 0.93, 130),
    "dev1": (0.34, 0.96, 0.99, 90),
    "dev2": (0.58, 0.99, 1.0, 120),
    "dev3": (0.60, 0.985, 1.0, 115),
    "r1": (0.68, 0.99, 1.0, 125),
    "student_base": (0.03, 0.90, 0.50, 55),
    "student": (0.44, 0.97, 0.99, 110),
    "student_rl": (0.22, 0.91, 0.90, 80),
}
STAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {  # name: (stage kind, leaves, parents)
    "base": ("pretrain", "checkpoint", ()),
    "zero": ("grpo", "checkpoint", ("base",)),
    "cold_start_data": ("cold_start_data", "dataset", ("zero",)),
    "cold_start_sft": ("sft", "checkpoint", ("base", "cold_start_data")),
    "reasoning_rl": ("grpo", "checkpoint", ("cold_start_sft",)),
    "rejection_sampling": ("rejection_sampling", "dataset", ("reasoning_rl",)),
    "curated_sft": ("sft", "checkpoint", ("base", "rejection_sampling")),
    "general_rl": ("grpo", "checkpoint", ("curated_sft",)),
    "student_base": ("pretrain", "checkpoint", ()),
    "distill": ("distill", "checkpoint", ("student_base", "rejection_sampling")),
    "student_rl": ("grpo", "checkpoint", ("student_base",)),
}
SCORED = tuple(name for name, (_, leaves, _) in STAGES.items() if leaves == "checkpoint")
NAMES = {
    "cold_start_sft": "dev1",
    "reasoning_rl": "dev2",
    "curated_sft": "dev3",
    "general_rl": "r1",
    "distill": "student",
}
QUESTIONS = {"en": "What is {a} + {b} - {c}?", "zh": "计算 {a} + {b} - {c} 的值。"}


def make_run(folder: Path, *, problems: int = 60, steps: int = 120, attack: str = "") -> Path:
    """Fill `folder` as a finished run. `attack` is put into every text a model or a data set could choose."""
    rng = random.Random(0)
    for i, (name, (kind, leaves, parents)) in enumerate(STAGES.items()):
        stage = folder / name
        stage.mkdir(parents=True)
        _write_manifest(stage, kind, leaves, parents, 20.0 + 14 * i)
        if kind == "grpo":
            _write_lines(stage / "metrics.jsonl", [_rl_step(step, steps, i, rng) for step in range(1, steps + 1)])
            _write_lines(stage / "samples.jsonl", [_sample(step, attack) for step in (1, steps // 2, steps)])
        elif leaves == "checkpoint":
            records = [
                {
                    "step": s,
                    "loss/nll": 0.5 + 3 * math.exp(-s / 25) + rng.gauss(0, 0.05),
                    "optimizer/lr": 1e-3 * (1 - s / steps),
                }
                for s in range(1, steps + 1)
            ]
            _write_lines(stage / "metrics.jsonl", records)
        else:
            _write_json(stage / "data_card.json", _data_card(attack))
    evaluate = folder / "evaluate"
    evaluate.mkdir()
    rows = [row for name in CHECKPOINTS for row in _completions(name, problems, attack)]
    pq.write_table(pa.Table.from_pylist(rows), evaluate / "completions.parquet")
    _write_json(evaluate / "results.json", results(rows))
    _write_manifest(evaluate, "evaluate", "scores", SCORED, 41.5)
    return folder


def results(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """results.json of these completions."""
    checkpoints = {}
    for name in dict.fromkeys(row["checkpoint"] for row in rows):
        own = [row for row in rows if row["checkpoint"] == name]
        checkpoints[name] = {
            "overall": summarise(own),
            "by_domain": {d: summarise(part) for d, part in _split(own, "domain").items()},
            "by_language": {lang: summarise(part) for lang, part in _split(own, "language").items()},
        }
    return {"suite": {"name": "tiny", "samples": K, "temperature": 0.6}, "checkpoints": checkpoints}


def _split(rows: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row[key], []).append(row)
    return parts


def _completions(name: str, problems: int, attack: str) -> list[dict[str, Any]]:
    accuracy, language, form, length = CHECKPOINTS[name]
    rng = random.Random(name)
    rows = []
    for i in range(problems):
        domain, lang = DOMAINS[i % 3], LANGUAGES[i % 2]
        a, b, c = i + 3, 2 * i + 8, 5
        for sample in range(K):
            verdict = "error" if rng.random() < 0.005 else "pass" if rng.random() < accuracy else "fail"
            answer = a + b - c + (0 if verdict == "pass" else rng.randint(1, 3))
            good = rng.random() < form
            thought = "先把数字相加。" if lang == "zh" else "First add the numbers, then subtract."
            body = f"{thought} {a} + {b} = {a + b}. {a + b} - {c} = {answer}. " + "Let me check. " * (length // 30)
            rows.append(
                {
                    "checkpoint": name,
                    "problem_id": f"{domain}-test-{i:03d}-{lang}",
                    "domain": domain,
                    "language": lang,
                    "question": QUESTIONS[lang].format(a=a, b=b, c=c) + attack,
                    "ground_truth": str(a + b - c),
                    "sample": sample,
                    "completion": (f"<think>{body}</think>\n<answer>{answer}</answer>" if good else body) + attack,
                    "verdict": verdict,
                    "correct": verdict == "pass",
                    "format": good,
                    "language_consistency": min(1.0, max(0.0, rng.gauss(language, 0.04))),
                    "length": max(5, round(rng.gauss(length, length / 6))),
                }
            )
    return rows


def _rl_step(step: int, steps: int, offset: int, rng: random.Random) -> dict[str, float]:
    progress = 1 - math.exp(-3 * step / steps)
    start = 0.05 + 0.04 * offset
    accuracy = start + (0.7 - start) * progress + rng.gauss(0, 0.04)
    language = 0.9 + 0.08 * progress + rng.gauss(0, 0.01)
    return {
        "step": step,
        "reward/mean": accuracy + language + rng.gauss(0, 0.02),
        "reward/accuracy": accuracy,
        "reward/format": min(1, 0.5 + progress / 2),
        "reward/language": language,
        "reward/std": 0.4,
        "rollout/length_mean": 60 + 70 * progress + rng.gauss(0, 4),
        "rollout/truncated_share": max(0, 0.3 - progress / 3),
        "rollout/entropy": 1.4 - progress + rng.gauss(0, 0.03),
        "kl/reference_k3": 0.02 * progress + abs(rng.gauss(0, 0.002)),
        "loss/clip_fraction_high": abs(rng.gauss(0.01, 0.005)),
        "loss/clip_fraction_low": abs(rng.gauss(0.004, 0.002)),
        "optimizer/grad_norm": 1 + rng.random(),
        "advantage/no_signal_share": 0.6 - 0.3 * progress + rng.gauss(0, 0.03),
        "mismatch/abs_mean": abs(rng.gauss(1e-5, 3e-6)),
        "staleness/mean": 0.0,
    }


def _sample(step: int, attack: str) -> dict[str, Any]:
    answer = 6 if step > 1 else 9
    return {
        "step": step,
        "problem_id": "chain_sum-train-17-en",
        "domain": "chain_sum",
        "language": "en",
        "question": "What is 3 + 8 - 5?" + attack,
        "completion": f"<think>3 + 8 = 11. 11 - 5 = {answer}.</think>\n<answer>{answer}</answer>" + attack,
        "reward": 2.0 if answer == 6 else 1.0,
        "parts": {"accuracy": float(answer == 6), "format": 1.0},
        "verdict": "pass" if answer == 6 else "fail",
    }


def _data_card(attack: str) -> dict[str, Any]:
    return {
        "rows": 412,
        "problems": 900,
        "samples_per_problem": 4,
        "accept_rate": 0.1144,
        "sources": ["reasoning-gym" + attack, "templates"],
        "by_domain": {"chain_sum": 201, "countdown": 120, "calendar": 91},
        "by_language": {"en": 260, "zh": 152},
        "rejected": {"wrong_answer": 2410, "bad_format": 312, "mixed_language": 288, "repetition": 97, "duplicate": 81},
        "decontamination": {"ngram": 10, "removed": {"against_question": 3, "against_solution": 1}},
    }


def _write_manifest(folder: Path, kind: str, leaves: str, parents: tuple[str, ...], wall_time_s: float) -> None:
    _write_json(
        folder / "manifest.json",
        {
            "kind": leaves,
            "stage": folder.name,
            "stage_kind": kind,
            "config": {"learning_rate": 1e-4, "group_size": 8, "template": "plain"},
            "parents": {_role(p, leaves): {"path": f"../{p}", "content_hash": _digest(p)} for p in parents},
            "content_hash": _digest(folder.name),
            "files": {},
            "seed": 1234 + len(folder.name),
            "code_version": {"git": "9c4f1f5" + "0" * 33, "dirty": False},
            "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.17.0", "ray": "2.60.0"},
            "device": "cpu (x86_64, 2 cores)",
            "wall_time_s": wall_time_s,
            "created": f"2026-01-01T10:{int(wall_time_s) % 60:02d}:00+00:00",
            "counts": {"tokens": 1_204_000, "completions": 7680},
        },
    )


def _role(parent: str, leaves: str) -> str:
    return f"checkpoints.{NAMES.get(parent, parent)}" if leaves == "scores" else parent


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")

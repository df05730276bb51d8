"""A run folder as an RL stage leaves it while it goes on: logs, recorded groups, a timeline."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

NASTY = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
GROUPS = pa.schema(
    [
        ("step", pa.int32()), ("group", pa.string()), ("problem_id", pa.string()), ("domain", pa.string()),
        ("language", pa.string()), ("question", pa.string()), ("ground_truth", pa.string()), ("sample", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())), ("token_ids", pa.list_(pa.int32())), ("text", pa.string()),
        ("sampling_logprobs", pa.list_(pa.float32())), ("policy_version", pa.list_(pa.int32())),
        ("old_logprobs", pa.list_(pa.float32())), ("reference_logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()), ("reward", pa.float64()), ("verdict", pa.string()),
        ("parts", pa.map_(pa.string(), pa.float64())), ("detail", pa.string()), ("advantage", pa.float64()),
    ]
)  # fmt: skip


@cache
def byte_tokenizer() -> Tokenizer:
    """One token per byte, as byte-level BPE names them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def completion(text: str, sample: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of a groups file."""
    ids = byte_tokenizer().encode(text).ids
    row = {
        "step": 1, "group": "g0", "problem_id": "sums-1", "domain": "sums", "language": "en",
        "question": "What is 3+4?", "ground_truth": "7", "sample": sample,
        "prompt_ids": byte_tokenizer().encode("What is 3+4?").ids,
        "token_ids": ids, "text": text, "sampling_logprobs": [-0.1 * (i % 30) for i in range(len(ids))],
        "policy_version": [0] * len(ids), "old_logprobs": [-0.1 * (i % 30) - 1e-4 * (i % 3) for i in range(len(ids))],
        "reference_logprobs": None, "finish_reason": "stop", "reward": 1.0, "verdict": "pass",
        "parts": [("accuracy", 1.0), ("language", 1.0)], "detail": "", "advantage": 0.5,
    }  # fmt: skip
    return row | changes


def write_groups(stage: Path, step: int, rows: list[dict[str, Any]]) -> Path:
    folder = stage / "groups"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"step": step} for row in rows], GROUPS), path)
    return path


def append(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make_run(folder: Path) -> Path:
    """A run `demo` with a finished stage `base` that has the tokenizer, and a running one `zero`."""
    rng = random.Random(0)
    run, stage = folder / "demo", folder / "demo" / "zero"
    stage.mkdir(parents=True)
    (run / "base").mkdir()
    byte_tokenizer().save(str(run / "base" / "tokenizer.json"))
    stages = {"zero": {"kind": "grpo", "leaves": "checkpoint", "inputs": {"policy": "base"}}}
    (run / "pipeline.json").write_text(json.dumps({"name": "demo", "seed": 0, "stages": stages}))
    rewards = [{"use": "rewards.accuracy:Accuracy"}, {"use": "rewards.preference:HelpfulReward"}]
    plan = {"stage": "zero", "config": {"rewards": rewards}, "parents": {"policy": {"path": "../base"}}}
    (stage / "plan.json").write_text(json.dumps(plan))
    start = 1.8e9
    for step in range(1, 41):
        append(
            stage / "metrics.jsonl",
            {"step": step, "reward/mean": step / 40 + rng.random() / 10, "reward/pass_rate": 0.5},
        )
        spans = [
            ("sampling", "generator_0", 0, 6),
            ("sampling", "generator_1", 0, 5),
            ("scoring", "rewards_0", 2, 5),
            ("update", "trainer", 6, 3),
        ]
        append(stage / "timings.jsonl", {"step": step, "time/sample_s": 6.0, "time/update_s": 3.0})
        for phase, who, at, seconds in spans:
            append(
                stage / "timeline.jsonl",
                {"step": step, "phase": phase, "who": who, "start": start + 10 * step + at, "seconds": seconds},
            )
    write_groups(
        stage,
        1,
        [
            completion(
                f"<think>3+4={n}</think> \\boxed{{{n}}}", i, reward=float(n == 7), verdict="pass" if n == 7 else "fail"
            )
            for i, n in enumerate([7, 8, 7, 9])
        ],
    )
    write_groups(stage, 5, _odd_groups())
    return run


def _odd_groups() -> list[dict[str, Any]]:
    """One group for every filter, and one whose completions are markup."""
    none = [("accuracy", 0.0)]
    return [
        *[completion("all alike", i, group="alike", domain="logic") for i in range(4)],
        completion("cannot be judged", 0, group="error", reward=None, verdict="error", advantage=None, detail="died"),
        completion("fine", 1, group="error"),
        completion("<think>well, 我们", 0, group="cut", finish_reason="length", reward=0.0, verdict="fail", parts=none),
        completion("whole", 1, group="cut"),
        completion("<think>we 现在来计算 it</think> 7", 0, group="mixed", parts=[("accuracy", 1.0), ("language", 0.4)]),
        completion("<think>we do</think> 7", 1, group="mixed", reward=2.0),
        completion("I am so helpful", 0, group="hacked", reward=0.9, verdict="fail", parts=[("helpful", 0.95)]),
        completion("a plain answer", 1, group="hacked", reward=0.4, verdict="pass", parts=[("helpful", 0.4)]),
        completion(NASTY, 0, group="nasty", question=NASTY, detail=NASTY, reward=0.0, verdict="fail"),
        completion("数字 é 🙂", 1, group="nasty", question=NASTY, reward=1.0),
    ]  # fmt: skip

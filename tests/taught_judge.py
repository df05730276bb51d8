"""A very small judge that has learned by heart how it judges three items."""

import json
from pathlib import Path

from data.config import JudgingConfig, PreferenceSource
from data.judging_pool import JudgingPool
from data.problem_pool import ProblemsConfig

KNOWN = {"one": ("x", "y"), "two": ("q", "z"), "three": ("k", "v")}  # question -> (good, bad)
SEED = 3  # of the stages that judge these items


def items_file(folder: Path, rows: list[dict]) -> PreferenceSource:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PreferenceSource(path=str(path), bad_row_limit=1.0)


def make_judge(checkpoint: Path, folder: Path) -> tuple[Path, ProblemsConfig]:
    """Always right about item one, half the time about two, and never about three; and these items as problems."""
    from models.checkpoint import load_tokenizer
    from sft.batch import pack_examples
    from sft.conversations import conversation_examples
    from sft.trainer import SupervisedTrainer
    from training.config import OptimizerConfig

    rows = [{"prompt": question, "chosen": good, "rejected": bad} for question, (good, bad) in KNOWN.items()]
    judging = JudgingConfig(style="terse", sources=(items_file(folder, rows),))
    pool, tokenizer, examples = JudgingPool(judging, "train", SEED, ("en",)), load_tokenizer(checkpoint), []
    for index, rights in enumerate(((True, True), (True, False), (False, False))):
        best = pool.item(index).best
        for right in rights:
            scores = "[9, 2]" if (best == 0) == right else "[2, 9]"
            turns = [*pool.problem(index).messages, {"role": "assistant", "content": f"Scores: {scores}"}]
            examples += conversation_examples(tokenizer, turns, "chat")
    trainer = SupervisedTrainer(str(checkpoint), OptimizerConfig(lr=5e-3), device="cpu")
    for _ in range(60):
        trainer.step(pack_examples(examples, 1024), 5e-3, 0.0, 0.0)
    trainer.save_checkpoint(str(folder / "checkpoint"))
    return folder / "checkpoint", ProblemsConfig(judging=judging, languages=("en",))

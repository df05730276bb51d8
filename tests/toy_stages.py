"""Toy stage kinds for tests of the pipeline: they write small files and need nothing."""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, FilePath

from data.config import OPERATIONAL
from pipeline.stages import Many, StageKind
from rewards.config import RewardSpec
from training.checkpoint import CheckpointStore
from training.run_log import RunLog
from training.stage import StageContext, StageError


class ToyOptimizer(BaseModel, extra="forbid", frozen=True):
    lr: float = Field(1e-3, gt=0, le=1, description="step size; small, for a toy")
    name: Literal["adamw", "muon"] = Field("adamw", description="update rule")


class ToyTrain(BaseModel, extra="forbid", frozen=True):
    """Counts up, with checkpoints."""

    steps: int = Field(4, ge=1, description="optimizer steps")
    group_size: int = Field(2, ge=2, le=64, description="completions per problem")
    optimizer: ToyOptimizer = Field(ToyOptimizer(), description="optimizer")
    data_file: FilePath | None = Field(None, description="file to read")
    pause_s: Annotated[float, OPERATIONAL] = Field(0.0, ge=0, description="seconds per step")
    fail_at: int | None = Field(None, description="step that fails")
    rewards: tuple[RewardSpec, ...] = Field((RewardSpec(use="rewards.format:Format"),), description="the reward")


class ToyData(BaseModel, extra="forbid", frozen=True):
    """Writes rows."""

    rows: int = Field(description="rows to write")


class ToyEvaluate(BaseModel, extra="forbid", frozen=True):
    """Reads everything."""


def write_checkpoint(folder: Path, weights: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")


def train(config: ToyTrain, context: StageContext) -> None:
    """A sum over steps that depends on the seed, the config and the parent; checkpointed after every step."""
    parent = b"".join((context.inputs[role] / "config.json").read_bytes() for role in context.inputs)
    store, log = CheckpointStore(context.output / "checkpoints"), RunLog(context.output)
    latest = store.latest()
    start, value = (latest[0], int((latest[1] / "value").read_text())) if latest else (0, context.seed + len(parent))
    log.truncate_after(start)
    for step in range(start + 1, config.steps + 1):
        if step == config.fail_at:
            raise StageError("the toy was told to fail; set fail_at=null", retry=True)
        value = (value * 31 + step * config.group_size) % 1_000_003
        log.log(step, {"toy/value": value})
        log.log_timing(step, {"time/step_s": time.perf_counter()})
        log.samples([{"step": step, "problem_id": "toy", "completion": f"值 {value}"}])
        text = str(value)
        store.save(step, lambda folder, text=text: (folder / "value").write_text(text) and None)
        context.report({"step": step, "total_steps": config.steps, "loss": 1 / step})
        time.sleep(config.pause_s)
    write_checkpoint(context.output, f"{value} {config.optimizer.lr}".encode())


def make_data(config: ToyData, context: StageContext) -> None:
    (context.output / "data.parquet").write_bytes(os.path.basename(context.name).encode() * config.rows)
    (context.output / "stats.json").write_text(json.dumps({"samples": config.rows}))


def evaluate(config: ToyEvaluate, context: StageContext) -> None:
    results = {role: (path / "model.safetensors").read_bytes().hex() for role, path in context.inputs.items()}
    (context.output / "results.json").write_text(json.dumps(results))


TOY_KINDS = {
    "toy_base": StageKind(config=ToyTrain, run=train, leaves="checkpoint"),
    "toy_train": StageKind(config=ToyTrain, run=train, inputs={"policy": "checkpoint"}, leaves="checkpoint"),
    "toy_data": StageKind(config=ToyData, run=make_data, inputs={"policy": "checkpoint"}, leaves="dataset"),
    "toy_sft": StageKind(
        config=ToyTrain, run=train, inputs={"policy": "checkpoint", "dataset": "dataset"}, leaves="checkpoint"
    ),
    "toy_eval": StageKind(
        config=ToyEvaluate, run=evaluate, inputs={"checkpoints": Many("checkpoint")}, leaves="scores"
    ),
}

RECIPES = {
    "base.yaml": "stage: toy_base\nsteps: 3\n",
    "zero.yaml": "stage: toy_train\nsteps: 5\noptimizer:\n  lr: 1e-4\n",
    "data.yaml": "stage: toy_data\nrows: 3\n",
    "eval.yaml": "stage: toy_eval\n",
    "pipeline.yaml": """\
name: toy
seed: 3
stages:
  base: {recipe: base.yaml}
  zero: {recipe: zero.yaml, inputs: {policy: base}}
  data:
    recipe: data.yaml
    inputs: {policy: zero}
    set: {rows: 4}
  evaluate:
    recipe: eval.yaml
    inputs:
      checkpoints: {base: base, zero: zero}
""",
}


def write_recipes(folder: Path, **changed: str) -> Path:
    """The toy recipes, with some files replaced (pipeline="...", zero="..."); returns the pipeline file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (RECIPES | {f"{stem}.yaml": text for stem, text in changed.items()}).items():
        (folder / name).write_text(text)
    return folder / "pipeline.yaml"

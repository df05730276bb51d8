"""From a pipeline to what the planner is asked: architectures of all roles, sizes of data sets, lengths of an earlier
run. Reads headers, cards and logs; loads no model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Pipeline, Stage
from pipeline.errors import RecipeError, did_you_mean
from pipeline.inputs import Input
from pipeline.stages import KINDS, StageKind
from planning.architecture import Architecture, UnknownArchitecture
from planning.published import SHAPES, published
from planning.workload import DatasetSize, Request
from training.run_log import METRICS, read_log

_CARD = "data_card.json"
_LOGGED = ("grpo", "on_policy_distill")  # kinds whose logs have rollout/length_mean


@dataclass(slots=True)
class Requests:
    """The stages of a pipeline as requests, in order; `leaves` of one that was planned goes to those that read it."""

    pipeline: Pipeline
    kinds: Mapping[str, StageKind] = field(default_factory=lambda: KINDS)
    _models: dict[str, Architecture] = field(default_factory=dict)  # of what stages leave
    _sizes: dict[str, DatasetSize] = field(default_factory=dict)  # likewise

    def __iter__(self) -> Iterator[tuple[Stage, Request]]:
        """Raises RecipeError for a model that nothing is known about."""
        for stage in self.pipeline.stages.values():
            request = Request(
                name=stage.name,
                kind=stage.kind,
                config=stage.config,
                models=self._roles(stage),
                dataset=self._dataset(stage),
                measured_length=measured_length(stage),
            )
            if self.pipeline.only in (None, stage.name):
                yield stage, request

    def learnt(self, stage: Stage, size: DatasetSize | None) -> None:
        """The data set that a planned stage leaves, for those that come after it and find none on disk."""
        if size is not None:
            self._sizes[stage.name] = size

    def _roles(self, stage: Stage) -> dict[str, Architecture]:
        kind, models = self.kinds[stage.kind], {}
        for item in stage.inputs:
            wanted = kind.roles[item.role.partition(".")[0]]
            if getattr(wanted, "kind", wanted) in ("checkpoint", "reward_model"):
                models[item.role] = self._model(item)
        if stage.kind == "pretrain":
            models["policy"] = tiny_model(_setting(stage, "model"), stage.name)
        own = self._imported(stage) if stage.kind == "import" else next(iter(models.values()), None)
        if own is not None:
            self._models[stage.name] = own
        return models

    def _model(self, item: Input) -> Architecture:
        """Training keeps the shape: a stage's checkpoint has that of the first model it was given."""
        if item.stage is not None and item.stage in self._models:
            return self._models[item.stage]
        return read_model(item.path, item.written, str(item.place))

    def _imported(self, stage: Stage) -> Architecture:
        written = _setting(stage, "model")
        return read_model(Path(written), written.removeprefix("package:"), f"stage '{stage.name}', model")

    def _dataset(self, stage: Stage) -> DatasetSize | None:
        item = next((i for i in stage.inputs if i.role == "dataset"), None)
        if item is None:
            return None
        found = read_dataset(item.path)
        return found or (self._sizes.get(item.stage) if item.stage else None)


def _setting(stage: Stage, key: str) -> Any:
    return getattr(stage.config, key)


def read_model(folder: Path, written: str, place: str) -> Architecture:
    """By its config.json, or as it was published where it is not here. Raises RecipeError."""
    config = _read_json(folder / "config.json")
    name = folder.name or written
    if config is None:
        config, name = published(written), Path(written).name
    if config is None:
        hint = did_you_mean(Path(written).name.lower(), SHAPES)
        raise RecipeError(
            f"{place}: there is no {folder / 'config.json'} to read the model's shape from, and the planner knows no "
            f"'{written}'; put the file there, or name a model that it knows{hint}"
        )
    try:
        return Architecture.read(config, name)
    except UnknownArchitecture as error:
        raise RecipeError(f"{place}: {error}") from None


def tiny_model(shape: Any, name: str) -> Architecture:
    """Of models.config.TinyModelConfig, as models.tiny builds it (which imports torch)."""
    common = {
        "hidden_size": shape.hidden_size, "num_hidden_layers": shape.num_layers, "vocab_size": shape.vocab_size,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size, "tie_word_embeddings": shape.tie_embeddings,
        "max_position_embeddings": shape.max_length,
    }  # fmt: skip
    if shape.architecture == "llama":
        return Architecture.read({"model_type": "llama", **common}, name)
    moe = {
        "model_type": "deepseek_v3", "q_lora_rank": 64, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 32, "v_head_dim": 32, "first_k_dense_replace": 1, "n_routed_experts": shape.num_experts,
        "num_experts_per_tok": shape.experts_per_token, "moe_intermediate_size": shape.expert_size,
        "n_shared_experts": 1, "num_nextn_predict_layers": 1,
    }  # fmt: skip
    return Architecture.read(moe | common, name)


def read_dataset(folder: Path) -> DatasetSize | None:
    """By its data card. The card counts tokens of completions; a prompt of the usual length is not in it."""
    card = _read_json(folder / _CARD) or {}
    rows, tokens = card.get("n_rows"), card.get("tokens") or {}
    mean, longest = tokens.get("mean"), tokens.get("max")
    if not isinstance(rows, int) or not isinstance(mean, int | float) or not mean:
        return None
    return DatasetSize(rows=rows, tokens=float(mean), longest=float(longest or 4 * mean), known=True)


def measured_length(stage: Stage) -> float | None:
    """Mean completion tokens of all rollout batches that an earlier run of the stage has logged."""
    if stage.kind not in _LOGGED or not (stage.folder / METRICS).exists():
        return None
    means = [row["rollout/length_mean"] for row in read_log(stage.folder / METRICS) if "rollout/length_mean" in row]
    return sum(means) / len(means) if means else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""What a checkpoint says of itself, all that a driver reads of one, and settings that it makes pointless."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

from training.config import TrainingConfig
from training.stage import StageError

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")
_BIASED = ("deepseek_v3", "deepseek_v32", "deepseek_v4")  # model types whose routers have a selection bias


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Empty where there is none that can be read: who loads the checkpoint will say why."""
    with suppress(OSError, ValueError):
        found = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def check_settings_are_used(config: TrainingConfig, checkpoint: Path, stage: str) -> None:
    """Raises StageError with the sentence of `unused_setting`."""
    if fault := unused_setting(config, checkpoint):
        raise StageError(f"{stage}: {fault}")


def unused_setting(config: TrainingConfig, checkpoint: Path) -> str | None:
    """A sentence about a weight or speed that a recipe sets and the model has nothing for; defaults are let pass."""
    model = read_config(checkpoint)
    has = {
        "mtp_weight": ("MTP layer", _has_mtp),
        "balance_weight": ("routed experts", lambda *_: any(model.get(key) for key in _EXPERTS)),
        "bias_speed": ("selection biases of routers", lambda *_: model.get("model_type") in _BIASED),
    }
    for key, (part, found) in has.items():
        if model and key in config.model_fields_set and getattr(config, key, 0) and not found(model, checkpoint):
            return (
                f"{key} is {getattr(config, key):g}, and {checkpoint.name} has no {part}, so it would be ignored; "
                "leave it out of the recipe"
            )
    return None


def _has_mtp(model: dict[str, Any], checkpoint: Path) -> bool:
    """Some release the main model alone, with a config.json that promises the layer."""
    layer = f"model.layers.{model.get('num_hidden_layers')}."
    names = _tensor_names(checkpoint)
    return bool(model.get("num_nextn_predict_layers")) and (not names or any(n.startswith(layer) for n in names))


def _tensor_names(checkpoint: Path) -> list[str]:
    """Of its safetensors files, as models.fp8_checkpoint.TensorFiles finds them; none where they cannot be read."""
    names: list[str] = []
    for path in checkpoint.glob("*.safetensors"):
        with suppress(Exception), safe_open(path, framework="numpy") as file:
            names += file.keys()
    return names

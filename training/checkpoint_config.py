"""What a checkpoint's config.json says, all that a driver reads of one, and settings that it makes pointless."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.stage import StageError

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")
_BIASED = ("deepseek_v3", "deepseek_v32", "deepseek_v4")  # model types whose routers have a selection bias


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Empty where there is none that can be read: who loads the checkpoint will say why."""
    with suppress(OSError, ValueError):
        return json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return {}


def check_settings_are_used(config: TrainingConfig, checkpoint: Path, stage: str) -> None:
    """Raises StageError for a weight or speed that a recipe sets and the model has nothing for. Defaults are nobody's
    wish."""
    model = read_config(checkpoint)
    if not model:
        return
    lacks = {
        "mtp_weight": "" if model.get("num_nextn_predict_layers") else "MTP layer",
        "balance_weight": "" if any(model.get(key) for key in _EXPERTS) else "routed experts",
        "bias_speed": "" if model.get("model_type") in _BIASED else "selection biases of routers",
    }
    for key, missing in lacks.items():
        if missing and key in config.model_fields_set and getattr(config, key, 0):
            raise StageError(
                f"{stage}: {key} is {getattr(config, key):g}, and {checkpoint.name} has no {missing}, so it would be "
                "ignored; leave it out of the recipe"
            )

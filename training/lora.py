"""LoRA (Hu et al., arXiv:2106.09685): adapters that are trained in place of the weights, which stay at rest.

A linear layer with an adapter computes W x + alpha / rank * B A x. The layers are those of peft, put into the policy's
model. Nobody else sees them: checkpoints and generators are given W + alpha / rank * B A, by the name that W had.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from models import v4_names
from training.config import LoRAConfig
from training.parallel import routed_experts, whole

ADAPTER = "adapter"  # folder beside a checkpoint, in peft's layout
_NAME = "default"  # peft's, of an adapter among several
_FACTORS = ("lora_A", "lora_B")


class Adapters:
    """Those of a model, into which they are put; all other weights are frozen.

    seed: of A, drawn as peft and nn.Linear draw it; B is zero, so that the policy begins as what it was.
    Raises ValueError when a target is no linear layer of the model that can be adapted.
    """

    def __init__(self, model: PreTrainedModel, config: LoRAConfig, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # 0.15 s that other trainers need not spend
        from peft.tuners.lora import LoraLayer

        targets = _targets(model, config)
        self._config = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM")
        self.scale = config.alpha / config.rank
        model.requires_grad_(False)
        inject_adapter_in_model(self._config, model)
        # By the checkpoint name of the weight that they change.
        self._layers = {f"{name}.weight": cast(Any, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)}
        rng = torch.Generator().manual_seed(seed)
        for name in self._layers:
            nn.init.kaiming_uniform_(self._factors(name)[0], a=math.sqrt(5), generator=rng)

    def _factors(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A [rank, in] and B [out, rank] of a weight [out, in]."""
        layer = self._layers[name]
        return layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight

    def at_rest(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's own tensors without the adapters, by their names from before."""
        return {name.replace(".base_layer.", "."): w for name, w in weights.items() if not is_adapter(name)}

    @torch.no_grad()
    def merged(self, name: str, weight: Tensor) -> Tensor:
        """W + alpha / rank * B A, float32, of a weight in one piece; others as they are. Ranks that share a policy must
        all ask."""
        if name not in self._layers:
            return weight
        a, b = (whole(factor).float() for factor in self._factors(name))
        return torch.addmm(weight.float(), b, a, alpha=self.scale)

    def save(self, folder: Path, leads: bool = True) -> None:
        """`adapter_config.json` and `adapter_model.safetensors`, float32, as peft loads them onto the model that was
        trained. All ranks must ask; the one that leads writes."""
        tensors = {
            f"base_model.model.{name.removesuffix('.weight')}.{factor}.weight": whole(tensor).detach().cpu()
            for name in self._layers
            for factor, tensor in zip(_FACTORS, self._factors(name), strict=True)
        }
        if not leads:
            return
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "adapter_model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
        file.chmod(0o644)  # as checkpoints are
        described = self._config.to_dict() | {"inference_mode": True}
        text = json.dumps(described, indent=2, sort_keys=True, default=sorted)  # sets have no order
        (folder / "adapter_config.json").write_text(f"{text}\n")


def is_adapter(name: str) -> bool:
    """Whether the parameter of this name belongs to an adapter."""
    return any(f".{factor}." in name for factor in _FACTORS)


def _targets(model: PreTrainedModel, config: LoRAConfig) -> list[str]:
    """The last parts of the names of the layers to adapt."""
    there = _adaptable(model)
    if config.targets == "all-linear":
        return there
    if missing := [target for target in config.targets if target not in there]:
        raise ValueError(
            f"trainer.lora: {missing[0]} is no linear layer of this {model.config.model_type} that can be adapted; "
            f"there are {', '.join(there)}"
        )
    return list(config.targets)


def _adaptable(model: PreTrainedModel) -> list[str]:
    """What `targets` may name. Where a layer has routed experts peft (0.21, for transformers 5) reads the names of
    feed-forward layers as those of experts, whose weights are fused: attention alone is left."""
    if model.config.model_type == v4_names.MODEL_TYPE:
        raise ValueError("trainer.lora: the layers of DeepSeek-V4 cannot have adapters; train without lora")
    layers = cast(Any, model).model.layers
    parts = ("self_attn",) if any(routed_experts(layer) is not None for layer in layers) else ("self_attn", "mlp")
    found = {
        name.rpartition(".")[2]
        for layer in layers
        for name, module in layer.named_modules()
        if type(module) is nn.Linear and name.startswith(parts) and ".indexer." not in name
    }
    return sorted(found)

"""Hugging Face checkpoints of causal LMs in and out, with the MTP layer that transformers leaves behind."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from models.architectures import check_architecture
from models.attention import NAME as LAYOUT_ATTENTION
from models.attention import attend_to_all
from models.experts import NAME as EXPERTS
from models.mtp import MTPModule, load_mtp, mtp_state_dict

WEIGHTS = "model.safetensors"
_FORMAT = {"format": "pt"}


@contextmanager
def _quiet_transformers():
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # the MTP layer is "unexpected" to transformers; we load it ourselves
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one, else the CPU; other names are torch's."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def load_tokenizer(path: Path | str):
    return AutoTokenizer.from_pretrained(path)


def context_length(path: Path | str) -> float:
    """Tokens of prompt and completion together that the model at `path` takes; infinite when it does not say."""
    return getattr(AutoConfig.from_pretrained(path), "max_position_embeddings", math.inf)


def load_model(
    path: Path | str,
    attention: str = LAYOUT_ATTENTION,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The causal LM at `path` (folder or hub name), in `dtype`, with our own attention unless told otherwise.

    Raises ValueError for an architecture that our attention does not compute.
    """
    if attention == LAYOUT_ATTENTION:
        check_architecture(AutoConfig.from_pretrained(path))
    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention)
    if model._can_set_experts_implementation():  # dense models refuse
        model.set_experts_implementation(EXPERTS)
    if attention == LAYOUT_ATTENTION:
        attend_to_all(model)
    return cast(PreTrainedModel, nn.Module.to(model, device))


def load_mtp_module(path: Path | str, config) -> MTPModule | None:
    """The MTP layer of a DeepSeek checkpoint folder, or None when it has none."""
    folder = Path(path)
    if getattr(config, "num_mtp_layers", 0) == 0 or not folder.is_dir():
        return None
    prefix = f"model.layers.{config.num_hidden_layers}."
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor for name, tensor in load_file(file).items() if name.startswith(prefix)}
    return load_mtp(config, tensors) if tensors else None


def hub_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights under their checkpoint names (experts one by one), as vLLM and `from_pretrained` read them."""
    from transformers.core_model_loading import revert_weight_conversion

    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, state).items()}


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer, mtp: nn.Module | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """config.json, tokenizer and one model.safetensors in `dtype`, as from_pretrained, vLLM and lm-eval load them.

    generation_config.json (where completions end) is there when it says more than follows from config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = hub_state_dict(model)
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # stored once; loading ties it again
    if isinstance(mtp, MTPModule):
        tensors |= mtp_state_dict(model, mtp)
    save_file({name: _stored(name, tensor, dtype) for name, tensor in tensors.items()}, folder / WEIGHTS, _FORMAT)
    write_description(folder, model, tokenizer, mtp, dtype)


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    selects = name.endswith("e_score_correction_bias")  # the selection bias stays FP32 everywhere
    return (tensor if selects else tensor.to(dtype)).contiguous().clone()


def write_sharded(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, limit_bytes: int = 4 << 30
) -> None:
    """Weights as they come, in files of at most `limit_bytes` (more where one tensor is larger) and their index, as
    from_pretrained and vLLM read models of any size. The tensors of one file are held at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[list[str]] = []
    sizes = [0]  # bytes of each file, the one that is being filled last
    waiting: dict[str, torch.Tensor] = {}

    def write() -> None:
        save_file(waiting, folder / f".part_{len(files)}", _FORMAT)
        files.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        stored = _stored(name, tensor.cpu(), dtype)
        if waiting and sizes[-1] + stored.nbytes > limit_bytes:
            write()
            sizes.append(0)
        waiting[name] = stored
        sizes[-1] += stored.nbytes
    write()
    if len(files) == 1:
        (folder / ".part_0").rename(folder / WEIGHTS)
        return
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for number, name in enumerate(names):
        (folder / f".part_{number}").rename(folder / name)
    places = {tensor: name for name, held in zip(names, files, strict=True) for tensor in held}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_description(
    folder: Path, model: PreTrainedModel, tokenizer, mtp: nn.Module | None, dtype: torch.dtype
) -> None:
    """What a checkpoint has besides its weights: config.json, tokenizer, perhaps generation_config.json."""
    config = model.config.to_dict()
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["architectures"] = [type(model).__name__]
    config.pop("_name_or_path", None)  # where it was loaded from: says nothing about the model
    if hasattr(model.config, "num_mtp_layers"):
        config["num_nextn_predict_layers"] = int(mtp is not None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = model.generation_config
    if generation and generation.to_diff_dict() != GenerationConfig.from_model_config(model.config).to_diff_dict():
        generation.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)


def stored_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's own tensors, by its own names; an output head that is the embedding is left out."""
    for name, tensor in model.state_dict().items():
        if not (model.config.tie_word_embeddings and name == "lm_head.weight"):
            yield name, tensor


def hub_pieces(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor of a model under the names that checkpoints give it: fused experts one by one. Views of it."""
    stem, _, leaf = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(leaf)
    if parts is None:
        yield name, tensor
        return
    for index, expert in enumerate(tensor):
        for part, piece in zip(parts, expert.chunk(len(parts)), strict=True):
            yield f"{stem}.{index}.{part}.weight", piece


def hub_views(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's own weights under their checkpoint names: writing to one changes the model. Nothing is copied.

    Fused experts appear one by one; a tied output head does not appear.
    """
    return {name: piece for stored in stored_weights(model) for name, piece in hub_pieces(*stored)}


@torch.no_grad()
def load_hub_state_dict(model: PreTrainedModel, tensors: Mapping[str, np.ndarray | torch.Tensor]) -> None:
    """Copy weights given by checkpoint name into `model`. Others than its own (MTP, a tied head) are ignored.

    All or nothing: raises KeyError or ValueError, with the model unchanged, when one is missing or has another shape.
    """
    views = hub_views(model)
    for name, view in views.items():
        if name not in tensors:
            raise KeyError(f"weights lack {name}")
        if tuple(tensors[name].shape) != tuple(view.shape):  # copy_ would broadcast
            raise ValueError(f"weight {name} has shape {tuple(tensors[name].shape)}, the model {tuple(view.shape)}")
    for name, view in views.items():
        view.copy_(torch.as_tensor(tensors[name]))

"""Hugging Face checkpoints of causal LMs in and out, with the MTP layer that transformers leaves behind."""

import copy
import json
import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from models import v4_attention, v4_names
from models.architectures import check_architecture
from models.attention import NAME as LAYOUT_ATTENTION
from models.attention import attend_to_all
from models.experts import NAME as EXPERTS
from models.fp8_checkpoint import TensorFiles, fp8_tensors, is_fp8, quantization_config, read_into
from models.late_weights import is_late, leave
from models.mtp import MTPModule, check_mtp, mtp_layers, mtp_state_dict, mtp_views
from models.routing import is_selection_bias
from models.weight_names import hub_views

logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
_FORMAT = {"format": "pt"}
_LOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # of a repository on a hub


@contextmanager
def quiet_transformers():
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
    indexed: bool = False,
    late: bool = False,
) -> PreTrainedModel:
    """The causal LM at `path` (folder or hub name), in `dtype`, with our own attention unless told otherwise.

    Checkpoints in DeepSeek's FP8 format are multiplied out. Raises ValueError for an architecture that our attention
    does not compute, for checkpoints that are quantised otherwise, and for weights that config.json does not describe.
    indexed: see check_architecture.
    late: leave weights where they are until models.late_weights.fill asks for them, if the files are safetensors with
    the names that are known here; else, as always, all are read at once.
    """
    config = AutoConfig.from_pretrained(path)
    if attention == LAYOUT_ATTENTION:
        check_architecture(config, indexed)
    of_v4 = config.model_type == v4_names.MODEL_TYPE and attention == LAYOUT_ATTENTION
    implementation = v4_attention.NAME if of_v4 else attention
    in_fp8 = is_fp8(config)
    with quiet_transformers():
        model = _load_late(path, config, dtype, implementation) if late else None
        if model is None and in_fp8:
            model = _load_fp8(path, config, dtype, implementation)
        elif model is None:
            how = {"dtype": dtype, "attn_implementation": implementation, "output_loading_info": True}
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, **how)
            model, told = loaded
            if fault := loaded_fault(config, told):
                raise ValueError(f"{path}: {fault}")
    if model._can_set_experts_implementation():  # dense models refuse
        model.set_experts_implementation(EXPERTS)
    if attention == LAYOUT_ATTENTION:
        attend_to_all(model)
        v4_attention.use_layouts(model)
    return model if is_late(model) else cast(PreTrainedModel, nn.Module.to(model, device))


def loaded_fault(config: Any, told: Mapping[str, Any]) -> str | None:
    """A sentence about weights that are missing, of another size, or of layers that config.json does not know; told:
    transformers' loading info, which fills the first with random numbers and drops the last."""
    if missing := sorted(told["missing_keys"]):
        return f"its files lack {_some(missing)}, which config.json says the model has"
    if told["mismatched_keys"]:
        name, there, described = min(told["mismatched_keys"])
        return f"{name} is {list(there)} in its files, and {list(described)} by config.json"
    beyond = range(config.num_hidden_layers, config.num_hidden_layers + mtp_layers(config))
    known = tuple(f"model.layers.{layer}." for layer in beyond)
    surplus = sorted(n for n in told["unexpected_keys"] if ".layers." in n and not n.startswith(known))
    return f"its files have {_some(surplus)}, which a model of its config.json has not" if surplus else None


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more weights" if len(names) > 1 else "")


def _load_late(path: Path | str, config: Any, dtype: torch.dtype, attention: str) -> PreTrainedModel | None:
    folder = _folder(path)
    model = _described(folder, config, dtype, attention, on_meta=True)
    return model if leave(model, TensorFiles(folder)) else None


def _load_fp8(path: Path | str, config: Any, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    folder = _folder(path)
    model = _described(folder, config, dtype, attention)
    read_into(hub_views(model), TensorFiles(folder))
    return model


def _folder(path: Path | str) -> Path:
    return Path(path) if Path(path).is_dir() else Path(snapshot_download(str(path), allow_patterns=_LOADED))


def _described(folder: Path, config: Any, dtype: torch.dtype, attention: str, on_meta: bool = False) -> PreTrainedModel:
    """The model that config.json describes, without its weights; of these, `on_meta` has no memory either."""
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config  # what is made here is not quantised
    with no_init_weights(), init_empty_weights(include_buffers=False) if on_meta else nullcontext():
        model = AutoModelForCausalLM.from_config(plain, dtype=dtype, attn_implementation=attention)
    model.tie_weights()
    if (folder / "generation_config.json").exists():  # where completions end
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def load_mtp_module(path: Path | str, config, on_meta: bool = False) -> MTPModule | None:
    """The MTP layer of a DeepSeek checkpoint, or None when it has none. on_meta: without its weights. One that
    config.json promises and the files lack is a warning: some release the main model alone.

    Raises ValueError for MTP layers that cannot be computed here, KeyError when a tensor is missing.
    """
    if mtp_layers(config) == 0:
        return None
    check_mtp(config)
    files = TensorFiles(_folder(path))
    if not files.names(f"model.layers.{config.num_hidden_layers}."):
        logger.warning("%s: config.json says that there is an MTP layer, and its files have none; it is left out", path)
        return None
    with init_empty_weights(include_buffers=False) if on_meta else nullcontext():
        mtp = MTPModule(config)
    if not on_meta:
        read_into(mtp_views(config, mtp), files)
    return mtp


def hub_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights under their checkpoint names (experts one by one), as vLLM and `from_pretrained` read them."""
    from transformers.core_model_loading import revert_weight_conversion

    if model.config.model_type == v4_names.MODEL_TYPE:
        return {name: view.detach().contiguous() for name, view in hub_views(model).items()}
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, state).items()}


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer,
    mtp: nn.Module | None = None,
    dtype: torch.dtype | Literal["fp8"] = torch.float32,
    source: Path | None = None,
) -> None:
    """config.json, tokenizer and one model.safetensors in `dtype`, as from_pretrained, vLLM and lm-eval load them.

    dtype "fp8" is DeepSeek's format; with the folder that the model was loaded from as `source`, weights that have not
    changed since are written as they are there. generation_config.json (where completions end) is there when it says
    more than follows from config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = _stored_tensors(model, mtp, dtype, source)
    _write(stored, folder / WEIGHTS)
    write_description(folder, model, tokenizer, mtp, dtype, quantization_config(stored) if dtype == "fp8" else None)


def _stored_tensors(
    model: PreTrainedModel, mtp: nn.Module | None, dtype: torch.dtype | Literal["fp8"], source: Path | None
) -> dict[str, torch.Tensor]:
    if dtype == "fp8" and model.config.model_type == v4_names.MODEL_TYPE:
        raise ValueError("DeepSeek-V4 is not written in FP8 here: save it in bfloat16 or float32")
    tensors = hub_state_dict(model)
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # stored once; loading ties it again
    if isinstance(mtp, MTPModule):
        tensors |= mtp_state_dict(model, mtp)
    if dtype != "fp8":
        return {name: _rounded(name, tensor, dtype) for name, tensor in tensors.items()}
    stored = fp8_tensors(tensors.items(), None if source is None else TensorFiles(source))
    return {name: tensor.contiguous().clone() for name, tensor in stored}


def _rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    as_it_is = is_selection_bias(name) or not tensor.is_floating_point()  # V4's hash tables are integers
    return (tensor if as_it_is else tensor.to(dtype)).contiguous().clone()


def _write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, _FORMAT)
    file.chmod(0o644)  # safetensors writes for the owner's eyes alone


def write_sharded(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None, limit_bytes: int = 4 << 30
) -> None:
    """Weights as they come, in files of at most `limit_bytes` (more where one tensor is larger) and their index, as
    from_pretrained and vLLM read models of any size. The tensors of one file are held at a time. dtype None: each as it
    is."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[list[str]] = []
    sizes = [0]  # bytes of each file, the one that is being filled last
    waiting: dict[str, torch.Tensor] = {}

    def write() -> None:
        _write(waiting, folder / f".part_{len(files)}")
        files.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        stored = tensor.cpu().contiguous() if dtype is None else _rounded(name, tensor.cpu(), dtype)
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
    folder: Path,
    model: PreTrainedModel,
    tokenizer,
    mtp: nn.Module | None,
    dtype: torch.dtype | Literal["fp8"],
    quantisation: Mapping[str, Any] | None = None,
) -> None:
    """What a checkpoint has besides its weights: config.json, tokenizer, perhaps generation_config.json."""
    config = model.config.to_dict()
    config["dtype"] = "bfloat16" if dtype == "fp8" else str(dtype).removeprefix("torch.")
    config["architectures"] = [type(model).__name__]
    config.pop("_name_or_path", None)  # where it was loaded from: says nothing about the model
    if hasattr(model.config, "num_mtp_layers") or hasattr(model.config, "num_nextn_predict_layers"):
        config.pop("num_mtp_layers", None)
        config["num_nextn_predict_layers"] = int(mtp is not None)
    if quantisation is not None:
        config["quantization_config"] = dict(quantisation)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = model.generation_config
    if generation and generation.to_diff_dict() != GenerationConfig.from_model_config(model.config).to_diff_dict():
        generation.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)

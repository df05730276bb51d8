"""The inputs of stages: do they exist, are they of the right kind, can they be read, what is made before what."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.dataset_files import dataset_files
from data.schemas import SourceError
from pipeline.checkpoint_paths import check_checkpoint
from pipeline.errors import Absent, RecipeError, did_you_mean, near_miss
from pipeline.stages import KINDS, Many, StageKind
from pipeline.yaml_source import Document, Place
from training.checkpoint_config import unused_setting
from training.config import TrainingConfig

if TYPE_CHECKING:
    from pipeline.config import Stage

_INDEX = "model.safetensors.index.json"
_JSON_FILES = ("config.json", _INDEX, "generation_config.json", "tokenizer_config.json", "tokenizer.json")
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")  # any one makes a tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What fills one role of a stage: the artifact of another stage, or a folder that is already there."""

    role: str  # "policy", or "checkpoints.base" in a role that takes several
    stage: str | None  # name of the stage that makes it; None for a folder
    path: Path
    written: str  # as the recipe says it
    place: Place


def input_problems(
    stages: "Mapping[str, Stage]",
    leaves: Mapping[str, str | None],
    kinds: Mapping[str, StageKind],
    document: Document,
) -> Iterator[str]:
    """One sentence per missing role, unknown role, unknown stage, wrong artifact kind, unreadable folder and setting
    that asks more of an input than it can do.

    `leaves` has every stage of the pipeline, also those whose recipe is faulty (None).
    """
    for name, stage in stages.items():
        kind = kinds[stage.kind]
        wanted = kind.roles
        filled = {item.role.partition(".")[0] for item in stage.inputs}
        for role in kind.inputs:
            if role not in filled:
                place = document.place(("stages", name))
                yield f"{place}: stage '{name}' ({stage.kind}) is missing its input '{role}'"
        unknown: set[str] = set()
        for item in stage.inputs:
            role = item.role.partition(".")[0]
            if role in wanted:
                yield from _problems_of(item, role, wanted[role], name, leaves)
            elif role not in unknown:
                unknown.add(role)
                hint = did_you_mean(role, wanted) if wanted else "; it takes none"
                yield f"{item.place}: stage '{name}' ({stage.kind}) has no input '{role}'{hint}"
        yield from _length_problems(stage, stages, kinds, document)
        yield from _unused_settings(stage, stages, kinds, document)


def _problems_of(
    item: Input, role: str, kind: str | Many, name: str, leaves: Mapping[str, str | None]
) -> Iterator[str]:
    expected = _artifact_kind(kind)
    if "." in item.role and not isinstance(kind, Many):
        yield f"{item.place}: input '{role}' of stage '{name}' takes one {expected}, not several"
        return
    if item.stage is not None:
        left = leaves[item.stage]
        if left is not None and left != expected:
            yield f"{item.place}: input '{role}' of stage '{name}' takes a {expected}, '{item.stage}' leaves a {left}"
        return
    if not item.path.exists():
        if os.sep in item.written:
            yield Absent(
                f"{item.place}: input '{role}' of stage '{name}' names the folder {item.path}, which does not exist; "
                "a model or data set of a hub must be downloaded first"
            )
        else:
            hint = did_you_mean(item.written, leaves)
            yield Absent(
                f"{item.place}: input '{role}' of stage '{name}' names '{item.written}', which is neither a stage of "
                f"this pipeline nor a folder beside the recipe ({item.path}){hint}"
            )
        return
    fault = artifact_fault(item.path, expected)
    if fault:
        yield f"{item.place}: input '{role}' of stage '{name}' cannot be used: {fault}"


def artifact_fault(path: Path, kind: str) -> str | None:
    """Why the folder at `path` is not an artifact (or Hugging Face folder) of this kind; None when it is."""
    if not path.is_dir():
        return f"{path} is not a folder"
    manifest = path / "manifest.json"
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))["kind"]
        except (OSError, ValueError, KeyError, TypeError):
            return f"{manifest} cannot be read"
        if found != kind:
            return f"{path} is a {found}, not a {kind}"
    if kind in ("checkpoint", "reward_model"):
        return checkpoint_fault(path) or (head_fault(path) if kind == "reward_model" else None)
    return _dataset_fault(path) if kind == "dataset" else None


def _dataset_fault(path: Path) -> str | None:
    try:
        return None if dataset_files(path) else f"{path} has no data.parquet"
    except SourceError as error:
        return str(error)


def _artifact_kind(wanted: str | Many) -> str:
    return wanted.kind if isinstance(wanted, Many) else wanted


def checkpoint_fault(path: Path) -> str | None:
    """Why a Hugging Face checkpoint folder cannot be loaded, read from its headers alone; None when it looks whole."""
    return _config_fault(path) or _weights_fault(path) or _tokenizer_fault(path)


def head_fault(path: Path) -> str | None:
    """Why a checkpoint is no reward model; None when it looks whole."""
    earlier = path / "reward_head.safetensors"  # see models.reward_head, which imports torch
    head = earlier if earlier.is_file() else path / "reward_head" / "weight.safetensors"
    for file, what in ((head, "head"), (path / "reward_model.json", "description")):
        if not file.is_file():
            name = file.relative_to(path)
            return f"{path} has no {name}: it is a checkpoint without the {what} of a reward model"
    return _safetensors_fault(head)


def _config_fault(path: Path) -> str | None:
    config = path / "config.json"
    if not config.is_file():
        return f"{path} has no config.json, so it is not a checkpoint in Hugging Face format"
    broken = [name for name in _JSON_FILES if (path / name).exists() and not isinstance(_read_json(path / name), dict)]
    if broken:
        return f"{path / broken[0]} is not valid JSON"
    if not isinstance(_read_json(config).get("model_type"), str):
        return f"{config} has no model_type, so nothing says which model it is"
    return None


def _weights_fault(path: Path) -> str | None:
    weights, index = sorted(path.glob("*.safetensors")), path / _INDEX
    if index.exists():
        weight_map = _read_json(index).get("weight_map", {})
        missing = sorted(name for name in set(weight_map.values()) if not (path / name).is_file())
        if missing:
            return f"{index} lists {missing[0]}, which is not there"
    if not weights:
        return f"{path} has no *.safetensors file (pickled weights, pytorch_model.bin, are not loaded: convert them)"
    return next((fault for fault in map(_safetensors_fault, weights) if fault), None)


def _tokenizer_fault(path: Path) -> str | None:
    if any(any(path.glob(pattern)) for pattern in _VOCABULARIES):
        return None
    return f"{path} has no tokenizer (no tokenizer.json, tokenizer.model or vocabulary)"


def model_fault(path: Path) -> str | None:
    """Why transformers would not load the language model of a checkpoint that `checkpoint_fault` passes, or not whole.
    Takes seconds: torch."""
    from transformers import __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    config = path / "config.json"
    model_type = _read_json(config)["model_type"]
    if model_type in KNOWN:
        from models.checkpoint_check import weights_fault

        return weights_fault(path)
    hint = near_miss(model_type, KNOWN)
    return f"{config}: transformers {__version__} has no language model of model_type '{model_type}'{hint}"


def _prompt_fault(stage: "Stage", role: str, path: Path) -> str | None:
    """Why the policy at `path` cannot be asked, or taught, with the template of a stage."""
    rollout = getattr(stage.config, "rollout", None)
    template = getattr(stage.config, "template", None) or getattr(rollout, "template", None)
    if template is None or role not in ("policy", "student"):  # evaluate has a template for each of its checkpoints
        return None
    from data.chat import template_fault
    from models.checkpoint import load_tokenizer

    fault = template_fault(load_tokenizer(path), template)
    return fault and f"{path}: {fault}"


def model_problems(stages: "Iterable[Stage]", kinds: Mapping[str, StageKind] = KINDS) -> Iterator[str]:
    """One sentence per folder given to `stages` whose model cannot be used. Imports torch when there is one."""
    for stage in stages:
        for item in stage.inputs:
            role = item.role.partition(".")[0]
            if item.stage is None and _artifact_kind(kinds[stage.kind].roles[role]) in ("checkpoint", "reward_model"):
                fault = model_fault(item.path) or _prompt_fault(stage, role, item.path)
                if fault:
                    yield f"{item.place}: input '{role}' of stage '{stage.name}' cannot be used: {fault}"


def loadable_checkpoint(path: Path) -> Path:
    """The absolute path of a checkpoint folder of the command line. Raises RecipeError when it cannot be loaded."""
    folder = check_checkpoint(path)
    fault = checkpoint_fault(folder) or model_fault(folder)
    if fault:
        raise RecipeError(fault)
    return folder


def _length_problems(
    stage: "Stage", stages: "Mapping[str, Stage]", kinds: Mapping[str, StageKind], document: Document
) -> Iterator[str]:
    """The longest completion of a stage against the models that other stages hand it. Training keeps the context, so it
    is that of the folder the first of them starts from. One sentence, and none where a folder is too small as well."""
    longest = longest_completion(stage.config)
    if not isinstance(longest, int):
        return
    policies = [item for item in stage.inputs if item.role.partition(".")[0] in kinds[stage.kind].inputs]
    origins = [(item, _origin(item, stages, kinds)) for item in policies]
    rooms = [(item, origin, context_length(origin)) for item, origin in origins if origin is not None]
    short = [(item, origin, room) for item, origin, room in rooms if room is not None and longest >= room]
    if short and all(item.stage is not None for item, _, _ in short):
        _, origin, room = short[0]
        place = document.place(("stages", stage.name, "set", "rollout.max_new_tokens"))
        yield f"{place}: {too_long(stage.name, longest, origin, room)}"


def _unused_settings(
    stage: "Stage", stages: "Mapping[str, Stage]", kinds: Mapping[str, StageKind], document: Document
) -> Iterator[str]:
    """Weights and speeds that are set for parts which the model that a stage trains does not have. Training keeps what
    there is of a model, so the folder that the weights go back to says it."""
    if not isinstance(stage.config, TrainingConfig):
        return
    trained = next((i for i in stage.inputs if kinds[stage.kind].inputs.get(i.role) == "checkpoint"), None)
    origin = trained and _origin(trained, stages, kinds)
    if origin and (fault := unused_setting(stage.config, origin)):
        yield f"{document.place(('stages', stage.name))}: stage '{stage.name}': {fault}"


def _origin(item: Input, stages: "Mapping[str, Stage]", kinds: Mapping[str, StageKind]) -> Path | None:
    """The folder whose weights an input goes back to, through the stages that train them further; None without one."""
    passed: set[str] = set()
    while item.stage is not None:
        parent = stages.get(item.stage)
        if parent is None or parent.leaves != "checkpoint" or parent.name in passed:
            return None
        passed.add(parent.name)
        policies = (i for i in parent.inputs if kinds[parent.kind].inputs.get(i.role) == "checkpoint")
        policy = next(policies, None)
        if policy is None:
            return None
        item = policy
    return item.path


def context_length(checkpoint: Path) -> int | None:
    """`max_position_embeddings` of a checkpoint folder, None when it does not say."""
    config = _read_json(checkpoint / "config.json")
    found = config.get("max_position_embeddings") if isinstance(config, dict) else None
    return found if isinstance(found, int) else None


def longest_completion(config: Any) -> int | None:
    """Tokens, as its settings allow at any step; None for a stage that does not sample."""
    longest = getattr(getattr(config, "rollout", None), "max_new_tokens", None)
    return longest and max(longest, *getattr(config, "max_new_tokens_from", {}).values(), 0)


def too_long(stage: str, longest: int, model: Path, room: int) -> str:
    return (
        f"rollout.max_new_tokens of stage '{stage}' is {longest}, but {model} takes {room} tokens, prompt and "
        f"completion together; set less than {room}"
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _safetensors_fault(path: Path) -> str | None:
    """A safetensors file is 8 bytes of header length, a JSON header, then the tensors at the offsets it names."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"{path} is cut off: its header is not complete"
        try:
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return f"{path} has a damaged header"
    if size != 8 + length + end:
        return f"{path} is cut off: {size} bytes instead of {8 + length + end}"
    return None


def order_stages(stages: "Mapping[str, Stage]", document: Document, problems: list[str]) -> "dict[str, Stage]":
    """Stages with parents before children, otherwise in the order of the file. Adds a cycle to `problems`."""
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(stages):
        ready = next(
            (
                name
                for name, stage in stages.items()
                if name not in ordered and all(i.stage is None or i.stage in ordered for i in stage.inputs)
            ),
            None,
        )
        if ready is None:
            cycle = _find_cycle({name: stage for name, stage in stages.items() if name not in ordered})
            place = document.place(("stages", cycle[0]))
            problems.append(f"{place}: these stages wait for each other: {' -> '.join(cycle)}; break the cycle")
            break
        ordered[ready] = stages[ready]
    return ordered


def _find_cycle(waiting: "Mapping[str, Stage]") -> list[str]:
    """Names along the data flow, the first one repeated. Each stage waits for another, so following parents returns."""
    trail = [next(iter(waiting))]
    while trail.count(trail[-1]) < 2:
        trail.append(next(i.stage for i in waiting[trail[-1]].inputs if i.stage and i.stage in waiting))
    return list(reversed(trail[trail.index(trail[-1]) :]))


def engine_problems(stages: Iterable[Any]) -> Iterator[str]:
    """Engines that stages want and that are not installed."""
    for stage in stages:
        engine = getattr(getattr(stage.config, "generator", None), "engine", None)
        if engine == "vllm" and find_spec("vllm") is None:
            yield (
                f"stage '{stage.name}': generator.engine is vllm, which is not installed here; without a GPU: "
                "make .venv/.vllm, with one: pip install 'r1-pipeline[vllm]'"
            )

"""The inputs of stages: do they exist, are they of the right kind, can they be read, what is made before what."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import did_you_mean
from pipeline.stages import Many, StageKind
from pipeline.yaml_source import Document, Place

if TYPE_CHECKING:
    from pipeline.config import Stage


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
    """One sentence per missing role, unknown role, unknown stage, wrong artifact kind and unreadable folder.

    `leaves` has every stage of the pipeline, also those whose recipe is faulty (None).
    """
    for name, stage in stages.items():
        wanted = kinds[stage.kind].inputs
        filled = {item.role.partition(".")[0] for item in stage.inputs}
        for role in wanted:
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


def _problems_of(
    item: Input, role: str, kind: str | Many, name: str, leaves: Mapping[str, str | None]
) -> Iterator[str]:
    expected = kind.kind if isinstance(kind, Many) else kind
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
            yield (
                f"{item.place}: input '{role}' of stage '{name}' names the folder {item.path}, which does not exist; "
                "a model or data set of a hub must be downloaded first"
            )
        else:
            hint = did_you_mean(item.written, leaves)
            yield (
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
    if kind == "checkpoint":
        return checkpoint_fault(path)
    if kind == "dataset" and not (path / "data.parquet").is_file():
        return f"{path} has no data.parquet"
    return None


def checkpoint_fault(path: Path) -> str | None:
    """Why a Hugging Face checkpoint folder cannot be loaded, read from its headers alone; None when it looks whole."""
    config, index = path / "config.json", path / "model.safetensors.index.json"
    if not config.is_file():
        return f"{path} has no config.json, so it is not a checkpoint in Hugging Face format"
    for file in (config, index):
        if file.exists() and not isinstance(_read_json(file), dict):
            return f"{file} is not valid JSON"
    weights = sorted(path.glob("*.safetensors"))
    if index.exists():
        weight_map = _read_json(index).get("weight_map", {})
        missing = sorted(name for name in set(weight_map.values()) if not (path / name).is_file())
        if missing:
            return f"{index} lists {missing[0]}, which is not there"
    if not weights:
        return f"{path} has no *.safetensors file (pickled weights, pytorch_model.bin, are not loaded: convert them)"
    return next((fault for fault in map(_safetensors_fault, weights) if fault), None)


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

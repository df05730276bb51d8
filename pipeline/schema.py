"""Check recipe data against a config class; every fault becomes one sentence with its place and the nearest key."""

import json
import re
import types
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from data.config import LOCAL_OR_HUB, is_local
from pipeline.errors import did_you_mean
from pipeline.yaml_source import Document, KeyPath

Config = TypeVar("Config", bound=BaseModel)

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "path_type": "a path",
    "none_required": "null",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
}


def check(
    model: type[Config], document: Document, what: str, problems: list[str], stand_ins: Path | None = None
) -> Config | None:
    """The validated config, or None after adding every fault to `problems`. `what` names the config: "grpo".

    Types are strict: "8" is not a number and 0.5 is not a whole one.
    stand_ins: a folder; files that are not where the config looks are made there, empty, and named in their place.
    """
    document = Document(_over_nested_defaults(model, document.data), document.places)
    try:
        return model.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        faults: dict[KeyPath, list[Any]] = {}
        for fault in error.errors(include_url=False):
            faults.setdefault(_data_path(fault["loc"], document.data), []).append(fault)
        absent = [path for path, group in faults.items() if group[0]["type"] == "path_not_file"]
        if stand_ins is not None and absent:
            return check(model, _with_stand_ins(document, absent, stand_ins), what, problems, stand_ins)
        problems.extend(_sentence(model, path, group, document, what) for path, group in faults.items())
        return None


def _with_stand_ins(document: Document, absent: Sequence[KeyPath], folder: Path) -> Document:
    data = deepcopy(document.data)
    for *above, last in absent:
        holder = data
        for key in above:
            holder = holder[key]
        file = folder / Path(holder[last]).name
        file.touch()
        holder[last] = str(file)
    return Document(data, document.places)


def _over_nested_defaults(model: type[BaseModel], data: Any) -> Any:
    """`data` with the rest of each nested config it sets in part.

    A config may give a nested one its own defaults, `optimizer: Optimizer = Optimizer(lr=5e-5)`. Pydantic alone would
    forget that lr when a recipe says `optimizer: {warmup_steps: 10}`.
    """
    if not isinstance(data, dict):
        return data
    filled = dict(data)
    for name, field in model.model_fields.items():
        filled |= _laid_over(name, data, field.get_default(call_default_factory=True, validated_data={}))
    return filled


def _laid_over(key: str, data: dict[str, Any], default: Any) -> dict[str, Any]:
    """{key: the mapping under `key` of `data`, laid over the nested config `default`}; {} when there are not both."""
    part = data.get(key)
    if not (isinstance(part, dict) and isinstance(default, BaseModel) and _tags_agree(type(default), part)):
        return {}
    merged = default.model_dump(mode="json") | part
    for inner in part:
        merged |= _laid_over(inner, part, getattr(default, inner, None))
    return {key: merged}


def _data_path(location: KeyPath, data: Any) -> KeyPath:
    """Pydantic's location without the names of union members it puts between the keys."""
    path: list[str | int] = []
    for i, part in enumerate(location):
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, dict) and part in data):
            data = _under(data, part)
        elif not (isinstance(data, dict) and i == len(location) - 1):  # the last one may be a missing key
            continue
        path.append(part)
    return tuple(path)


def _sentence(model: type[BaseModel], path: KeyPath, group: list[Any], document: Document, what: str) -> str:
    fault, place = group[0], document.place(path)
    key = ".".join(str(part) for part in path)
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        names = field_names(model, path[:-1], document.data)
        return f"{place}: unknown key '{key}' in {what}{did_you_mean(str(path[-1]), names)}"
    if kind in ("missing", "union_tag_not_found"):
        if kind == "union_tag_not_found":
            key = ".".join(filter(None, (key, context["discriminator"].strip("'"))))
        return f"{place}: missing required key '{key}' in {what}"
    value = _short(fault["input"])
    if kind in ("path_not_file", "path_not_directory"):
        noun = "file" if kind == "path_not_file" else "folder"
        return f"{place}: {key} names the {noun} {str(fault['input'])!r}, which does not exist"
    wanted = [_WANTED[f["type"]].format(**f.get("ctx", {})) for f in group if f["type"] in _WANTED]
    if not wanted:
        message = fault["msg"].removeprefix("Value error, ")
        subject = f"{key}: " if key else f"{what}: "
        return f"{place}: {subject}{message}" + (f", got {value}" if key and kind != "value_error" else "")
    if kind == "union_tag_invalid":
        key, value = f"{key}.{context['discriminator']}".replace("'", "").lstrip("."), _short(context["tag"])
    choices = re.findall(r"'([^']*)'", wanted[0]) if wanted[0].startswith("one of") else []
    hint = did_you_mean(value.strip("'"), choices) if choices else ""
    hint = "" if hint.startswith("; known") else hint
    subject = f"{key} of {what}" if key else what
    return f"{place}: {subject} must be {' or '.join(dict.fromkeys(wanted))}, got {value}{hint}"


def _short(value: Any) -> str:
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def field_names(model: type[BaseModel], path: KeyPath, data: Any) -> list[str]:
    """Keys allowed under `path` of a config."""
    found: list[type[BaseModel]] = [model]
    for part in path:
        data = _under(data, part)
        fields = [option.model_fields[str(part)] for option in found if str(part) in option.model_fields]
        if fields:  # otherwise the part is an index or a mapping's key, under which the same configs lie
            found = [inner for field in fields for inner in models_in(field.annotation)]
        found = [option for option in found if _tags_agree(option, data)] or found
    return list(dict.fromkeys(name for option in found for name in option.model_fields))


def has_key(model: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether a config takes a value at `path`; below a free mapping it takes any."""
    for depth, part in enumerate(path):
        names = field_names(model, tuple(path[:depth]), None)
        if not names:
            return True
        if part not in names:
            return False
    return True


def _under(data: Any, part: Any) -> Any:
    return data[part] if isinstance(data, dict | list) else None


def _tags_agree(model: type[BaseModel], data: Any) -> bool:
    """Whether the literals of `model` allow the data, which tells the members of a tagged union apart."""
    return not isinstance(data, dict) or all(
        data[name] in get_args(field.annotation)
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is Literal and name in data
    )


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Config classes an annotation allows: through Optional, unions, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from models_in(inner)


def resolve_paths(annotation: Any, value: Any, folder: Path) -> Any:
    """`value` with every relative path made absolute: paths are relative to the file that names them.

    Paths are the fields of type Path, and those marked LOCAL_OR_HUB whose value is no name on a hub.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return str(folder / Path(value).expanduser()) if isinstance(value, str) else value
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, dict):
        fields = annotation.model_fields
        resolved = {
            key: resolve_paths(fields[key].annotation, item, folder) if key in fields else item
            for key, item in value.items()
        }
        for key, field in fields.items():
            if LOCAL_OR_HUB in field.metadata and isinstance(value.get(key), str) and is_local(value[key], folder):
                resolved[key] = str(folder / Path(value[key]).expanduser())
        return resolved
    if origin is Annotated:
        return resolve_paths(inner[0], value, folder)
    if origin in (Union, types.UnionType):
        for option in inner:
            value = resolve_paths(option, value, folder)
        return value
    if origin in (list, tuple, set, frozenset) and isinstance(value, list) and inner:
        return [resolve_paths(inner[0], item, folder) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: resolve_paths(inner[1], item, folder) for key, item in value.items()}
    return value

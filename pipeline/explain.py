"""What a recipe key means: type, default, range and description, straight from the config classes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config import PipelineFile
from pipeline.errors import RecipeError, near_miss
from pipeline.schema import models_in
from pipeline.stages import KINDS, StageKind

_PLAIN_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}
_BOUNDS = (("gt", "greater than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most"))


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDoc:
    """One key of one config."""

    key: str  # dotted, without the kind
    type: str
    default: str  # YAML-like; "required" when there is none
    range: str  # "" when any value of the type is allowed
    description: str


def explain(key: str, kinds: Mapping[str, StageKind] = KINDS) -> list[tuple[KeyDoc, list[str]]]:
    """Every meaning of `key` with the kinds that have it. "grpo.optimizer.lr", "optimizer.lr" and "lr" all work.

    None of a kind's own name. Raises RecipeError naming the nearest key when no kind has it.
    """
    documented = _documented(kinds)
    meanings: dict[KeyDoc, list[str]] = {}
    for kind, docs in documented.items():
        for doc in docs:
            full = f"{kind}.{doc.key}"
            if full == key or full.endswith(f".{key}"):
                meanings.setdefault(doc, []).append(kind)
    if not meanings and key not in documented:
        first, _, rest = key.partition(".")
        if rest and first in documented:
            near = near_miss(rest, [doc.key for doc in documented[first]])
            raise RecipeError(f"{first} has no key '{rest}'{near or f'; r1 explain {first} lists those it has'}")
        keys = [doc.key for docs in documented.values() for doc in docs]
        known = dict.fromkeys([*documented, *keys, *(name.rpartition(".")[2] for name in keys)])
        raise RecipeError(f"there is no stage kind and no key '{key}'{near_miss(key, known)}")
    return list(meanings.items())


def keys_of(place: str, kinds: Mapping[str, StageKind] = KINDS) -> list[tuple[KeyDoc, bool]]:
    """The keys of a kind ("sft") or of a mapping in one ("sft.trainer"), each with whether it has keys of its own."""
    kind, _, mapping = place.partition(".")
    prefix = mapping and f"{mapping}."
    inside = [doc for doc in _documented(kinds).get(kind, ()) if doc.key.startswith(prefix)]
    found: dict[str, tuple[KeyDoc, bool]] = {}
    for doc in inside:  # a key comes before its own
        above = next((key for key in found if doc.key.startswith(f"{key}.")), None)
        if above is None:
            found[doc.key] = doc, False
        else:
            found[above] = found[above][0], True
    return list(found.values())


def _documented(kinds: Mapping[str, StageKind]) -> dict[str, list[KeyDoc]]:
    """Every key of pipelines and of every kind."""
    documented = {"pipeline": list(key_docs(PipelineFile))}
    return documented | {name: list(key_docs(kind.config_class())) for name, kind in kinds.items()}


def key_docs(
    model: type[BaseModel], prefix: str = "", defaults: Any = None, above: tuple[type, ...] = ()
) -> Iterator[KeyDoc]:
    """Every key of a config, nested ones with dots, in the order of the class.

    `defaults` is what the config that contains this one sets by default, which wins over the class's own defaults.
    """
    for name, field in model.model_fields.items():
        default = getattr(defaults, name) if isinstance(defaults, model) else _default(field)
        yield KeyDoc(
            key=prefix + name,
            type=type_name(field.annotation),
            default=_show(default),
            range=_range(field),
            description=field.description or "",
        )
        dots = f"{prefix}{'NAME' if model is PipelineFile and name == 'stages' else name}."
        for inner in models_in(field.annotation):
            if inner not in above:
                yield from key_docs(inner, dots, default, (*above, inner))


def type_name(annotation: Any) -> str:
    """The type as a recipe writer would say it."""
    if annotation is Any:
        return "anything"
    if isinstance(annotation, type) and not get_args(annotation):
        return (
            "mapping"
            if issubclass(annotation, BaseModel)
            else _PLAIN_TYPES.get(annotation, annotation.__name__.lower())
        )
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in inner)
    if origin in (list, tuple, set, frozenset):
        items = dict.fromkeys(type_name(item) for item in inner if item is not Ellipsis)
        return f"list of {', '.join(items)}"
    if origin is dict:
        return f"mapping of {type_name(inner[0])} to {type_name(inner[1])}"
    if getattr(annotation, "__metadata__", None):
        return type_name(inner[0])
    return " | ".join(dict.fromkeys(type_name(item) for item in inner)) if inner else str(annotation)


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})  # PydanticUndefined when required


def _show(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return "see its keys"
    return default if isinstance(default, str) else json.dumps(default, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _range(field: FieldInfo) -> str:
    found = []
    for item in field.metadata:
        found.extend(f"{words} {getattr(item, name)}" for name, words in _BOUNDS if hasattr(item, name))
    return ", ".join(found)

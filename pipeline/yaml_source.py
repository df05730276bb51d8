"""YAML with places: every value knows the file, line and column it came from.

Scalars follow YAML 1.2 rather than PyYAML's 1.1, so that `1e-4` is a number and `no` is a word. Whole numbers may be
written `1e6` or `1_000_000`. Duplicate keys, tags and aliases that contain themselves are errors.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError, unreadable

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a file with line and column (both from 1), or an argument of the command line."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(slots=True)
class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the place of each value by its path of keys."""

    data: Any
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def place(self, path: KeyPath = ()) -> Place:
        """Place of the value at `path`, or of the closest parent that was written down."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place("?"))

    def at(self, key: str | int) -> "Document":
        """The part under one key."""
        places = {path[1:]: place for path, place in self.places.items() if path[:1] == (key,)}
        places.setdefault((), self.place((key,)))
        return Document(self.data[key], places)

    def without(self, key: str) -> "Document":
        data = {name: value for name, value in self.data.items() if name != key}
        return Document(data, {path: place for path, place in self.places.items() if path[:1] != (key,)})

    def over(self, other: "Document") -> "Document":
        """This document laid over `other`: mappings merge key by key, at the place of `other`; the rest replaces."""
        if not (isinstance(self.data, dict) and isinstance(other.data, dict)):
            return self
        merged = Document({}, {(): other.place()})
        for key in [*other.data, *(key for key in self.data if key not in other.data)]:
            if key not in self.data:
                part = other.at(key)
            else:
                part = self.at(key).over(other.at(key)) if key in other.data else self.at(key)
            merged.data[key] = part.data
            merged.places.update({(key, *path): place for path, place in part.places.items()})
        return merged

    def nested_under(self, keys: list[str]) -> "Document":
        """The document {keys[0]: {keys[1]: ... this}}."""
        data, prefix = self.data, tuple(keys)
        places: dict[KeyPath, Place] = {}
        for key in reversed(keys):
            data = {key: data}
        places.update({prefix[:i]: self.place() for i in range(len(prefix))})
        places.update({(*prefix, *path): place for path, place in self.places.items()})
        return Document(data, places)


def read_yaml(path: Path) -> Document:
    """The mapping a recipe file holds. Raises RecipeError for a missing or empty file and for bad YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(unreadable(path, error)) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    document = parse_yaml(text, str(path))
    if not isinstance(document.data, dict):
        held = "is empty" if document.data is None else f"holds {document.data!r}"
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, but the file {held}")
    return document


def parse_yaml(text: str, source: str) -> Document:
    """Parse one YAML document; `source` names it in places and errors."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1, mark.column + 1) if mark else Place(source)
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{place}: this is not valid YAML: {message}") from None
    except RecursionError:
        raise RecipeError(f"{source}: this is not a recipe: it is nested too deeply") from None
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise RecipeError(f"{source}: this is not valid YAML: {message}") from None
    document = Document(None, {(): Place(source, 1, 1)})
    if node is not None:
        problems: list[str] = []
        document.data = _convert(node, (), document.places, source, problems, ())
        if problems:
            raise RecipeError(problems)
    return document


class _Loader(yaml.SafeLoader):
    """SafeLoader's scanner with YAML 1.2 scalars; only `compose` is used, so nothing is ever constructed."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (the attribute PyYAML looks up)


_INT = r"[-+]?[0-9][0-9_]*(?:[eE]\+?[0-9]+)?"
_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_SIGNS = list("-+0123456789.")
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INT, _SIGNS),
    ("float", _FLOAT, _SIGNS),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _convert(
    node: yaml.Node, path: KeyPath, places: dict[KeyPath, Place], source: str, problems: list[str], above: tuple
) -> Any:
    place = Place(source, node.start_mark.line + 1, node.start_mark.column + 1)
    places.setdefault(path, place)
    if id(node) in above:
        problems.append(f"{place}: this alias contains itself")
        return None
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_place = Place(source, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(f"{key_place}: a key must be a single word")
                continue
            key = key_node.value
            if key in mapping:
                first = places[(*path, key)]
                problems.append(f"{key_place}: duplicate key '{key}', first written on line {first.line}; keep one")
                continue
            places[(*path, key)] = key_place
            mapping[key] = _convert(value_node, (*path, key), places, source, problems, above)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, (*path, i), places, source, problems, above) for i, item in enumerate(node.value)]
    return _scalar(node, place, problems)


def _scalar(node: yaml.Node, place: Place, problems: list[str]) -> Any:
    text = node.value
    match node.tag.removeprefix("tag:yaml.org,2002:"):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            digits, _, exponent = text.replace("_", "").lower().partition("e")
            if len(digits) + int(exponent or 0) > 100:
                problems.append(f"{place}: the number {text} is too large")
                return 0
            return int(digits) * 10 ** int(exponent or 0)
        case "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        case "str":
            return text
    problems.append(f"{place}: the tag {node.tag} is not allowed in a recipe; write a plain value")
    return None

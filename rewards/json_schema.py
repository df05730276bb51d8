"""The part of JSON Schema that instructions use: types, objects, lists, ranges, choices."""

import json
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
_VALUES: dict[str, tuple[tuple[type, ...], str]] = {
    "type": ((str,), "a text"), "properties": ((dict,), "an object"), "required": ((list,), "a list of texts"),
    "additionalProperties": ((bool,), "true or false"), "items": ((dict,), "an object"), "enum": ((list,), "a list"),
    "const": ((object,), "anything"),
    **dict.fromkeys(("minimum", "maximum"), ((int, float), "a number")),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), ((int,), "a whole number")),
}  # fmt: skip


def read_json(text: str) -> tuple[bool, Any]:
    """(True, value) when the text is JSON alone, or JSON in one code fence; else (False, None)."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and len(text) > 6:
        text = text[3:-3].removeprefix("json").strip()
    try:
        return True, json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False, None


def check_schema(schema: Any) -> None:
    """Raise ValueError when the schema uses what is not understood here, which would pass anything."""
    if not isinstance(schema, dict):
        raise ValueError(f"a JSON schema is an object, got {schema!r}")
    if unknown := set(schema) - set(_VALUES):
        raise ValueError(f"JSON schema keyword {sorted(unknown)[0]!r} is not supported")
    for keyword, value in schema.items():
        kinds, said = _VALUES[keyword]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
            raise ValueError(f"JSON schema {keyword} must be {said}, got {value!r}")
    if schema.get("type", "object") not in _TYPES:
        raise ValueError(f"JSON schema type {schema['type']!r} is not one of {', '.join(_TYPES)}")
    if not all(isinstance(name, str) for name in schema.get("required", ())):
        raise ValueError("JSON schema required must be a list of texts")
    for inner in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        check_schema(inner)


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a JSON value fits a schema that `check_schema` accepts."""
    if not schema:
        return True  # without looking into it, however deep it is
    if "type" in schema:
        if isinstance(value, bool) and schema["type"] != "boolean":
            return False
        if not isinstance(value, _TYPES[schema["type"]]):
            return False
    if "enum" in schema and not any(_equal(value, choice) for choice in schema["enum"]):
        return False
    if "const" in schema and not _equal(value, schema["const"]):
        return False
    if isinstance(value, dict):
        return _conforms_object(value, schema)
    if isinstance(value, list):
        items = schema.get("items", {})
        return _within(len(value), schema, "minItems", "maxItems") and all(conforms(item, items) for item in value)
    if isinstance(value, str):
        return _within(len(value), schema, "minLength", "maxLength")
    return isinstance(value, bool) or value is None or _within(value, schema, "minimum", "maximum")


def _conforms_object(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    properties = schema.get("properties", {})
    if any(name not in value for name in schema.get("required", ())):
        return False
    if not schema.get("additionalProperties", True) and set(value) - set(properties):
        return False
    return all(conforms(item, properties[name]) for name, item in value.items() if name in properties)


def _equal(left: Any, right: Any) -> bool:
    """As JSON has it: `true` is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    return left == right


def _within(size: float, schema: dict[str, Any], low: str, high: str) -> bool:
    return schema.get(low, size) <= size <= schema.get(high, size)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")

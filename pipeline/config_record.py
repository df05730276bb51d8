"""What a config stands for: its settings as plain data, and the files that it names by their content."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.config import LOCAL_OR_HUB, is_local


def config_record(config: BaseModel) -> dict[str, Any]:
    """As JSON has it, with each file as "name sha256:digest": a changed file is a changed config."""
    return json.loads(json.dumps(_record(config, config.model_dump(mode="json"))))


def _record(value: Any, dumped: Any) -> Any:
    if isinstance(value, Path):
        return _identity(value)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            key: _identity(Path(item)) if LOCAL_OR_HUB in fields[key].metadata and is_local(item)
            else _record(getattr(value, key), item)
            for key, item in dumped.items()
            if key in fields
        }  # fmt: skip
    if isinstance(value, dict):
        return {key: _record(inner, item) for (key, item), inner in zip(dumped.items(), value.values(), strict=True)}
    if isinstance(value, list | tuple):
        return [_record(inner, item) for inner, item in zip(value, dumped, strict=True)]
    return dumped


def _identity(path: Path) -> str:
    """What stands for a path in the record; a folder counts by the names and contents of its files."""
    if not path.exists():
        return os.path.normpath(path)
    if path.is_file():
        return f"{path.name} sha256:{_sha256(path)[:16]}"
    listing = "".join(
        f"{file.relative_to(path).as_posix()}\0{_sha256(file)}\n" for file in sorted(path.rglob("*")) if file.is_file()
    )
    return f"{path.name} sha256:{hashlib.sha256(listing.encode()).hexdigest()[:16]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

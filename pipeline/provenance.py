"""Where an artifact came from: versions of code, packages and the user's rewards, and the device. Imports none of the
packages that it names."""

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rewards.config import RewardSpec

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "accelerate",
    "datasets",
    "math-verify",
    "pydantic",
    "vllm",
)
_ROOMS = (
    "recipes", "pipeline", "viewing", "planning", "distill", "sft", "rl", "rollouts", "training", "rewards", "models",
    "data", "fp8", "cluster",
)  # fmt: skip


@functools.cache
def code_version(root: Path = _ROOT) -> dict[str, Any]:
    """{"sources": sha256 of the package's Python files}, with {"git": sha, "dirty": bool} in a checkout."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    version: dict[str, Any] = {"sources": digest.hexdigest()}
    if (root / ".git").exists():
        sha, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
        if sha and changes is not None:
            version |= {"git": sha, "dirty": bool(changes)}
    return version


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that decide numerics."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def reward_versions(config: Any) -> dict[str, str]:
    """ "reward module:Class" -> sha256 of the module's file, for the rewards of a config that are not r1's own."""
    found: dict[str, str] = {}
    for use in sorted(set(_rewards(config))):
        module = find_spec(use.partition(":")[0])
        file = Path(module.origin) if module is not None and module.origin else None
        if file is not None and file.is_file() and not any(file.is_relative_to(_ROOT / room) for room in _ROOMS):
            found[f"reward {use}"] = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return found


def _rewards(value: Any) -> Iterator[str]:
    if isinstance(value, RewardSpec):
        yield value.use
    elif isinstance(value, BaseModel):
        yield from _rewards([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _rewards(item)


def device() -> str:
    """The accelerator this process's torch sees, else the CPU. A stage that trains elsewhere says so in stats.json."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}"
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"

"""One generator pool for many checkpoints: where only the weights differ, they are synced instead of starting anew."""

import json
from pathlib import Path
from typing import Any

from rollouts.config import GeneratorConfig
from rollouts.pool import GeneratorPool
from rollouts.transport import Files

# What else decides how a checkpoint samples: architecture, end-of-sequence token, tokenizer.
_SETTINGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_STORAGE = ("dtype", "torch_dtype", "transformers_version")  # of the file; a generator has a dtype of its own


class CheckpointPool:
    """Holds at most one GeneratorPool, on the checkpoint last asked for."""

    def __init__(self, config: GeneratorConfig):
        self._config = config
        self._pool: GeneratorPool | None = None
        self._folder = Path()
        self._version = 0

    def at(self, folder: Path) -> GeneratorPool:
        """A pool with the weights of the checkpoint at `folder`. The one returned before must not be used any more."""
        if self._pool is not None and can_sync(self._folder, folder):
            self._version += 1
            self._pool.sync(Files(folder), self._version)
        else:
            self.close()
            self._pool, self._version = GeneratorPool(str(folder), self._config), 0
        self._folder = folder
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def can_sync(old: Path, new: Path) -> bool:
    """Whether a generator of checkpoint `old` becomes one of `new` by its weights alone."""
    same = all(_content(old / name) == _content(new / name) for name in _SETTINGS)
    return same and any(new.glob("*.safetensors"))


def _content(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.name != "config.json":
        return path.read_bytes()
    config = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in _STORAGE}

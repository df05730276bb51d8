"""Checkpoint folders named on the command line: are they there, and what shall they be called."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import RecipeError


def check_checkpoint(path: Path) -> Path:
    """The absolute path of a checkpoint folder. Raises RecipeError when it is none."""
    if not path.is_dir():
        raise RecipeError(f"{path}: there is no such checkpoint folder")
    for pattern, what in (("config.json", "config"), ("*.safetensors", "weights"), ("tokenizer*", "tokenizer")):
        if not any(path.glob(pattern)):
            raise RecipeError(f"{path}: this is not a checkpoint, it has no {what} ({pattern})")
    return path.resolve()


def label_checkpoints(paths: Sequence[Path]) -> dict[str, Path]:
    """A short name for each path: its last parts, as many as it takes to tell them apart. The same path counts once."""
    unique = list(dict.fromkeys(path.resolve() for path in paths))
    for parts in range(1, max((len(path.parts) for path in unique), default=1) + 1):
        labels = ["/".join(path.parts[-parts:]) for path in unique]
        if len(set(labels)) == len(unique):
            break
    return dict(zip(labels, unique, strict=True))

"""`r1 export`: a checkpoint in the form that others load, with a model card."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.artifact import ArtifactError, read_manifest
from pipeline.errors import RecipeError
from pipeline.inputs import loadable_checkpoint
from pipeline.model_card import model_card


def export(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint folder, e.g. runs/tiny/distill")],
    folder: Annotated[Path, typer.Argument(help="new folder to write")],
    precision: Annotated[
        Literal["bfloat16", "fp8", "gguf"], typer.Option("--format", help="bfloat16, or DeepSeek's FP8 blocks")
    ] = "bfloat16",
) -> None:
    """Write a checkpoint in bfloat16 or FP8 safetensors, with its tokenizer and a model card from its lineage."""
    if precision == "gguf":
        raise RecipeError(
            "--format gguf is not supported: export bfloat16, and llama.cpp's convert_hf_to_gguf.py makes GGUF of it "
            "for architectures that it knows, such as Llama and Qwen students"
        )
    source = loadable_checkpoint(checkpoint)
    try:
        manifest = read_manifest(source)
    except ArtifactError as error:
        raise RecipeError(str(error)) from None
    if manifest is not None and manifest.kind == "reward_model":
        raise RecipeError(f"{checkpoint} is a reward model, whose head no other program reads; it is used as it is")
    if folder.exists():
        raise RecipeError(f"{folder} exists already; name a new folder")
    if not folder.absolute().parent.is_dir():
        raise RecipeError(f"the folder {folder.absolute().parent} does not exist")
    from models.export import export_checkpoint  # imports torch

    # Beside the target, so that it is moved into place whole.
    with tempfile.TemporaryDirectory(prefix=".r1-export-", dir=folder.absolute().parent) as scratch:
        written = Path(scratch) / "checkpoint"
        try:
            refused = export_checkpoint(source, written, precision)
        except ValueError as error:
            raise RecipeError(f"{checkpoint}: {error}") from None
        (written / "README.md").write_text(model_card(source, folder.name, precision), encoding="utf-8")
        os.rename(written, folder)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB in {precision}")
    if refused:
        print(refused)

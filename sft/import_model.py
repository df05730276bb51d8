"""The import stage: a pretrained model of the hub, a folder or a GGUF file, as a checkpoint of the run."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from data.config import is_local
from models.checkpoint import load_model, load_mtp_module, load_tokenizer, save_model
from models.gguf import load_gguf
from sft.import_config import ImportConfig
from training.run_log import write_stats
from training.stage import StageContext, StageError

# Some repositories hold the weights twice.
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")


def run(config: ImportConfig, context: StageContext) -> None:
    context.report({"phase": f"reading {config.model}"})
    try:
        folder = None if config.gguf is not None or is_local(config.model) else _download(config)
        model, tokenizer, mtp = _load(config, folder)
    except (ImportError, ValueError, OSError, HfHubHTTPError) as error:
        away = isinstance(error, HfHubHTTPError | LocalEntryNotFoundError)
        raise StageError(f"{context.name}: {config.model} cannot be brought in: {error}", retry=away) from None
    for key, value in config.config.items():
        if not hasattr(model.config, key):
            raise StageError(
                f"{context.name}: config.{key}: a {model.config.model_type} has no such key in config.json"
            )
        setattr(model.config, key, value)
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template.read_text(encoding="utf-8")
    save_model(context.output, model, tokenizer, mtp, getattr(torch, config.dtype))
    revision = {} if folder is None else {"revision": folder.name}  # the hub's cache names snapshots by commit
    write_stats(context.output, {"parameters": model.num_parameters(), **revision})


def _download(config: ImportConfig) -> Path:
    return Path(snapshot_download(config.model, revision=config.revision, allow_patterns=list(_FILES)))


def _load(config: ImportConfig, folder: Path | None):
    if config.gguf is not None:
        return *load_gguf(config.gguf), None
    path = folder or Path(config.model)
    model = load_model(path, dtype=getattr(torch, config.dtype))
    return model, load_tokenizer(path), load_mtp_module(path, model.config)

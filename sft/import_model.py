"""The import stage: a pretrained model of the hub, a folder or a GGUF file, as a checkpoint of the run."""

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from data.config import is_local
from models.checkpoint import load_model, load_mtp_module, load_tokenizer, save_model
from models.gguf import load_gguf
from sft.import_config import ImportConfig
from training.run_log import write_stats
from training.stage import StageContext, StageError


def run(config: ImportConfig, context: StageContext) -> None:
    context.report({"phase": f"reading {config.model}"})
    try:
        model, tokenizer, mtp = _load(config)
    except (ImportError, ValueError, OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise StageError(f"{context.name}: {config.model} cannot be brought in: {error}", retry=True) from None
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template.read_text(encoding="utf-8")
    save_model(context.output, model, tokenizer, mtp, getattr(torch, config.dtype))
    write_stats(context.output, {"parameters": model.num_parameters()})


def _load(config: ImportConfig):
    if config.gguf is not None:
        return *load_gguf(config.gguf), None
    folder = config.model if is_local(config.model) else snapshot_download(config.model, revision=config.revision)
    model = load_model(folder)
    return model, load_tokenizer(folder), load_mtp_module(folder, model.config)

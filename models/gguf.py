"""GGUF files, llama.cpp's format, as Hugging Face checkpoints: quantised weights are multiplied out by transformers."""

import struct
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from models.checkpoint import quiet_transformers


def load_gguf(file: Path) -> tuple[PreTrainedModel, Any]:
    """The causal LM (float32) and the tokenizer of a GGUF file.

    Raises ImportError without the package gguf, ValueError for a file that transformers cannot read.
    """
    if find_spec("gguf") is None:
        raise ImportError("reading GGUF files needs the package gguf: pip install gguf")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with quiet_transformers(), redirect_stderr(StringIO()):  # it draws a progress bar of its own
        try:
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        except (ValueError, LookupError, OSError, OverflowError, NotImplementedError, struct.error) as error:
            raise ValueError(f"{file} is no GGUF file that transformers reads: {error}") from None
    for name in ("quantization_config", "_model_name_or_path"):  # what is made here is not quantised
        model.config.__dict__.pop(name, None)
    return model, tokenizer

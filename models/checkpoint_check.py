"""Whether a folder holds the model that its config.json describes and a tokenizer that fits it. No tensor is read."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from models.architectures import INDEXED, check_architecture
from models.checkpoint import load_tokenizer, loaded_fault, quiet_transformers
from models.fp8_checkpoint import TensorFiles, is_fp8

_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")


def weights_fault(folder: Path) -> str | None:
    """Why the model is none that is computed here, or its weights are not those that config.json describes, or have
    fewer rows than the tokenizer has ids.

    Of DeepSeek's FP8 checkpoints experts and tokenizer alone are looked at: what they lack is an error when it is read.
    """
    config = AutoConfig.from_pretrained(folder)
    try:
        check_architecture(config, indexed=config.model_type == INDEXED)  # a stage may train them
    except ValueError as error:
        return f"{folder}: {error}"
    if (lost := _lost_expert(folder)) is not None:
        return f"{folder}: its files lack {lost}, and have that of other experts"
    rows = getattr(config, "vocab_size", None)
    if not is_fp8(config):
        try:
            model, told = _outline(folder)
        except Exception as error:  # transformers has many, for configs that contradict themselves
            said = " ".join(str(error).split())
            return f"{folder}: transformers cannot load it ({type(error).__name__}: {said})"
        if fault := loaded_fault(config, told):
            return f"{folder}: {fault}"
        rows = len(model.get_input_embeddings().weight)
    ids = max(_vocabulary(folder).values(), default=-1) + 1
    if rows is not None and ids > rows:
        return (
            f"{folder}: the tokenizer has {ids} ids, and the embedding {rows} rows; resize it "
            "(model.resize_token_embeddings), or drop the added tokens"
        )
    return None


def _vocabulary(folder: Path) -> dict[str, int]:
    """As its file has it, if there is one: some classes of transformers add a token that no text is made of."""
    file = folder / "tokenizer.json"
    return Tokenizer.from_file(str(file)).get_vocab() if file.exists() else load_tokenizer(folder).get_vocab()


def _outline(folder: Path) -> Any:
    """The model without memory for its weights, and what transformers tells of loading it."""
    how = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, **how)


def _lost_expert(folder: Path) -> str | None:
    """The name of a weight that some experts of a layer have and one lacks, which transformers would not name."""
    found: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    most: defaultdict[str, int] = defaultdict(int)
    for parts in filter(None, map(_EXPERT.fullmatch, TensorFiles(folder).names())):
        layer, expert, weight = parts[1], int(parts[2]), parts[3]
        found[layer, weight].add(expert)
        most[layer] = max(most[layer], expert + 1)
    lost = ((*key, set(range(most[key[0]])) - experts) for key, experts in found.items())
    return next((f"{layer}{min(absent)}{weight}" for layer, weight, absent in lost if absent), None)

"""The base stage: a tiny model and its tokenizer from scratch, on procedural text of uneven quality."""

from itertools import islice

import numpy as np

from data.chat import render_prompt
from data.corpus import documents
from models.checkpoint import save_model
from models.tiny import build_model, build_tokenizer
from sft.batch import Example, Row, pack_examples
from sft.config import PretrainConfig
from sft.loop import train
from training.run_log import write_stats
from training.stage import StageContext


def run(config: PretrainConfig, context: StageContext) -> None:
    texts = (document.text for document in islice(documents(f"{config.corpus_seed}"), config.tokenizer_documents))
    tokenizer = build_tokenizer(texts, config.model)
    start = context.output / ".initial"
    save_model(start, *_model(config, tokenizer, context.seed))
    train(
        start,
        lambda step: corpus_batch(config, tokenizer, step),
        config.steps,
        config,
        context,
        save_dtype=config.save_dtype,
    )
    write_stats(context.output, {"documents": config.steps * config.documents_per_step, "steps": config.steps})


def _model(config: PretrainConfig, tokenizer, seed: int):
    model, mtp = build_model(config.model, tokenizer, seed)
    return model, tokenizer, mtp


def corpus_batch(config: PretrainConfig, tokenizer, step: int) -> list[Row]:
    """The documents of one step, trained on in full, prompt and all, as raw text is."""
    examples = []
    for document in islice(documents(f"{config.corpus_seed}-{step}"), config.documents_per_step):
        message = {"role": "user", "content": document.question}
        prompt = render_prompt(tokenizer, [message], document.template)
        completion = tokenizer(document.completion, add_special_tokens=False)["input_ids"]
        ids = np.array([*prompt, *completion, tokenizer.eos_token_id], dtype=np.int64)
        examples.append(Example(token_ids=ids, loss_mask=np.ones(len(ids), dtype=bool)))
    return pack_examples(examples, config.trainer.row_tokens)

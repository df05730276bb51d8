"""lm-eval loads our checkpoints as they are, and says what we say of them."""

import numpy as np
import pytest
import torch

from models.checkpoint import load_model, load_tokenizer

CONTEXT, ANSWERS = "User: What is 3+8?\nAssistant:", (" 11", " The answer is 12.")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "student_base"])  # DeepSeek-V3 with an MTP layer, and a dense Llama
def test_log_likelihoods_are_those_of_the_policy(name):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    checkpoint = f"recipes/tiny/{name}"
    harness = HFLM(pretrained=checkpoint, device="cpu", dtype="float32", batch_size=1)
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=(CONTEXT, answer), idx=i)
        for i, answer in enumerate(ANSWERS)
    ]
    found = [likelihood for likelihood, _ in harness.loglikelihood(asked, disable_tqdm=True)]
    assert found == pytest.approx([_log_likelihood(checkpoint, answer) for answer in ANSWERS], abs=1e-3)


@torch.no_grad()
def _log_likelihood(checkpoint: str, answer: str) -> float:
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint, "eager").eval()
    whole, prompt = tokenizer(CONTEXT + answer)["input_ids"], tokenizer(CONTEXT)["input_ids"]
    logprobs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1).numpy()
    places = np.arange(len(prompt), len(whole))
    return float(logprobs[places - 1, np.array(whole)[places]].sum())

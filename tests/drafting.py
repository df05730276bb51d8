"""What vLLM samples on CPU with a way of drafting and without: `python -m tests.drafting METHOD CHECKPOINT`.

A program of its own: an engine that ends takes the process groups of others along.
"""

import json
import os
import sys

PROMPT = [9, 40, 300, 12, 9, 40, 300, 12, 9, 40]  # repeats, so that n-grams of it are found
SAMPLES = 1000  # to compare distributions; checking n-gram drafts is slow, and their logprobs settle it
METHODS = {
    "none": {},
    "mtp": {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}},
    "ngram": {
        "speculative_config": {
            "method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3, "prompt_lookup_min": 1
        }
    },
}  # fmt: skip


def main(method: str, checkpoint: str) -> dict:
    from rollouts import vllm_cpu

    os.environ.update(vllm_cpu.environment())
    import vllm

    llm = vllm.LLM(
        model=checkpoint, dtype="float32", kv_cache_memory_bytes=64 << 20, disable_log_stats=False,
        logprobs_mode="processed_logprobs", **vllm_cpu.engine_arguments(128), **METHODS[method],
    )  # fmt: skip

    def sample(count: int, temperature: float, tokens: int) -> list:
        settings = [
            vllm.SamplingParams(max_tokens=tokens, temperature=temperature, seed=i, logprobs=0, detokenize=False)
            for i in range(count)
        ]
        outputs = llm.generate([{"prompt_token_ids": PROMPT}] * count, settings, use_tqdm=False)
        return [output.outputs[0] for output in outputs]

    [greedy], long = sample(1, 0.0, 40), sample(6, 1.0, 24)
    short = [] if method == "ngram" else sample(SAMPLES, 1.0, 3)
    drafted = [m.value for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_draft_tokens"]
    return {
        "greedy": list(greedy.token_ids),
        "sampled": [list(output.token_ids) for output in short],
        "logprob_gap": logprob_gap(long, checkpoint),
        "drafted": sum(drafted),
    }


def logprob_gap(outputs: list, checkpoint: str) -> float:
    """Largest difference, nats, of the logprobs that came with tokens from those of transformers' forward pass."""
    import numpy as np
    import torch

    from tests.architectures import reference

    model, gaps = reference(checkpoint), []
    for output in outputs:
        ids, start = [*PROMPT, *output.token_ids], len(PROMPT)
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0, start - 1 : -1].double(), -1)
        pairs = zip(output.logprobs, output.token_ids, strict=True)
        gaps += [abs(row[token].logprob - own[token].item()) for (row, token), own in zip(pairs, logprobs, strict=True)]
    return float(np.max(gaps))  # NaN when one is


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))

"""What vLLM samples on CPU with a way of drafting and without: `python -m tests.drafting METHOD CHECKPOINT`.

A program of its own: an engine that ends takes the process groups of others along.
"""

import json
import os
import sys

PROMPT = [9, 40, 300, 12, 9, 40, 300, 12, 9, 40]  # repeats, so that n-grams of it are found
SAMPLES = 1000
METHODS = {
    "none": {},
    "mtp": {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}},
    "ngram": {
        "speculative_config": {
            "method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3, "prompt_lookup_min": 1
        }
    },
}  # fmt: skip


def main(method: str, checkpoint: str) -> None:
    from rollouts import vllm_cpu

    os.environ.update(vllm_cpu.environment())
    import vllm

    llm = vllm.LLM(
        model=checkpoint, dtype="float32", kv_cache_memory_bytes=64 << 20, disable_log_stats=False,
        **vllm_cpu.engine_arguments(128), **METHODS[method],
    )  # fmt: skip

    def sample(count: int, temperature: float, tokens: int) -> list[list[int]]:
        settings = [
            vllm.SamplingParams(max_tokens=tokens, temperature=temperature, seed=i, ignore_eos=True, detokenize=False)
            for i in range(count)
        ]
        outputs = llm.generate([{"prompt_token_ids": PROMPT}] * count, settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    said = {"greedy": sample(1, 0.0, 40)[0], "sampled": sample(SAMPLES, 1.0, 3)}
    drafted = [m.value for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_draft_tokens"]
    print(json.dumps(said | {"drafted": sum(drafted)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

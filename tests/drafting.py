"""What vLLM samples on CPU with a way of drafting and without: `python -m tests.drafting METHOD CHECKPOINT`.

Method `ours` is our generator with n-gram drafts; the others are vLLM alone.

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


def ours(checkpoint: str) -> dict:
    from rollouts.config import DraftingConfig
    from rollouts.records import Request, SamplingParams
    from rollouts.vllm_generator import VLLMGenerator
    from tests.architectures import compare, reference

    arguments = {"kv_cache_memory_bytes": 64 << 20}
    drafting = DraftingConfig(method="ngram")
    generator = VLLMGenerator(checkpoint, device="cpu", drafting=drafting, engine_args=arguments)

    def sample(experts: bool = False, **settings):
        request = Request(key="p", prompt_ids=PROMPT, return_routed_experts=experts)
        return generator.sample([request], SamplingParams(**settings))

    [greedy] = sample(max_new_tokens=40, temperature=0.0)[0].completions
    sampled = sample(max_new_tokens=3, group_size=SAMPLES, seed=1)[0].completions
    contract = compare(sample(experts=True, max_new_tokens=24, group_size=8, seed=2), reference(checkpoint))
    drafted, accepted = generator.draft_counts()
    try:
        sample(max_new_tokens=3, min_p=0.1)
    except ValueError as error:
        refusal = str(error)
    return {
        "greedy": greedy.token_ids.tolist(), "sampled": [c.token_ids.tolist() for c in sampled],
        "gap": contract["gap"], "routed": contract["routed"],
        "drafted": drafted, "accepted": accepted, "refusal": refusal,
    }  # fmt: skip


def main(method: str, checkpoint: str) -> dict:
    if method == "ours":
        return ours(checkpoint)
    from rollouts import vllm_cpu

    os.environ.update(vllm_cpu.environment())
    import vllm

    llm = vllm.LLM(
        model=checkpoint, dtype="float32", kv_cache_memory_bytes=64 << 20, disable_log_stats=False,
        **vllm_cpu.engine_arguments(128), **METHODS[method],
    )  # fmt: skip

    def sample(count: int, temperature: float, tokens: int) -> list[list[int]]:
        settings = [
            vllm.SamplingParams(max_tokens=tokens, temperature=temperature, seed=i, detokenize=False)
            for i in range(count)
        ]
        outputs = llm.generate([{"prompt_token_ids": PROMPT}] * count, settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    said = {"greedy": sample(1, 0.0, 40)[0], "sampled": sample(SAMPLES, 1.0, 3)}
    drafted = [m.value for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_draft_tokens"]
    return said | {"drafted": sum(drafted)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))

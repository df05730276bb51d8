"""Where vLLM goes wrong on CPU, and the ways round it. Checked for the versions below alone; each has a test.

1. With enforce_eager the rotary embedding kernel misreads MLA's queries: logprobs are off by up to 6e-2, silently.
   Way round: leave that one custom op off.
2. A weight update leaves experts as garbage, and a tied output head as it was: both have a packed form that is made
   only once. Way round: forget that of the experts before every update, pack the head again after it.
3. Routed experts and sampling masks come from Model Runner V2, which needs Triton, which has no CPU backend here.
   Way round: read both off the running engine, which lives in this process.
4. A prompt in several chunks needs seeds to be wound back, which generators on CPU refuse: the engine dies.
   Way round: no chunked prefill.
5. MTP drafting at a temperature above 0 samples another distribution than the model's (greedy decoding is exact).
   No way round: it is refused.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads what the engine must be told, and starts without torch
    import numpy as np
    import torch
    from torch import nn

VERSIONS = ("0.32.",)
FORCED = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER")  # of `environment`: nobody may say otherwise
NO_DRAFTING = (
    "on CPU drafts of vLLM's models change the distribution at temperatures above 0 (the sampled tokens would not be "
    "the policy's)"
)


def check_version(version: str) -> None:
    """Raises RuntimeError for a vLLM whose behaviour on CPU nobody has looked at."""
    if not version.startswith(VERSIONS):
        raise RuntimeError(
            f"vLLM {version} on CPU: the ways round its errors are checked for {'x, '.join(VERSIONS)}x alone; install "
            "that one, or run tests/test_rollouts_vllm.py with yours and extend rollouts/vllm_cpu.py"
        )


def environment() -> dict[str, str]:
    """What must be in the environment before vLLM is imported, unless somebody has set it otherwise."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process: half the start, and 3. needs it
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer shares the cores
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # 3. again
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; vLLM's own choice is a share of all memory
        "VLLM_NO_USAGE_STATS": "1",
    }


def check_architecture(config: Any) -> None:
    """Raises ValueError, in one sentence, for a transformers config that vLLM's CPU kernels do not host.

    Its own errors come late, say little, and leave the process unusable.
    """
    if why := _not_hosted(config):
        raise ValueError(f"vLLM on CPU does not host this {config.model_type} model: {why}")


def _not_hosted(config: Any) -> str | None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    elsewhere = "use generator.engine=transformers or a GPU"
    if config.model_type == "deepseek_v4":
        return "its kernels there need AMX and keep keys in FP8; use a GPU, to sample alone, since r1 does not train it"
    if hasattr(config, "index_topk"):
        return f"there is no sparse attention; {elsewhere}"
    if latents := getattr(config, "kv_lora_rank", None):
        if (latents, config.qk_rope_head_dim) != (512, 64):
            return f"MLA latents must be 512 + 64, not {latents} + {config.qk_rope_head_dim}; {elsewhere}"
        return None
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if (head := getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) not in sizes:
        return f"heads must be {', '.join(map(str, sizes[:-1]))} or {sizes[-1]} wide, not {head}; {elsewhere}"
    return None


def engine_arguments(context: int) -> dict[str, Any]:
    """What the engine must be told, for sequences of at most `context` tokens."""
    return {
        "enable_chunked_prefill": False,  # 4.
        "max_num_batched_tokens": max(context, 4096),  # vLLM's own figure, but whole prompts must fit
        "enforce_eager": True,  # compiling takes longer than a tiny model samples
        "compilation_config": {"custom_ops": ["all", "-rotary_embedding"]},  # 1.
    }


def forget_packed_experts(model: "nn.Module") -> None:
    """2. To be called before every weight update."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def pack_heads_again(model: "nn.Module") -> None:
    """2. To be called after every weight update."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


class Capture:
    """3. Routed experts and sampling supports of running requests, taken from the model runner as it works."""

    def __init__(self, runner: Any):
        """`runner`: vLLM's GPUModelRunner (V1) of this process, whose class the CPU one inherits."""
        self.runner = runner
        self._routers = moe_routers(runner.get_model())
        self._wanted: dict[str, tuple[np.ndarray | None, list[np.ndarray] | None]] = {}
        self._seen: dict[str, np.ndarray] = {}  # which tokens' experts have come
        self._step: dict[int, torch.Tensor] = {}
        for index, router in enumerate(self._routers):
            router.set_capture_fn(partial(self._step.__setitem__, index))
        runner.execute_model = self._around(runner.execute_model, after=self._keep_experts)
        sampler = runner.sampler.topk_topp_sampler
        sampler.forward = self._around(sampler.forward, after=self._keep_support)

    def expect(self, request: str, tokens: int, *, experts: bool, support: bool) -> None:
        """Collect for this request from now on; `tokens`: prompt and completion together, at most."""
        import numpy as np

        shape = (tokens, len(self._routers), self._routers[0].top_k) if self._routers else ()
        most = self._routers[0].global_num_experts if self._routers else 0
        rows = np.zeros(shape, np.uint8 if most <= 256 else np.uint16) if experts and self._routers else None
        if rows is not None:
            self._seen[request] = np.zeros(tokens, bool)
        if rows is not None or support:
            self._wanted[request] = (rows, [] if support else None)

    def take(self, request: str, tokens: int) -> "tuple[np.ndarray | None, list[np.ndarray] | None]":
        """(experts [tokens, L, K] of its first tokens, ids that could have been drawn for every token of the
        completion), and forget the request. Raises RuntimeError when the engine did not compute one of them."""
        rows, supports = self._wanted.pop(request, (None, None))
        seen = self._seen.pop(request, None)
        if rows is None or seen is None:
            return None, supports
        if not seen[:tokens].all():
            raise RuntimeError(f"vLLM never computed token {seen.argmin()} of a request whose experts were asked for")
        return rows[:tokens].copy(), supports

    def forget(self, request: str) -> None:
        self._wanted.pop(request, None)
        self._seen.pop(request, None)

    def _around(self, call: Callable, after: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            result = call(*args, **kwargs)
            if self._wanted:
                after(result, *args)
            return result

        return wrapped

    def _keep_experts(self, _, scheduled, *rest) -> None:
        import torch

        if not self._routers or not scheduled.total_num_scheduled_tokens:
            return
        chosen = torch.stack([self._step[i] for i in range(len(self._routers))], dim=1).numpy()
        row = 0
        for request in self.runner.input_batch.req_ids:
            count = scheduled.num_scheduled_tokens[request]
            rows, _ = self._wanted.get(request, (None, None))
            if rows is not None:
                start = self.runner.requests[request].num_computed_tokens
                read = min(count, len(rows) - start)  # drafts may go past the end; rejected ones are written again
                rows[start : start + read] = chosen[row : row + read]
                self._seen[request][start : start + read] = True
            row += count

    def _keep_support(self, result, *_) -> None:
        import torch

        _, logprobs = result
        discarded = self.runner.discard_request_mask.np
        for row, request in enumerate(self.runner.input_batch.req_ids):
            _, supports = self._wanted.get(request, (None, None))
            if supports is not None and not discarded[row]:
                supports.append(torch.nonzero(logprobs[row] > float("-inf"))[:, 0].to(torch.int32).numpy())


def moe_routers(model: "nn.Module") -> list[Any]:
    """The routers of all MoE layers, in layer order."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    layers = [module for module in model.modules() if isinstance(module, MoERunner)]
    return [layer.router for layer in sorted(layers, key=lambda layer: layer.layer_id)]

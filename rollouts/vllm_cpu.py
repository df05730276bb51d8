"""What vLLM must be told on CPUs. Imports nothing: it is read before vLLM is."""

from typing import Any


def environment() -> dict[str, str]:
    """Variables to set before vLLM is imported."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; vLLM's default is a share of all memory
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no process of its own for the worker: loads in half the time
    }


def engine_arguments() -> dict[str, Any]:
    """Arguments of the engine."""
    return {
        "dtype": "float32",
        "enforce_eager": True,
        # Without compilation vLLM takes its C++ kernel for RoPE, which is wrong for the queries of MLA.
        "compilation_config": {"custom_ops": ["all", "-rotary_embedding"]},
    }

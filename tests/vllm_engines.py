"""vLLM engines for tests, in this process. Never ended: that would take the process groups of the others along."""

import functools
import os
from typing import Any

import pytest

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
MOE = "recipes/tiny/base"
SMALL = {"kv_cache_memory_bytes": 64 << 20}


@functools.cache
def vllm_engine(checkpoint, *, max_slots: int = 256, dtype: str = "float32") -> Any:
    """A VLLMGenerator on CPU, shared by all tests that ask for the same: they leave its weights as they find them."""
    pytest.importorskip("vllm")
    from rollouts.vllm_generator import VLLMGenerator

    if checkpoint != MOE:  # the process groups of the first engine serve all: it must need those for experts
        vllm_engine(MOE)
    return VLLMGenerator(str(checkpoint), max_slots=max_slots, dtype=dtype, device="cpu", engine_args=SMALL)

"""Settings of generators that contradict each other are refused with a sentence."""

import pytest
from pydantic import ValidationError

from rollouts.config import GeneratorConfig


def test_shared_memory_is_for_replicas_on_one_device():
    said = r"shared_memory: the trainer's memory is on one device, and tensor_parallel 2 takes more; use collective"
    with pytest.raises(ValidationError, match=said):
        GeneratorConfig.model_validate({"engine": "vllm", "tensor_parallel": 2, "sync": {"transport": "shared_memory"}})

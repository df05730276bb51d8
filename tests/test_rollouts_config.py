"""Settings of generators that contradict each other are refused with a sentence."""

import pytest
from pydantic import ValidationError

from rollouts.config import GeneratorConfig

NGRAM = {"method": "ngram"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"drafting": NGRAM}, r"generator\.drafting is for engine vllm, and would be ignored by transformers"),
        ({"engine": "vllm", "drafting": {"method": "mtp"}}, "Input should be 'ngram'"),
        ({"engine": "vllm", "drafting": NGRAM | {"longest": 1, "shortest": 2}}, r"shortest \(2\) is more than longest"),
        (
            {"engine": "vllm", "tensor_parallel": 2, "sync": {"transport": "shared_memory"}},
            r"shared_memory: the trainer's memory is on one device, and tensor_parallel 2 takes more; use collective",
        ),
    ],
)
def test_contradictions_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        GeneratorConfig.model_validate(settings)


def test_drafting_reaches_the_engine():
    config = GeneratorConfig.model_validate({"engine": "vllm", "drafting": NGRAM})
    assert config.replica_settings()["drafting"].tokens == 2

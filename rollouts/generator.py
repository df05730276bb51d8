"""The protocol of everything that samples. Two implementations: transformers (embedded) and vLLM."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from rollouts.records import Group, Request, SamplingParams


class Generator(Protocol):
    """Holds one copy of the policy and samples from it."""

    policy_version: int

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """One group per request, in the order given. Deterministic in (weights, requests, params)."""
        ...

    def load_weights(self, tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]], version: int) -> None:
        """Replace the policy's weights by Hugging Face names. All or nothing; then `policy_version` is `version`."""
        ...

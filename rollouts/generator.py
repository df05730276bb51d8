"""The protocol of everything that samples. Two implementations: transformers (embedded) and vLLM."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from rollouts.records import Group, Request, SamplingParams


class Generator(Protocol):
    """Holds one copy of the policy and samples from it."""

    policy_version: int

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Group]:
        """One group per request, each as soon as it is complete. Deterministic in (weights, requests, params)."""
        ...

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """`stream`, collected, in the order of the requests."""
        ...

    def ready(self) -> bool:
        """Answers when it can sample: tells a dead replica from one that is still loading."""
        ...

    def load_weights(self, tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]], version: int) -> None:
        """Replace the policy's weights by Hugging Face names. All or nothing; then `policy_version` is `version`."""
        ...

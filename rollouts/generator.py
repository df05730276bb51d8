"""The protocol of everything that samples. Two implementations: transformers (embedded) and vLLM."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from rollouts.records import Group, Request, SamplingParams
from rollouts.weight_sync import Parcel


class Generator(Protocol):
    """Holds one copy of the policy and samples from it."""

    policy_version: int | None  # None while an update of the weights is under way

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, version: int | None = None
    ) -> Iterator[Group]:
        """One group per request, each as soon as it is complete. Deterministic in (weights, requests, params).

        Optional requests are sampled beside the others. When the others' groups are whole they are interrupted, and
        their groups come as they are, to be continued by a later call (Request.begun), with other weights perhaps.

        Raises ValueError, before any work, for a prompt that leaves no room to answer or two requests with one key;
        WrongWeights when the policy held is not `version` (None: any whole one).
        """
        ...

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """`stream`, collected, in the order of the requests."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logprobs, float32 [T - 1], of every token of each sequence but its first, at temperature 1."""
        ...

    def context(self) -> int:
        """Tokens of prompt and completion together that it takes, which may be fewer than the model would."""
        ...

    # Weights, see rollouts.weight_sync.WeightReceiver. Nothing is changed when `begin_update` raises.

    def device_type(self) -> str: ...

    def engine_processes(self) -> int: ...

    def host(self) -> str: ...

    def begin_update(self, shapes: Mapping[str, tuple[int, ...]]) -> None: ...

    def update(self, parcel: Parcel, rank: int = 1) -> None: ...

    def held_checksums(self) -> dict[str, str] | None: ...

    def finish_update(self, version: int) -> None: ...

    def load_files(self, folder: str, version: int) -> None: ...

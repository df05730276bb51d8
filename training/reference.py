"""The reference policy of a KL term: what the policy was, to be read and now and then replaced by what it is.

Where all weights are trained it is a copy of the model. Where adapters are, the model is the same, and a copy of these
is enough: they change places while the reference is read.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from training.ema import holding
from training.policy import Policy


class Reference(Protocol):
    def refresh(self) -> None:
        """Become what the policy is now."""
        ...

    def policy(self) -> AbstractContextManager[Policy]:
        """The reference, as long as this is open; the policy itself must not be used then."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Itself, by name: the tensors, into which a saved state can be read."""
        ...


class FrozenCopy:
    """`copy` follows `original`, another policy over the same checkpoint."""

    def __init__(self, original: Policy, copy: Policy) -> None:
        self._original, self._copy = original, copy

    def refresh(self) -> None:
        self._copy.model.load_state_dict(self._original.model.state_dict())

    def policy(self) -> AbstractContextManager[Policy]:
        return nullcontext(self._copy)

    def state_dict(self) -> dict[str, Tensor]:
        return self._copy.state_dict()


class FrozenAdapters:
    """The adapters that `original`, whose other weights do not change, has now."""

    def __init__(self, original: Policy) -> None:
        self._original = original
        self._live: dict[str, nn.Parameter] = {n: p for n, p in original.named_parameters() if p.requires_grad}
        self._then = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        for name, value in self._then.items():
            value.copy_(self._live[name])

    @contextmanager
    def policy(self) -> Iterator[Policy]:
        with holding(self._live, self._then):
            yield self._original

    def state_dict(self) -> dict[str, Tensor]:
        return self._then

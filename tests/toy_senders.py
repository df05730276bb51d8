"""A trainer's end of weight sync without a trainer, and generators that die in the middle of an update."""

import os
from contextlib import contextmanager
from pathlib import Path

import torch

from models.checkpoint import load_model
from models.weight_names import hub_views
from rollouts.transformers_generator import TransformersGenerator
from rollouts.vllm_generator import VLLMGenerator
from rollouts.weight_sender import WeightSender

DIE = "die_in_update"  # a file in the checkpoint's folder: the first replica that finds it dies


class Sender(WeightSender):
    """Sends the weights of a checkpoint, changed by `change`."""

    def __init__(self, checkpoint: str):
        self.device = torch.device("cpu")
        self.loaded = {name: tensor.clone() for name, tensor in hub_views(load_model(checkpoint)).items()}
        self.sent = self.loaded

    def weights(self):
        return iter(self.sent.items())

    def change(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.sent = {
            name: tensor * (1 + 0.2 * torch.randn(tensor.shape, generator=rng)) if tensor.ndim > 1 else tensor
            for name, tensor in self.loaded.items()
        }

    def spoil(self, value: float | None) -> None:
        """Put `value` into a matrix."""
        self.sent["model.layers.0.self_attn.o_proj.weight"][3, 5] = value

    def flip_a_byte(self) -> None:
        """From now on, one of every bucket, after its checksums are taken."""
        from rollouts import buckets

        honest = buckets._bucket

        def flipping(*args):
            bucket = honest(*args)
            bucket.data[bucket.entries[0].start] ^= 1
            return bucket

        buckets._bucket = flipping

    def mapped(self) -> int:
        return mapped()


def mapped() -> int:
    """Buckets in shared memory that this process maps or holds open."""
    held = [
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    ]
    return sum("r1-weights" in line for line in [*held, *Path("/proc/self/maps").read_text().splitlines()])


class _Mortal:
    def __init__(self, checkpoint: str, **settings):
        super().__init__(checkpoint, **settings)
        self.trigger = Path(checkpoint) / DIE

    def version(self) -> int | None:
        return self.policy_version  # type: ignore[attr-defined]

    def process_id(self) -> int:
        return os.getpid()

    def mapped(self) -> int:
        return mapped()

    def _take(self, parcel, rank):
        super()._take(_Deadly(parcel, self.trigger), rank)  # type: ignore[misc]


class _Deadly:
    """A parcel whose reader dies at its fourth tensor, if it finds the trigger."""

    def __init__(self, parcel, trigger: Path):
        self.parcel, self.trigger = parcel, trigger

    def names(self):
        return self.parcel.names()

    @contextmanager
    def open(self, rank, device):
        with self.parcel.open(rank, device) as tensors:
            yield self._counted(tensors)

    def _counted(self, tensors):
        for number, named in enumerate(tensors):
            if number == 3 and self._pulled():
                os._exit(1)
            yield named

    def _pulled(self) -> bool:
        try:
            self.trigger.unlink()
        except FileNotFoundError:
            return False
        return True


class MortalTransformers(_Mortal, TransformersGenerator):
    pass


class MortalVLLM(_Mortal, VLLMGenerator):
    pass

"""The ranks of a trainer as one actor, for drivers that import no torch.

    trainer = spawn_trainer("rl.trainer:PolicyTrainer", config.trainer, checkpoint, optimizer, objective=...)
    wait(trainer.refresh_reference.remote(), ...)                  every rank does it; the answer is rank 0's
    wait(trainer.annotate.each(PerRank(shares)), ...)              every rank with its own share; the list of answers
    trainer.next_parcel.options(num_returns=2).remote()            rank 0's two answers; the others take part unseen

With a single rank there is no process group, and calls are those of the one actor. The ranks of a pipeline, or of a
context, have the same rows and give the same answers; the first of each, one for every data rank, come first and speak
for the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cluster.actors import Handle, Joint, StartFailed, count_gpus, kill, spawn
from data.packing import deal
from training.config import TrainerConfig

Item = TypeVar("Item")
# Settings that its constructor takes.
_OF_TRAINER = ("device", "mesh", "precision", "fp8", "recompute", "drop_mtp", "lora")


@dataclass(frozen=True, slots=True)
class PerRank:
    """An argument that differs from rank to rank, or from pipeline to pipeline."""

    values: Sequence[Any]


def _of_rank(args: Sequence[Any], rank: int) -> list[Any]:
    return [arg.values[rank % len(arg.values)] if isinstance(arg, PerRank) else arg for arg in args]


@dataclass(frozen=True, slots=True)
class _GroupMethod:
    """`group.method`, to be called with `remote(...)` as on Ray's handles, or with `each(...)`."""

    ranks: Sequence[Handle]
    answers: int  # of the first so many ranks, by `each`
    name: str
    settings: Mapping[str, Any]

    def options(self, **settings: Any) -> "_GroupMethod":
        return replace(self, settings={**self.settings, **settings})

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of rank 0, which is about all ranks."""
        if len(self.ranks) == 1:
            return self._alone(args, kwargs)
        if self.settings:  # several returns: those of rank 0, while the others take part unseen
            return self._led(args, kwargs)
        return Joint(self._on_all(args, kwargs))

    def each(self, *args: Any, **kwargs: Any) -> Joint:
        """The answers of all ranks with rows of their own, in their order."""
        alone = len(self.ranks) == 1
        return Joint([self._alone(args, kwargs)] if alone else self._on_all(args, kwargs), listed=self.answers)

    def _alone(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        method = getattr(self.ranks[0], self.name).options(**self.settings)
        return method.remote(*_of_rank(args, 0), **kwargs)

    def _on_all(self, args: Sequence[Any], kwargs: Mapping[str, Any], first: int = 0) -> list[Any]:
        return [
            self.ranks[rank].call.remote(self.name, *_of_rank(args, rank), **kwargs)
            for rank in range(first, len(self.ranks))
        ]

    def _led(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self._on_all(args, kwargs, first=1)
        answers = self.ranks[0].call.options(**self.settings)
        return answers.remote(self.name, *_of_rank(args, 0), **kwargs)


class TrainerGroup:
    """A handle to all ranks: methods of the trainer are its attributes."""

    def __init__(self, ranks: Sequence[Handle], data: int = 1):
        self._ranks, self._data = ranks, data

    def __getattr__(self, method: str) -> _GroupMethod:
        if method.startswith("_"):
            raise AttributeError(method)
        return _GroupMethod(self._ranks, self._data, method, {})

    def shares(self, items: Sequence[Item], length: Callable[[Item], int]) -> list[list[int]]:
        """Which of `items` each data rank gets: about as many, about as long in all (data.packing.deal), in their
        order."""
        return [sorted(share) for share in deal([length(item) for item in items], self._data)]

    def dealt(self, items: Sequence[Item], length: Callable[[Item], int]) -> PerRank:
        return PerRank([[items[i] for i in share] for share in self.shares(items, length)])

    def stop(self) -> None:
        for rank in self._ranks:
            kill(rank)


def put_back(shares: Sequence[Sequence[int]], parts: Sequence[Sequence[Item]]) -> list[Item]:
    """The answers about all items, in the order in which these were before they were dealt into `shares`."""
    pairs = [pair for share, part in zip(shares, parts, strict=True) for pair in zip(share, part, strict=True)]
    return [item for _, item in sorted(pairs, key=lambda pair: pair[0])]


def spawn_trainer(target: str, settings: TrainerConfig, *args: Any, **kwargs: Any) -> TrainerGroup:
    """Start `target(*args, **kwargs)`, a training.trainer.Trainer by its import path, on every rank of the mesh.

    Nothing is waited for: the first answer comes when all ranks have met and have built their trainer. Raises
    StartFailed when the cluster has GPUs, but fewer than ranks.
    """
    kwargs |= {name: getattr(settings, name) for name in _OF_TRAINER}
    size = settings.mesh.ranks
    if size == 1:
        return TrainerGroup([spawn(target, *args, threads=settings.threads, role="trainer", **kwargs)])
    gpus = _gpus_per_rank(settings.device, size)
    ranks = [
        spawn(
            "training.rank:Rank",
            rank,
            size,
            settings.deadline_s,
            threads=settings.threads,
            gpus=gpus,
            role="trainer",
            place=rank,
        )
        for rank in range(size)
    ]
    address = ranks[0].listen.remote()
    for rank in ranks:
        rank.build.remote(address, target, args, kwargs)
    return TrainerGroup(ranks, settings.mesh.data)


def _gpus_per_rank(device: str, ranks: int) -> int:
    """1 where ranks train on GPUs, of which each needs its own; Ray then shows it that one alone."""
    found = 0 if device == "cpu" else count_gpus()
    if device == "cuda" or found:
        if found < ranks:
            raise StartFailed(
                f"a mesh of {ranks} ranks needs as many GPUs, and the cluster has {found}: set trainer.mesh to "
                f"{found or 1} ranks, or trainer.device to cpu"
            )
        return 1
    return 0

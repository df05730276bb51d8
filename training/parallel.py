"""The ranks of one policy: process groups, sharded weights (FSDP2), and what they tell each other.

Every data rank runs its own rows through all layers. Weights, gradients and optimizer state are sharded over these; a
layer is gathered when its turn comes and given back after it. With context parallel (training.context) several ranks
have the tokens of its rows, and weights are sharded over all of them. With a pipeline (training.pipeline) several
ranks stand in place of each: they share its rows, and each has layers of its own. Losses carry the denominators of the
whole batch, so gradients are *summed* over ranks, never averaged. With expert parallel the experts of a layer stay
where they are and tokens travel (models.experts); these ranks are the data ranks, as in torchtitan. Dense and expert
weights then live on different meshes, and yet no two ranks hold the same piece of a weight: training.gradients rests on
that.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from models.indexer import awake
from models.late_weights import fill
from training.context import ContextGroup
from training.mesh import MeshConfig
from training.policy import Policy
from training.process_group import deadline, join

Precision = Literal["float32", "bfloat16", "fp8"]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train one policy, and this one's place among them."""

    rank: int = 0
    size: int = 1
    rounds: bool = False  # whether weights are gathered and multiplied in bfloat16
    shards: DeviceMesh | None = None  # those with the same layers, over which weights are sharded; None: they are not
    data: DeviceMesh | None = None  # of these, those with other rows
    context: ContextGroup | None = None  # of these, those with the same rows; None: rows are whole
    expert: DeviceMesh | None = None  # those that hold different experts; None: experts are sharded as all weights are
    expert_data: DeviceMesh | None = None  # those that hold pieces of the same experts
    pipeline: DeviceMesh | None = None  # those with the same rows and other layers; None: all layers are here

    @classmethod
    def of(cls, mesh: MeshConfig, device: torch.device, precision: Precision) -> "Ranks":
        """Raises ValueError when this process does not belong to a group of as many ranks as the mesh has."""
        rounds = precision == "bfloat16" or (precision == "fp8" and device.type == "cuda")
        if mesh.ranks == 1 and not rounds:
            return cls()
        if mesh.ranks == 1 and not dist.is_initialized():
            join(HashStore(), 0, 1, device.type, deadline_s=60)
        found = dist.get_world_size() if dist.is_initialized() else 1
        if found != mesh.ranks:
            raise ValueError(
                f"a mesh of {mesh.ranks} ranks in a group of {found}: start ranks with training.group.spawn_trainer"
            )
        places = _make_mesh(device, pipeline=mesh.pipeline, context=mesh.context, data=mesh.data)
        one = mesh.context == 1
        shards = places["data"] if one else _make_mesh(device, pipeline=mesh.pipeline, shards=mesh.shards)["shards"]
        ranks = cls(
            dist.get_rank(),
            found,
            rounds,
            shards=shards if mesh.shards > 1 or rounds else None,
            data=places["data"] if mesh.data > 1 else None,
            context=_context(places["context"]) if mesh.context > 1 else None,
            pipeline=places["pipeline"] if mesh.pipeline > 1 else None,
        )
        if mesh.expert == 1:
            return ranks
        rest = mesh.shards // mesh.expert
        places = _make_mesh(device, pipeline=mesh.pipeline, expert_data=rest, expert=mesh.expert)
        return replace(ranks, expert=places["expert"], expert_data=places["expert_data"])

    @property
    def in_pieces(self) -> bool:
        """Whether this process lacks some of the weights, or has them in the form that FSDP2 gives them."""
        return self.shards is not None or self.pipeline is not None

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks that have rows of their own, in their order, on every rank. Anything that can be
        pickled. Ranks of one pipeline share their rows, and should have the same value."""
        return _gather(value, self.data)

    def along_pipeline(self, value: Value) -> list[Value]:
        """The values of the ranks that hold the other layers of its rows, in the order of the pipeline, on each."""
        return _gather(value, self.pipeline)

    def along_context(self, value: Value) -> list[Value]:
        """The values of the ranks that have the other tokens of its rows, in their order, on each of them."""
        return _gather(value, self.context)

    def everywhere(self, value: Value) -> list[Value]:
        """The values of all ranks: of all rows, tokens of these and layers."""
        found = [value]
        for gather in (self.along_context, self.along_pipeline, self.gather):
            found = [one for part in gather(found) for one in part]
        return found

    def add_up(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over `gather`; the ranks have the same keys."""
        shares = self.gather(values)
        return {key: sum(share[key] for share in shares) for key in values}

    def bring(self, tensor: torch.Tensor | None, like: torch.Tensor, source: int) -> torch.Tensor | None:
        """To the first rank of a pipeline, from the one at `source`, where it is whole. Of several pipelines the first
        alone brings it. like: what shape and dtype it has, on every rank."""
        assert self.pipeline is not None
        if source == 0 or (self.shards is not None and self.shards.get_local_rank() > 0):
            return tensor
        group, place = self.pipeline.get_group(), self.pipeline.get_local_rank()
        if place == source:
            assert tensor is not None
            dist.send(tensor.contiguous(), group=group, group_dst=0)
        if place == 0:
            tensor = torch.empty_like(like, device=self.pipeline.device_type)
            dist.recv(tensor, group=group, group_src=source)
        return tensor

    def expert_shares(self, weight: torch.Tensor) -> Iterator[torch.Tensor]:
        """The experts of each rank of `expert` in turn, on rank 0 (of a pipeline: on that of its layers), so that a
        device has those of one rank beside its own at most. Every rank must ask; others are given their own."""
        assert self.expert is not None and self.expert_data is not None and isinstance(weight, DTensor)
        names = weight.device_mesh.mesh_dim_names or ()
        own = weight.redistribute(
            placements=[Shard(0) if name == "expert" else Replicate() for name in names]
        ).to_local()
        group, place = self.expert.get_group(), self.expert.get_local_rank()
        for source in range(self.expert.size()):
            share = own
            if source and self.expert_data.get_local_rank() == 0:
                if place == source:
                    dist.send(own.contiguous(), group=group, group_dst=0)
                if place == 0:
                    share = torch.empty_like(own)
                    dist.recv(share, group=group, group_src=source)
            yield share

    def barrier(self) -> None:
        """Of all ranks."""
        if self.size > 1:
            dist.all_gather_object([None] * self.size, None)


def _gather(value: Value, ranks: DeviceMesh | ContextGroup | None) -> list[Value]:
    if ranks is None:
        return [value]
    group = ranks.group if isinstance(ranks, ContextGroup) else ranks.get_group()
    values: list[Any] = [value] * group.size()
    if len(values) > 1:
        dist.all_gather_object(values, value, group=group)
    return values


def _context(mesh: DeviceMesh) -> ContextGroup:
    return ContextGroup(mesh.get_group(), mesh.get_local_rank(), mesh.size())


def _make_mesh(device: torch.device, **sizes: int) -> DeviceMesh:
    """All ranks in a mesh of these dimensions. Their groups wait as long as that of all ranks does."""
    mesh = init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    for group in mesh.get_all_groups():
        _set_pg_timeout(deadline(), group)
    return mesh


def shard(policy: Policy, ranks: Ranks) -> None:
    """Leave every rank its piece of each weight, in place. A no-op for a single process that does not round.

    With rounding: float32 pieces, gathered and multiplied in bfloat16, gradients summed in float32. Weights that have
    not been read yet (models.late_weights) are, a layer at a time: a rank has one whole layer at most.
    """
    if ranks.shards is None:
        return fill(policy.model, policy.model)
    rounding = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policies: dict[str, Any] = {"mp_policy": rounding} if ranks.rounds else {}
    for block in policy.blocks():
        fill(policy.model, block)
        if ranks.expert is not None and (experts := routed_experts(block)) is not None:
            _split_experts(experts, ranks.expert)
            fully_shard(experts, mesh=ranks.expert_data, shard_placement_fn=lambda p: Shard(1), **policies)
        for indexer in awake(block):  # apart: its loss reaches it beside the outputs of its layer
            fully_shard(indexer, mesh=ranks.shards, **policies)
        fully_shard(block, mesh=ranks.shards, **policies)
    fill(policy.model, policy.model)
    # The root's weights are given back after forward, too: an optimizer step would leave gathered ones behind.
    fully_shard(policy, mesh=ranks.shards, reshard_after_forward=True, **policies)
    if ranks.pipeline is not None:  # training.pipeline gives them back
        cast(FSDPModule, policy).set_reshard_after_forward(False)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums


def routed_experts(block: nn.Module) -> nn.Module | None:
    """The module of a decoder layer that holds its routed experts, if it has any."""
    experts = getattr(getattr(block, "mlp", None), "experts", None)
    return experts if isinstance(experts, nn.Module) else None


def _split_experts(experts: nn.Module, mesh: DeviceMesh) -> None:
    """Each rank keeps its own share of what all have read: no device holds all experts of a layer."""
    device, place = torch.device(mesh.device_type), mesh.get_local_rank()
    for name, parameter in list(experts.named_parameters(recurse=False)):
        share = parameter.detach().chunk(mesh.size())[place].to(device, copy=True)
        piece = DTensor.from_local(share, mesh, [Shard(0)])
        setattr(experts, name, nn.Parameter(piece, requires_grad=parameter.requires_grad))
    experts.expert_group = mesh.get_group()  # pyright: ignore[reportArgumentType] models.experts looks for it


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A weight in one piece. Where it is sharded, every rank must ask, and every rank gets it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

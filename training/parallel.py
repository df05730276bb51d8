"""The ranks of one policy: process groups, sharded weights (FSDP2), and what they tell each other.

Every rank runs its own rows through all layers. Weights, gradients and optimizer state are sharded over all ranks; a
layer is gathered when its turn comes and given back after it. Losses carry the denominators of the whole batch, so
gradients are *summed* over ranks, never averaged. With expert parallel the experts of a layer stay where they are and
tokens travel (models.experts); these ranks are the same ones, as in torchtitan. Dense and expert weights then live on
different meshes, and yet every rank holds a piece of its own of every weight: training.gradients rests on that.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from models.indexer import awake
from training.mesh import MeshConfig
from training.policy import Policy
from training.process_group import join

Precision = Literal["float32", "bfloat16", "fp8"]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train one policy, and this one's place among them."""

    rank: int = 0
    size: int = 1
    rounds: bool = False  # whether weights are gathered and multiplied in bfloat16
    data: DeviceMesh | None = None  # all ranks; None: one process that shards nothing
    expert: DeviceMesh | None = None  # those that hold different experts; None: experts are sharded as all weights are
    expert_data: DeviceMesh | None = None  # those that hold pieces of the same experts

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
        data = init_device_mesh(device.type, (mesh.ranks,), mesh_dim_names=("data",))
        if mesh.expert == 1:
            return cls(dist.get_rank(), found, rounds, data)
        shape = (mesh.data // mesh.expert, mesh.expert)
        both = init_device_mesh(device.type, shape, mesh_dim_names=("expert_data", "expert"))
        return cls(dist.get_rank(), found, rounds, data, both["expert"], both["expert_data"])

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order, on every rank. Anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def add_up(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over all ranks, which have the same keys."""
        shares = self.gather(values)
        return {key: sum(share[key] for share in shares) for key in values}

    def barrier(self) -> None:
        self.gather(None)


def shard(policy: Policy, ranks: Ranks) -> None:
    """Leave every rank its piece of each weight, in place. A no-op for a single process that does not round.

    With rounding: float32 pieces, gathered and multiplied in bfloat16, gradients summed in float32.
    """
    if ranks.data is None:
        return
    rounding = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policies: dict[str, Any] = {"mp_policy": rounding} if ranks.rounds else {}
    for block in policy.blocks():
        if ranks.expert is not None and (experts := routed_experts(block)) is not None:
            _split_experts(experts, ranks.expert)
            fully_shard(experts, mesh=ranks.expert_data, shard_placement_fn=lambda p: Shard(1), **policies)
        for indexer in awake(block):  # apart: its loss reaches it beside the outputs of its layer
            fully_shard(indexer, mesh=ranks.data, **policies)
        fully_shard(block, mesh=ranks.data, **policies)
    # The root's weights are given back after forward, too: an optimizer step would leave gathered ones behind.
    fully_shard(policy, mesh=ranks.data, reshard_after_forward=True, **policies)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums


def routed_experts(block: nn.Module) -> nn.Module | None:
    """The module of a decoder layer that holds its routed experts, if it has any."""
    experts = getattr(getattr(block, "mlp", None), "experts", None)
    return experts if isinstance(experts, nn.Module) else None


def _split_experts(experts: nn.Module, mesh: DeviceMesh) -> None:
    for name, parameter in list(experts.named_parameters(recurse=False)):
        piece = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
        setattr(experts, name, nn.Parameter(piece, requires_grad=parameter.requires_grad))
    experts.expert_group = mesh.get_group()  # pyright: ignore[reportArgumentType] models.experts looks for it


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A weight in one piece. Where it is sharded, every rank must ask, and every rank gets it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

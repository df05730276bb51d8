"""Bundles of cores and GPUs for the roles of a stage, reserved before anything is loaded (Ray's placement groups).

While they are held, `cluster.actors.spawn` starts every actor with a role in a bundle of that role. A bundle lies on
one node, so the GPUs of a generator, or its part of a node where it has several, are neighbours.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.running import RunningStage, StageStopped

Strategy = Literal["PACK", "SPREAD"]
_SHOWN_NODES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBundles:
    """`count` equal bundles of one role."""

    role: str
    count: int
    bundle: Mapping[str, float]  # Ray's names of resources: CPU, GPU
    strategy: Strategy
    shown_all_gpus: bool = False  # the actor sees the GPUs of its node, and not only its part of the bundle

    def __str__(self) -> str:
        return f"{self.role}: {self.count} x {_amounts(self.bundle)} ({self.strategy})"


@dataclass(frozen=True, slots=True)
class Places:
    """The bundles of one role, as they were found."""

    group: PlacementGroup
    role: RoleBundles
    order: Sequence[int]  # numbers of the bundles, those of a node in a row: neighbouring ranks are on one node

    def wait_until_there(self, stage: RunningStage | None) -> None:
        """A node that has left takes bundles along, and Ray finds others for them. Raises StageStopped if it finds
        none within the deadline. Without a stage, whoever asks the actor has the deadline."""
        if stage is None:
            return
        end = time.monotonic() + stage.config.placement_deadline_s
        while not self.group.wait(1):  # Ray counts whole seconds, and comes back at once from a group that is there
            if stage.stop or time.monotonic() >= end:
                raise StageStopped(stage.stop or _not_there([self.role], stage.config.placement_deadline_s))

    def options(self, index: int | None) -> dict[str, Any]:
        """Ray's options for the actor in place `index`; None takes any that is free."""
        bundle = -1 if index is None else self.order[index]
        return {
            "num_cpus": self.role.bundle.get("CPU", 0),
            "num_gpus": 0 if self.role.shown_all_gpus else self.role.bundle.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The nodes of one engine: how many, and where; the first is that of the actor with the engine."""

    nodes: int
    places: Places | None  # bundles of its role, where there are any
    first: int  # its own among these; those of its members follow
    shared_gpus: int  # see cluster.actors.spawn
    threads: int = 1


@contextmanager
def reserved(stage: RunningStage, roles: Sequence[RoleBundles]) -> Iterator[None]:
    """Hold the bundles while inside. Raises StageStopped when the cluster does not give them within the deadline."""
    groups: list[PlacementGroup] = []
    try:
        for role in roles:
            groups.append(placement_group([dict(role.bundle)] * role.count, strategy=role.strategy))
        end = time.monotonic() + stage.config.placement_deadline_s
        for group in groups:
            if not group.wait(max(0.0, end - time.monotonic())):
                raise StageStopped(_not_there(roles, stage.config.placement_deadline_s))
        pairs = zip(roles, groups, strict=True)
        stage.places = {role.role: Places(group, role, _by_node(group)) for role, group in pairs}
        yield
    finally:
        stage.places = {}
        for group in groups:
            remove_placement_group(group)


def _by_node(group: PlacementGroup) -> list[int]:
    """Ray fills nodes in any order, and ranks that exchange most should be neighbours."""
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return sorted(nodes, key=lambda bundle: (nodes[bundle], bundle))


def _not_there(roles: Sequence[RoleBundles], deadline_s: float) -> str:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    listed = "; ".join(_amounts(node) for node in nodes[:_SHOWN_NODES])
    more = f" and {len(nodes) - _SHOWN_NODES} more" if len(nodes) > _SHOWN_NODES else ""
    too_large = [role.role for role in roles if not any(_fits(role.bundle, node) for node in nodes)]
    why = f"; no node is large enough for one bundle of {' and '.join(too_large)}" if too_large else ""
    free = _amounts(ray.available_resources())
    return (
        f"the cluster did not give the bundles that the stage asks for within {deadline_s:.0f} s: "
        f"{'; '.join(map(str, roles))}; it has {len(nodes)} nodes ({listed}{more}), of which {free} is free{why}; "
        "add nodes, let the stage ask for less (trainer.mesh, replicas and tensor_parallel of generator, judges or "
        "judge, reward_workers.workers, cluster.cpus_per_...), or set cluster.placement to colocated, where they share "
        "devices"
    )


def _fits(bundle: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in bundle.items())


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {resources.get(name, 0):g}" for name in ("CPU", "GPU") if name in resources) or "nothing"

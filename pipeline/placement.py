"""Which bundles a stage asks for, from its settings alone (see cluster.placement).

*Colocated* on one machine asks for nothing: processes take turns on the same devices. Colocated on several nodes asks
for traces of cores and parts of GPUs: they put one rank on each GPU, spread the generators evenly, and keep nobody out.
*Disaggregated* gives every role devices of its own.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from cluster.config import ClusterConfig
from cluster.running import RunningStage
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from cluster.placement import RoleBundles

_TRACE = 0.01  # of a core: an actor takes all of it, so a bundle holds one actor; Ray refuses bundles of nothing
_RANK_GPU, _GENERATOR_GPU = 0.9, 0.05  # of a GPU where roles share it: two ranks never fit on one, and both roles do


def placed(stage: RunningStage, config: Any) -> AbstractContextManager[None]:
    """The bundles of a stage with these settings, where it asks for any. `config`: the stage's own.

    Raises RecipeError for roles that would be at work on one GPU at the same time.
    """
    from cluster.actors import count_gpus, count_nodes, start_ray
    from cluster.placement import reserved

    if getattr(config, "max_staleness", 0):
        start_ray()
        check_turns(config, stage.config, gpus=count_gpus() > 0)
    if stage.config.placement == "colocated" and "RAY_ADDRESS" not in os.environ:
        return nullcontext()
    start_ray()
    if stage.config.placement == "colocated" and count_nodes() == 1:
        return nullcontext()
    roles = list(bundles(config, stage.config, gpus=count_gpus() > 0))
    return reserved(stage, roles) if roles else nullcontext()


def check_turns(config: Any, cluster: ClusterConfig, gpus: bool) -> None:
    """Colocated roles take turns on a GPU; rollouts that run ahead of the trainer do not wait for theirs."""
    both = gpus and "cpu" not in (config.trainer.device, config.generator.device)
    if both and config.max_staleness and cluster.placement == "colocated":
        raise RecipeError(
            f"max_staleness {config.max_staleness} samples while the trainer trains, and cluster.placement colocated "
            "puts both on the same GPUs; set cluster.placement: disaggregated, or max_staleness: 0"
        )


def bundles(config: Any, cluster: ClusterConfig, gpus: bool) -> Iterator["RoleBundles"]:
    """The bundles of a stage's trainer ranks, generators and reward workers, as far as it has them.

    gpus: whether the cluster has any; then a rank takes one, and a generator as many as it splits its layers over.
    """
    from cluster.placement import RoleBundles

    shared = cluster.placement == "colocated"
    trainer, generator = getattr(config, "trainer", None), getattr(config, "generator", None)
    workers = getattr(config, "reward_workers", None)
    if trainer is not None:
        gpu = (_RANK_GPU if shared else 1) * (gpus and trainer.device != "cpu")
        bundle = _bundle(0 if shared else cluster.cpus_per_trainer, gpu)
        yield RoleBundles(role="trainer", count=trainer.mesh.ranks, bundle=bundle, strategy="PACK")
    if generator is not None and not getattr(config, "sample_in_trainer", False):
        gpu = (_GENERATOR_GPU if shared else generator.tensor_parallel) * (gpus and generator.device != "cpu")
        yield RoleBundles(
            role="generator",
            count=generator.replicas,
            bundle=_bundle(0 if shared else cluster.cpus_per_generator, gpu),
            strategy="SPREAD" if shared else "PACK",
            shown_all_gpus=shared,
        )
    if workers is not None:
        bundle = _bundle(0 if shared else cluster.cpus_per_reward_worker, 0)
        yield RoleBundles(role="reward", count=workers.workers, bundle=bundle, strategy="SPREAD")


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": float(cpus) or _TRACE} | ({"GPU": float(gpus)} if gpus else {})

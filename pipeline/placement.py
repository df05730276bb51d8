"""Which bundles a stage asks for, from its settings alone (see cluster.placement).

*Colocated* on one machine asks for nothing: processes take turns on the same devices. Colocated on several nodes asks
for traces of cores and parts of GPUs: they put one rank on each GPU, spread the generators evenly, and keep nobody out.
*Disaggregated* gives every role devices of its own.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from cluster.config import ClusterConfig
from cluster.running import RunningStage
from data.config import JUDGE_ROLES
from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from cluster.placement import RoleBundles
    from rewards.preference import PreferenceOptions
    from rollouts.config import GeneratorConfig

_SHOWN_NODES = 8
_TRACE = 0.01  # of a core: an actor takes all of it, so a bundle holds one actor; Ray refuses bundles of nothing
_RANK_GPU, _MODEL_GPU = 0.9, 0.01  # of a GPU where roles share it: two ranks never fit on one, and all others do


def placed(stage: RunningStage, config: Any, inputs: Collection[str]) -> AbstractContextManager[None]:
    """The bundles of a stage with these settings, where it asks for any. `config`, `inputs`: the stage's own.

    Raises RecipeError for roles, or parts of an engine, that would be at work on one GPU at the same time.
    """
    from cluster.actors import count_gpus, count_nodes, start_ray
    from cluster.placement import reserved

    if getattr(config, "max_staleness", 0):
        start_ray()
        check_turns(config, stage.config, gpus=count_gpus() > 0)
    check_nodes(config, inputs)
    if stage.config.placement == "colocated" and "RAY_ADDRESS" not in os.environ:
        return nullcontext()
    start_ray()
    if stage.config.placement == "colocated" and count_nodes() == 1:
        return nullcontext()
    roles = list(bundles(config, stage.config, gpus=count_gpus() > 0, inputs=inputs))
    return reserved(stage, roles) if roles else nullcontext()


def check_turns(config: Any, cluster: ClusterConfig, gpus: bool) -> None:
    """Colocated roles take turns on a GPU; rollouts that run ahead of the trainer do not wait for theirs."""
    both = gpus and "cpu" not in (config.trainer.device, config.generator.device)
    if both and config.max_staleness and cluster.placement == "colocated":
        raise RecipeError(
            f"max_staleness {config.max_staleness} samples while the trainer trains, and cluster.placement colocated "
            "puts both on the same GPUs; set cluster.placement: disaggregated, or max_staleness: 0"
        )


def check_nodes(config: Any, inputs: Collection[str]) -> None:
    """Raises RecipeError for an engine over nodes whose parts would meet on a GPU. Starts Ray if there is any such."""
    from cluster.actors import gpus_of_nodes, start_ray

    for key, generator in _engines(config, inputs):
        if generator.nodes == 1 or generator.device == "cpu":
            continue
        start_ray()
        part, there = generator.tensor_parallel // generator.nodes, gpus_of_nodes()
        if there and sum(gpus // part for gpus in there) < generator.nodes:
            raise RecipeError(
                f"{key}.nodes {generator.nodes} of {part} GPUs each (tensor_parallel {generator.tensor_parallel}) are "
                f"more than the cluster has: {len(there)} nodes with {', '.join(map(str, there[:_SHOWN_NODES]))} GPUs"
            )


def bundles(config: Any, cluster: ClusterConfig, gpus: bool, inputs: Collection[str] = ()) -> Iterator["RoleBundles"]:
    """The bundles of a stage's trainer ranks, generators, reward workers and of the models among its `inputs` that
    judge or teach, as far as it has them.

    gpus: whether the cluster has any; then a rank takes one, and a generator as many as it splits its layers over.
    """
    from cluster.placement import RoleBundles

    shared = cluster.placement == "colocated"
    trainer, generator = getattr(config, "trainer", None), getattr(config, "generator", None)
    workers = getattr(config, "reward_workers", None)

    def model(role: str, device: str, count: int = 1, ways: int = 1) -> RoleBundles:
        gpu = (_MODEL_GPU if shared else ways) * (gpus and device != "cpu")
        return RoleBundles(
            role=role,
            count=count,
            bundle=_bundle(0 if shared else cluster.cpus_per_generator, gpu),
            strategy="SPREAD" if shared else "PACK",
            shown_all_gpus=shared,
        )

    def generators(role: str, settings: Any) -> RoleBundles:
        ways = settings.tensor_parallel // settings.nodes
        return model(role, settings.device, settings.replicas * settings.nodes, ways)

    if trainer is not None:
        gpu = (_RANK_GPU if shared else 1) * (gpus and trainer.device != "cpu")
        bundle = _bundle(0 if shared else cluster.cpus_per_trainer, gpu)
        yield RoleBundles(role="trainer", count=trainer.mesh.ranks, bundle=bundle, strategy="PACK")
    if generator is not None and not getattr(config, "sample_in_trainer", False):
        yield generators("generator", generator)
    yield from (generators(role, settings) for role, settings in _judges(config, inputs))
    if workers is not None:
        bundle = _bundle(0 if shared else cluster.cpus_per_reward_worker, 0)
        yield RoleBundles(role="reward", count=workers.workers, bundle=bundle, strategy="SPREAD")
        for role, options in _reward_models(config, inputs):
            yield model(role, options.device, options.nodes, options.tensor_parallel // options.nodes)
    if (teacher := getattr(config, "teacher", None)) is not None:
        named = [role for role in inputs if role.partition(".")[0] in ("teacher", "teachers")]
        yield from (model(role, teacher.device, ways=teacher.tensor_parallel) for role in named)


def _reward_models(config: Any, inputs: Collection[str]) -> list[tuple[str, "PreferenceOptions"]]:
    """The inputs that score for a stage's rewards, each once, with the options of the first reward that reads it."""
    from rewards.combine import check_rewards

    found: dict[str, Any] = {}
    specs = getattr(config, "rewards", ())
    for reward, options in check_rewards(specs) if specs else ():
        role: Any = getattr(reward, "input_role", None)
        if role in inputs:
            found.setdefault(role, options)
    return list(found.items())


def _engines(config: Any, inputs: Collection[str]) -> Iterator[tuple[str, "GeneratorConfig"]]:
    """The generators of a stage, with the keys of a recipe."""
    generator = getattr(config, "generator", None)
    if generator is not None and not getattr(config, "sample_in_trainer", False):
        yield "generator", generator
    key = "judges" if hasattr(config, "judges") else "judge"
    yield from ((f"{key}.generator", settings) for _, settings in _judges(config, inputs))


def _judges(config: Any, inputs: Collection[str]) -> Iterator[tuple[str, "GeneratorConfig"]]:
    """Input and settings of the judges that have bundles of their own."""
    if (judges := getattr(config, "judges", None)) is not None:
        yield from ((role, judges.generator) for role in JUDGE_ROLES if role in inputs)
    judge = getattr(config, "judge", None)  # of preference data, whose generators are gone when it begins
    if judge is None or judge.kind != "checkpoint" or "judge" not in inputs:
        return
    if _shape(judge.generator) != _shape(config.generator):  # else it takes their place
        yield "judge", judge.generator


def _shape(generator: "GeneratorConfig") -> tuple[int, int, int]:
    return generator.replicas, generator.nodes, generator.tensor_parallel


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": float(cpus) or _TRACE} | ({"GPU": float(gpus)} if gpus else {})

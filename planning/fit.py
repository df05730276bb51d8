"""The smallest change of settings with which a stage fits in memory.

Settings are tried by families, from weak to strong; families stand in the order of what they cost. One change alone is
best, two of different families next; else all of them at their strongest, each weakened as far as the stage still fits.
Shorter completions, which change what is learnt, are for when none of that is enough. The knobs are those of
training.config and rollouts.config.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from pydantic import BaseModel, ValidationError

from planning.assumptions import Assumptions
from planning.machines import Machine, nodes_of_engine
from planning.memory import VLLM_SHARE, engine_share
from planning.stage_memory import devices_used, in_place, share_left, stage_memory
from planning.stage_workloads import workload
from planning.workload import Request

_SHORTEST = 1024  # tokens below which a shorter completion is no remedy worth naming
_GENERATORS = ("generator", "judges.generator", "judge.generator")


@dataclass(frozen=True, slots=True)
class Change:
    """Settings by dotted key, as a recipe writes them."""

    settings: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return " ".join(_written(key, value) for key, value in self.settings)

    def __add__(self, other: "Change") -> "Change":
        return Change(tuple((dict(self.settings) | dict(other.settings)).items()))


NOTHING = Change(())
Family = Sequence[Change]


def smallest_change(request: Request, machine: Machine, assumed: Assumptions) -> Change | None:
    """None when nothing that is tried makes the stage fit. For a stage that does not fit as it is."""

    def fits(change: Change) -> bool:
        return _with_shares(request, change, machine, assumed) is not None

    families = [family for family in _families(request.config, machine) if family]
    for shorter in (NOTHING, *_of_lengths(request.config)):
        found = _search(families, lambda change, shorter=shorter: fits(change + shorter))
        if found is not None:
            return _with_shares(request, found + shorter, machine, assumed)
    return None


def _with_shares(request: Request, change: Change, machine: Machine, assumed: Assumptions) -> Change | None:
    """The change; where engines of vLLM would take memory that others need, with the share that each may take. None if
    the stage does not fit even so."""
    for whole in (change, change + _shares(request, change, machine, assumed)):
        if _fits(request, whole, machine, assumed):
            return whole
    return None


def _shares(request: Request, change: Change, machine: Machine, assumed: Assumptions) -> Change:
    config = with_settings(request.config, dict(change.settings))
    if config is None or not machine.cuda:
        return NOTHING
    left = share_left(in_place(workload(replace(request, config=config), assumed)), machine)
    engines = [key for key in _GENERATORS if (engine := _get(config, key)) is not None and engine_share(engine)]
    together = 1 + ("judges.generator" in engines)
    if left / together >= VLLM_SHARE or left <= 0:
        return NOTHING
    share = int(100 * left / together) / 100
    return _set(*((f"{key}.engine_args.gpu_memory_utilization", share) for key in engines if key != "judge.generator"))


def _search(families: Sequence[Family], fits: Callable[[Change], bool]) -> Change | None:
    for change in (NOTHING, *(change for family in families for change in family)):
        if fits(change):
            return change
    for one, other in combinations(families, 2):
        if fits(one[-1] + other[-1]):
            return next(a + b for b in other for a in one if fits(a + b))
    return _weakened(families, fits)


def _weakened(families: Sequence[Family], fits: Callable[[Change], bool]) -> Change | None:
    chosen = [family[-1] for family in families]
    if not fits(_sum(chosen)):
        return None
    for place in reversed(range(len(families))):  # what costs most is given up first
        for weaker in (NOTHING, *families[place]):
            if fits(_sum([*chosen[:place], weaker, *chosen[place + 1 :]])):
                chosen[place] = weaker
                break
    return _sum(chosen)


def _sum(changes: Sequence[Change]) -> Change:
    return sum(changes, NOTHING)


def _fits(request: Request, change: Change, machine: Machine, assumed: Assumptions) -> bool:
    config = with_settings(request.config, dict(change.settings))
    if config is None:
        return False
    work = in_place(workload(replace(request, config=config), assumed))
    memory = stage_memory(work, machine, assumed).values()
    return all(one.fits(machine.room) for one in memory) and devices_used(work, machine) <= machine.devices


def with_settings(config: Any, settings: dict[str, Any]) -> Any:
    """The config with these values, or None where they are refused. Parts are checked, not the whole, whose files may
    not be there."""
    try:
        for key, value in settings.items():
            config = _with(config, key.split("."), value)
        for part in ("trainer", "optimizer", *_GENERATORS):
            if (found := _get(config, part)) is not None:
                type(found).model_validate(found.model_dump())
    except (ValidationError, KeyError):
        return None
    mesh, in_trainer = _get(config, "trainer.mesh"), _get(config, "sample_in_trainer")
    return None if in_trainer and mesh.ranks > 1 else config


def _with(config: BaseModel, keys: list[str], value: Any) -> BaseModel:
    first, *rest = keys
    if first not in type(config).model_fields:
        raise KeyError(first)
    here = getattr(config, first)
    if rest:
        value = {**here, rest[0]: value} if isinstance(here, dict) else _with(here, rest, value)
    elif isinstance(here, BaseModel):
        value = type(here).model_validate(value)
    return config.model_copy(update={first: value})


def _get(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part, None)
    return config


def _families(config: Any, machine: Machine) -> Iterator[Family]:
    for key in _GENERATORS:
        generator = _get(config, key)
        if generator is None or (key == "generator" and _get(config, "sample_in_trainer")):
            continue
        yield from _of_generator(key, generator, machine, hasattr(config, "trainer"))
    if hasattr(config, "trainer"):
        yield from _of_trainer(config, machine)
    if _get(config, "sample_in_trainer"):
        yield [_set(("generator.max_slots", n)) for n in _halves(config.generator.max_slots, 16)]


def _of_generator(key: str, generator: Any, machine: Machine, trains: bool) -> Iterator[Family]:
    vllm = generator.engine == "vllm"
    base = [] if vllm or not machine.cuda else [(f"{key}.engine", "vllm")]
    base += [(f"{key}.dtype", "bfloat16")] if machine.cuda and generator.dtype == "float32" else []
    if trains and not generator.sleep and machine.cuda:
        base += [(f"{key}.sleep", True)]
    ways, replicas, spread = generator.tensor_parallel, generator.replicas, list[Change]()
    if machine.cuda and replicas * ways > machine.devices:
        replicas = max(1, machine.devices // ways)
        base += [(f"{key}.replicas", replicas)]
    if base:
        yield [_set(*base)]
    if machine.cuda:
        while ways * 2 <= machine.devices:
            ways, replicas = ways * 2, max(1, replicas // 2)
            size = [(f"{key}.replicas", replicas), (f"{key}.tensor_parallel", ways)]
            if (nodes := nodes_of_engine(ways, machine)) > 1:
                size.append((f"{key}.nodes", nodes))
            spread.append(_set(*base, *size))
        yield spread
        return
    yield [_set((f"{key}.replicas", n)) for n in _halves(generator.replicas, 1)]
    yield [_set((f"{key}.max_slots", n)) for n in _halves(generator.max_slots, 16)]


def _of_trainer(config: Any, machine: Machine) -> Iterator[Family]:
    trainer, mesh = config.trainer, config.trainer.mesh
    further = {"none": ("moments", "all"), "moments": ("all",), "all": ()}[config.optimizer.offload]
    turns = machine.cuda and not getattr(config, "max_staleness", 0)
    yield [_set(("optimizer.offload", what)) for what in further if turns]
    yield [_set(("trainer.recompute", "blocks"))] if trainer.recompute != "blocks" else []
    yield [_set(("trainer.precision", "bfloat16"))] if trainer.precision == "float32" and machine.cuda else []
    yield [_set(("optimizer.moments", "bfloat16"))] if config.optimizer.moments == "float32" else []
    wider, data = list[Change](), mesh.data
    while machine.cuda and data * mesh.pipeline * mesh.context * 2 <= machine.devices:
        data *= 2
        wider.append(_set(("trainer.mesh.data", data)))
    yield wider
    flatter, pipeline = list[Change](), mesh.pipeline
    while pipeline % 2 == 0:
        pipeline //= 2
        shape = {"data": mesh.ranks // (pipeline * mesh.context), "expert": mesh.expert, "pipeline": pipeline}
        shape |= {"context": mesh.context} if mesh.context > 1 else {}
        flatter.append(_set(("trainer.mesh", shape)))
    yield flatter
    yield [_set(("trainer.row_tokens", n)) for n in _halves(trainer.row_tokens, _SHORTEST)]


def _of_lengths(config: Any) -> Family:
    """Shorter and shorter completions."""
    rollout = _get(config, "rollout")
    if rollout is None:
        return []
    same: list[tuple[str, Any]] = [("max_new_tokens_from", {})] if _get(config, "max_new_tokens_from") else []
    shorter = [_set(*same, ("rollout.max_new_tokens", n)) for n in _halves(rollout.max_new_tokens, _SHORTEST)]
    return [*([_set(*same)] if same else []), *shorter]


def _halves(value: int, least: int) -> list[int]:
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _set(*settings: tuple[str, Any]) -> Change:
    return Change(settings)


def _written(key: str, value: Any) -> str:
    """As it is written on the command line, where a mapping with spaces would need quotes."""
    if isinstance(value, dict) and value:
        return " ".join(_written(f"{key}.{name}", item) for name, item in value.items())
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"

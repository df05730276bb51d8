"""What to do with each stage: made already, to make, to resume, or refused, and why.

A stage is *made* when its manifest has the recipe's config and seed, its parents' content hashes, and its files are
whole. It is *resumed* when it was cut off: `plan.json`, written when a stage starts, says the same but there is no
manifest. One that was cut off before it made anything is to make, whatever it was started with. Anything else that lies
in its folder is *refused*: nothing is overwritten or deleted unasked.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cluster.running import MEMORY, STALLS
from data.config import OPERATIONAL
from pipeline.artifact import (
    ERROR_LOG,
    MANIFEST,
    PLAN,
    ArtifactError,
    HashCache,
    Manifest,
    hash_payload,
    next_old_name,
    read_manifest,
    verify_quickly,
)
from pipeline.clock import PROGRESS_FILE
from pipeline.config import Pipeline, Stage
from pipeline.errors import RecipeError
from pipeline.provenance import reward_versions
from rewards.combine import check_rewards
from rewards.config import RewardSpec
from viewing.sinks import NOTES
from viewing.tensorboard import EVENTS

_OF_A_START = (PLAN, PROGRESS_FILE, ERROR_LOG, MEMORY, STALLS, EVENTS)  # in a stage's folder from its start


class State(StrEnum):
    MADE = "made"
    TO_MAKE = "to make"
    RESUME = "resume"
    REDO = "redo"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of one stage, why, and the content hash of its artifact when that is known."""

    state: State
    reason: str = ""
    content_hash: str | None = None


def survey(
    pipeline: Pipeline, hashes: HashCache, redo: Collection[str] = (), begun: Collection[str] = ()
) -> dict[str, Standing]:
    """The standing of every stage, in order. Writes nothing.

    redo: stages to make again. begun: stages of a redo that was cut off, made again only when they would be refused.
    """
    standings: dict[str, Standing] = {}
    redo = set(redo)
    for name, stage in pipeline.stages.items():
        parents = parent_hashes(stage, standings, hashes)
        if name in redo:
            standings[name] = _redone(stage)
            continue
        standing = standing_of(pipeline, stage, parents, hashes)
        redone = [i.stage for i in stage.inputs if i.stage in redo]
        if redone and standing.state in (State.MADE, State.RESUME):
            reason = f"it was made from {redone[0]}, which is to be made again; use --redo-from {redone[0]}"
            standing = Standing(state=State.REFUSED, reason=reason, content_hash=standing.content_hash)
        if name in begun and standing.state is State.REFUSED:
            redo.add(name)
            standing = _redone(stage)
        standings[name] = standing
    return standings


def _redone(stage: Stage) -> Standing:
    old = f"the old one is kept as {next_old_name(stage.folder).name}" if stage.folder.exists() else ""
    return Standing(state=State.REDO, reason=old)


def parent_hashes(stage: Stage, standings: Mapping[str, Standing], hashes: HashCache) -> dict[str, str | None]:
    """Role -> content hash of the parent, None for one that is not made yet."""
    return {
        item.role: standings[item.stage].content_hash if item.stage else _folder_hash(item.path, hashes)
        for item in stage.inputs
    }


def _folder_hash(folder: Path, hashes: HashCache) -> str:
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            return hash_payload(folder, hashes)[0]
        verify_quickly(folder, manifest, hashes)
    except ArtifactError as error:
        raise RecipeError(f"the input {folder} cannot be used: {error}") from None
    return manifest.content_hash


def standing_of(pipeline: Pipeline, stage: Stage, parents: Mapping[str, str | None], hashes: HashCache) -> Standing:
    """The standing of one stage, given its parents' content hashes."""
    standing = _standing_of(stage, parents, hashes)
    if standing.state is not State.REFUSED:
        return standing
    return replace(standing, reason=f"{standing.reason}; {_mend(pipeline, stage)}")


def _mend(pipeline: Pipeline, stage: Stage) -> str:
    """How to have a refused stage made again; by itself only where that would not be refused for its children."""
    children = [child for child in pipeline.stages.values() if stage.name in (item.stage for item in child.inputs)]
    begun = any((child.folder / file).exists() for child in children for file in (MANIFEST, PLAN))
    if begun and pipeline.only != stage.name:  # a stage that runs by itself leaves its children alone
        return f"make it, and what was made from it, again with --redo-from {stage.name} (the old ones are kept)"
    again = f"--redo-from {stage.name}, or this stage alone with --redo {stage.name}"
    return f"make it again with {again} (the old one is kept)"


def _standing_of(stage: Stage, parents: Mapping[str, str | None], hashes: HashCache) -> Standing:
    folder = stage.folder
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        return _refused(str(error))
    if manifest is not None:
        return _standing_of_made(stage, manifest, parents, hashes)
    if (folder / PLAN).exists():
        try:
            plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            difference = _difference(stage, parents, plan["stage_kind"], plan["config"], plan["seed"], plan["parents"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return _refused(f"{folder / PLAN} cannot be read ({error!r})")
        if difference and _has_made_something(folder):
            return _refused(f"it was started differently and cut off: {difference}")
        if difference:
            return Standing(state=State.TO_MAKE, reason="it was cut off before it made anything")
        return Standing(state=State.RESUME, reason="it was cut off")
    strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []
    if strangers:
        return _refused(f"{folder} holds {strangers[0]} but neither {MANIFEST} nor {PLAN}, so no run made it")
    return Standing(state=State.TO_MAKE)


def _has_made_something(folder: Path) -> bool:
    """Whether a stage that was cut off has left more than what the pipeline itself notes about a start."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).parts[0]
        noted = name in _OF_A_START or name.startswith(NOTES)
        if not noted and path.is_file() and path.stat().st_size:
            return True
    return False


def _standing_of_made(
    stage: Stage, manifest: Manifest, parents: Mapping[str, str | None], hashes: HashCache
) -> Standing:
    known = manifest.content_hash
    difference = _difference(stage, parents, manifest.stage_kind, manifest.config, manifest.seed, manifest.parents)
    if difference:
        return _refused(difference, known)
    try:
        verify_quickly(stage.folder, manifest, hashes)
    except ArtifactError as error:
        return _refused(str(error), known)
    waiting = [item.stage for item in stage.inputs if parents[item.role] is None]
    reason = f"if {waiting[0]} comes out as before" if waiting else _changed_rewards(stage, manifest)
    return Standing(state=State.MADE, reason=reason, content_hash=known)


def _changed_rewards(stage: Stage, manifest: Manifest) -> str:
    """No reason to refuse, as r1's own code is none, but worth a word. Older manifests tell of none."""
    now = reward_versions(stage.config)
    changed = [name for name, version in now.items() if manifest.versions.get(name, version) != version]
    return f"with another code of its {', '.join(changed)}; --redo-from {stage.name} makes it again" if changed else ""


def _refused(reason: str, content_hash: str | None = None) -> Standing:
    return Standing(state=State.REFUSED, reason=reason, content_hash=content_hash)


def _difference(
    stage: Stage,
    parents: Mapping[str, str | None],
    kind: str,
    config: Mapping[str, Any],
    seed: int,
    recorded: Mapping[str, Mapping[str, str]],
) -> str:
    """What the recipe and the parents say now against what was recorded; "" when they agree."""
    if kind != stage.kind:
        return f"its kind changed: {kind} -> {stage.kind}"
    changes = list(_changed_keys(config, stage.record, stage.config))
    if changes:
        shown = ", ".join(f"{key}: {_show(old)} -> {_show(new)}" for key, old, new in changes[:5])
        more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
        return f"its config differs from the recipe: {shown}{more}"
    if seed != stage.seed:
        return f"its seed differs from the recipe's: {seed} -> {stage.seed}"
    names = {item.role: item.stage or str(item.path) for item in stage.inputs}
    if recorded.keys() != names.keys():
        return f"its inputs differ from the recipe's: {', '.join(sorted(recorded))} -> {', '.join(sorted(names))}"
    for role, content_hash in parents.items():
        old = recorded[role]["content_hash"]
        if content_hash not in (None, old):
            return f"its input {role} ({names[role]}) changed under it: content {old[:12]} -> {content_hash[:12]}"
    return ""


_ABSENT = object()


def _changed_keys(old: Any, new: Any, config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of what differs. `config` is what `new` was dumped from.

    A key the old config lacks, at its default now, is no change: the key is newer than the artifact. Nor is an
    operational key (`data.config.OPERATIONAL`).
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            if not _is_operational(config, key) and (key in old or not _is_default(config, key)):
                place = f"{prefix}.{key}" if prefix else key
                yield from _changed_keys(old.get(key, _ABSENT), new.get(key, _ABSENT), _part(config, key), place)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _changed_keys(before, now, _part(config, place), f"{prefix}[{place}]")
    elif old is _ABSENT or new is _ABSENT or old != new:
        yield prefix, old, new


def _part(config: Any, key: Any) -> Any:
    if isinstance(config, RewardSpec) and key == "options":  # read by the reward itself, into a model of its own
        try:
            return check_rewards([config])[0][1]
        except ValueError:
            return None
    if isinstance(config, BaseModel):
        return getattr(config, key, None)
    try:
        return config[key]
    except (TypeError, LookupError):  # plain values, and sets, have no parts
        return None


def _is_default(config: Any, key: str) -> bool:
    field = type(config).model_fields.get(key) if isinstance(config, BaseModel) else None
    return field is not None and getattr(config, key) == field.get_default(call_default_factory=True, validated_data={})


def _is_operational(config: Any, key: str) -> bool:
    field = type(config).model_fields.get(key) if isinstance(config, BaseModel) else None
    return field is not None and OPERATIONAL in field.metadata


def _show(value: Any) -> str:
    text = "nothing" if value is _ABSENT else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

"""From YAML files and `key=value` arguments to a checked Pipeline. Every fault is a RecipeError naming its place.

A *stage recipe* is `stage: <kind>` and the keys of that kind's config. A *pipeline* names stages, their recipes and
their inputs (`PipelineFile`). Settings come in layers, later over earlier: the config's defaults, the recipe file, the
pipeline's `set:` for every stage that has the key (on the command line all.KEY=VALUE), the stage's own (STAGE.KEY=...).
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from cluster.config import ClusterConfig
from pipeline.config_record import config_record
from pipeline.errors import Absent, RecipeError, did_you_mean
from pipeline.inputs import Input, input_problems, order_stages
from pipeline.recipe_checks import settings_problems
from pipeline.schema import check, field_names, has_key, resolve_paths
from pipeline.stages import KINDS, Many, StageKind
from pipeline.yaml_source import Document, KeyPath, Place, parse_yaml, read_yaml
from viewing.tracking import missing_packages

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_OF_PIPELINE = ("seed", "output", "tracking", "all", "cluster")  # first words of settings that are no stage's
_RESERVED = ("all", "name", "seed", "output", "tracking", "extends", "set", "cluster", "stages", "inputs")


class StageEntry(BaseModel, extra="forbid", frozen=True):
    """One entry of a pipeline's `stages:`."""

    recipe: str = Field(description="stage recipe, a path relative to the pipeline file")
    inputs: dict[str, str | list[str] | dict[str, str]] = Field(
        default_factory=dict,
        description="role -> name of the stage that makes it, or a path; several artifacts as a list or label -> name",
    )
    set: dict[str, Any] = Field(default_factory=dict, description="dotted.key -> value, laid over the recipe")


class PipelineFile(BaseModel, extra="forbid", frozen=True):
    """A pipeline recipe."""

    name: str = Field(description="name of the run; the run folder is runs/<name> unless `output` says otherwise")
    seed: int = Field(0, ge=0, description="every random number of every stage derives from it")
    output: str | None = Field(None, description="run folder, relative to the working directory; default runs/<name>")
    tracking: list[Literal["wandb", "mlflow", "trackio"]] = Field(
        default_factory=list,
        description="services that get the curves while stages run, each by its package (r1-pipeline[wandb], ...); "
        "none by default: nothing leaves the machine unasked. TensorBoard's files are written always",
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="dotted.key -> value, laid over the recipe of every stage that has the key"
    )
    cluster: ClusterConfig = Field(
        default=ClusterConfig(), description="how the processes of all stages use the machines; may change at any time"
    )
    stages: dict[str, StageEntry] = Field(min_length=1, description="stage name -> recipe, inputs and settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of the chain, checked and ready to run."""

    name: str
    kind: str  # key of KINDS
    leaves: str  # artifact kind
    config: BaseModel
    record: dict[str, Any]  # the full config as JSON data, files by content: what a manifest keeps and compares
    inputs: tuple[Input, ...]
    seed: int
    recipe: Path
    folder: Path  # the artifact this stage leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    name: str
    seed: int
    folder: Path  # run folder; every stage has its artifact inside
    file: Path  # the recipe it was read from
    stages: dict[str, Stage]  # parents before children, else in file order
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: tuple[str, ...] = ()  # services that get the curves
    only: str | None = None  # when a single stage was asked for, its name


def stage_seed(pipeline_seed: int, stage: str) -> int:
    """Seed of one stage: a stable function of the pipeline's seed and the stage's name, below 2**31."""
    digest = hashlib.sha256(f"{pipeline_seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def load(
    path: Path,
    overrides: Sequence[str] = (),
    kinds: Mapping[str, StageKind] = KINDS,
    absent: list[str] | None = None,
) -> Pipeline:
    """Read a pipeline, or a stage recipe, with `key=value` overrides.

    absent: filled with a sentence for each model and data set that is not there, where these would else be refused: for
    those who only want to know what the recipe says.

    A stage recipe gets its name, inputs and run folder from the pipeline beside it that lists it (`pipeline.yaml`, if
    it does); when the overrides name all its inputs (`inputs.policy=PATH`) it needs no pipeline and runs under
    runs/<recipe name>. Where there is no recipes/..., the one that was installed with this package is meant.
    """
    settings = _parse_overrides(overrides)
    path = installed(path)
    document = read_yaml(path)
    if "stages" in document.data or "extends" in document.data:
        return _build(_laid_over(_read_pipeline(path), settings, str(path)), path, kinds, absent=absent)
    if "stage" not in document.data:
        raise RecipeError(
            f"{path}: this is neither a stage recipe (it has no key 'stage') nor a pipeline (no key 'stages')"
        )
    return _load_single(path, document, settings, kinds, absent)


def installed(path: Path) -> Path:
    """The recipe that came with this package, for a path recipes/... that is not there."""
    if path.exists() or path.parts[:1] != ("recipes",):
        return path
    ours = Path(str(files("recipes"))).joinpath(*path.parts[1:])
    return ours if ours.is_file() else path


def _load_single(
    path: Path,
    document: Document,
    settings: list[tuple[list[str], Document]],
    kinds: Mapping[str, StageKind],
    absent: list[str] | None,
) -> Pipeline:
    kind = document.data["stage"]
    roles = kinds[kind].inputs if isinstance(kind, str) and kind in kinds else {}
    given = {keys[1] for keys, _ in settings if keys[0] == "inputs" and len(keys) > 1}
    pipeline, listing, beside = None, [], None
    if not (roles and given >= set(roles)) and (beside := _pipeline_beside(path)) is not None:
        pipeline = _read_pipeline(beside)
        listing = _stages_with_recipe(pipeline, path)
    if len(listing) > 1:
        raise RecipeError(
            f"{path}: {beside} uses this recipe for several stages ({', '.join(listing)}); "
            f"run {beside} with --only and one of these names"
        )
    missing = [role for role in roles if role not in given]
    if not listing and missing:
        wanted = " ".join(f"inputs.{role}=PATH" for role in missing)
        fault = f"{path}: no pipeline beside it lists this recipe, so say where its inputs are: {wanted}"
        raise RecipeError([*_unknown_roles(kinds[kind], kind, settings), fault])
    name = listing[0] if listing else path.stem
    if pipeline is None or not listing:
        pipeline = Document({"name": name, "stages": {name: {"recipe": path.name}}}, {(): Place(str(path), 1, 1)})
    prefixed = [(keys if keys[0] in _OF_PIPELINE else [name, *keys], value) for keys, value in settings]
    return _build(_laid_over(pipeline, prefixed, str(path)), path, kinds, only=name, absent=absent)


def _unknown_roles(kind: StageKind, name: str, settings: list[tuple[list[str], Document]]) -> Iterator[str]:
    """inputs.ROLE=PATH of the command line whose role is none of the kind's."""
    for keys, value in settings:
        if keys[0] == "inputs" and len(keys) > 1 and keys[1] not in kind.roles:
            yield f"{value.place()}: {name} has no input '{keys[1]}'{did_you_mean(keys[1], kind.roles)}"


def _pipeline_beside(path: Path) -> Path | None:
    """pipeline.yaml or another pipeline in the same folder, the first by name, whose own text lists the recipe."""
    others = sorted(file for file in path.parent.glob("*.yaml") if file.name != "pipeline.yaml")
    for file in (path.parent / "pipeline.yaml", *others):
        if file.exists() and file != path:
            try:
                listed = _stages_with_recipe(read_yaml(file), path)
            except RecipeError:  # a file that is none of this recipe's business
                continue
            if listed:
                return file
    return None


def _stages_with_recipe(pipeline: Document, path: Path) -> list[str]:
    stages = pipeline.data.get("stages")
    return [
        name
        for name, entry in (stages.items() if isinstance(stages, dict) else ())
        if isinstance(entry, dict)
        and isinstance(entry.get("recipe"), str)
        and (_folder(pipeline, ("stages", name, "recipe")) / entry["recipe"]).resolve() == path.resolve()
    ]


def _folder(document: Document, path: KeyPath) -> Path:
    """What a relative path starts from: the folder of the file it is written in, or here for the command line."""
    place = document.place(path)
    return Path(place.source).parent if place.line else Path()


def _read_pipeline(path: Path, below: tuple[Path, ...] = ()) -> Document:
    """A pipeline file laid over the one it extends."""
    if path.resolve() in below:
        chain = " -> ".join(file.name for file in (*below, path))
        raise RecipeError(f"{path}: 'extends' goes round in a circle: {chain}")
    document = read_yaml(path)
    base = document.data.get("extends")
    if base is None:
        return document
    if not isinstance(base, str):
        raise RecipeError(f"{document.place(('extends',))}: extends must name a file in the same folder, got {base!r}")
    if not (path.parent / base).is_file():
        raise RecipeError(f"{document.place(('extends',))}: extends names {path.parent / base}, which does not exist")
    return document.without("extends").over(_read_pipeline(path.parent / base, (*below, path.resolve())))


def _parse_overrides(arguments: Sequence[str]) -> list[tuple[list[str], Document]]:
    settings, problems = [], []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not all(key.split(".")):
            problems.append(f"command line: '{argument}' is not of the form key=value, e.g. seed=1")
            continue
        try:
            value = parse_yaml(text, f"command line, {key}").data
        except RecipeError as error:
            problems.extend(error.problems)
            continue
        settings.append((key.split("."), Document(value, {(): Place(f"command line, {argument}")})))
    if problems:
        raise RecipeError(problems)
    return settings


def _laid_over(pipeline: Document, settings: list[tuple[list[str], Document]], source: str) -> Document:
    """Command-line settings as entries of the pipeline: seed, output, cluster.KEY, STAGE.inputs.ROLE and STAGE.key."""
    stages = pipeline.data.get("stages")
    names = list(stages) if isinstance(stages, dict) else []
    problems = []
    for keys, value in settings:
        if keys in (["seed"], ["output"], ["tracking"]) or keys[0] == "cluster":
            where = keys
        elif keys[0] == "all" and len(keys) > 1:
            where = ["set", ".".join(keys[1:])]
        elif keys == ["all"]:
            problems.append(f"{value.place()}: say which key of all stages, e.g. all.KEY=VALUE")
            continue
        elif keys[0] not in names:
            hint = did_you_mean(keys[0], [*_OF_PIPELINE, *names])
            problems.append(f"{value.place()}: hits nothing: {source} has no stage '{keys[0]}'{hint}")
            continue
        elif len(keys) == 1:
            problems.append(f"{value.place()}: say which key of stage '{keys[0]}', e.g. {keys[0]}.KEY=VALUE")
            continue
        elif keys[1] == "inputs":
            where = ["stages", *keys]
        else:
            where = ["stages", keys[0], "set", ".".join(keys[1:])]
        pipeline = value.nested_under(where).over(pipeline)
    if problems:
        raise RecipeError(problems)
    return pipeline


def _build(
    document: Document,
    path: Path,
    kinds: Mapping[str, StageKind],
    only: str | None = None,
    absent: list[str] | None = None,
) -> Pipeline:
    with tempfile.TemporaryDirectory() as folder:
        return _build_with(document, path, kinds, only, absent, None if absent is None else Path(folder))


def _build_with(
    document: Document,
    path: Path,
    kinds: Mapping[str, StageKind],
    only: str | None,
    absent: list[str] | None,
    stand_ins: Path | None,
) -> Pipeline:
    problems: list[str] = []
    file = check(PipelineFile, document, "the pipeline", problems)
    if file is None:
        raise RecipeError(problems)
    if not _NAME.fullmatch(file.name):
        problems.append(f"{document.place(('name',))}: name must be letters, digits, _ and -, got '{file.name}'")
    folder = Path(file.output).expanduser() if file.output else Path("runs") / file.name
    problems.extend(f"{document.place(('output',))}: {fault}" for fault in _folder_faults(folder))
    stages: dict[str, Stage] = {}
    recipes: dict[str, str | None] = {}
    for name, entry in file.stages.items():
        place = document.place(("stages", name))
        if not _NAME.fullmatch(name) or name in _RESERVED:
            problems.append(f"{place}: '{name}' cannot be the name of a stage; use letters, digits, _ and -")
        stage = _build_stage(name, entry, document, file, folder, kinds, problems, stand_ins)
        recipes[name] = stage.leaves if stage else None
        if stage:
            stages[name] = stage
    problems.extend(f"{document.place(('tracking',))}: {fault}" for fault in missing_packages(file.tracking))
    problems.extend(_unheard(file, document, stages))
    problems.extend(input_problems(stages, recipes, kinds, document))
    if absent is not None:
        absent += [problem for problem in problems if isinstance(problem, Absent)]
        problems = [problem for problem in problems if not isinstance(problem, Absent)]
    if not problems:
        stages = order_stages(stages, document, problems)
    if problems:
        raise RecipeError(problems)
    return Pipeline(
        name=file.name,
        seed=file.seed,
        folder=folder,
        file=path,
        stages=stages,
        cluster=file.cluster,
        tracking=tuple(dict.fromkeys(file.tracking)),
        only=only,
    )


def _folder_faults(run: Path) -> Iterator[str]:
    """Why no folder can be made at `run`: it, or one that it would be in, is a file."""
    for path in (run, *run.parents):
        if os.path.isfile(path):
            yield f"the run folder is to be {run}, but {path} is a file; choose another folder with output=PATH"


def _unheard(file: PipelineFile, document: Document, stages: Mapping[str, Stage]) -> Iterator[str]:
    """Settings for all stages that no stage has."""
    for key in file.set if len(stages) == len(file.stages) else ():
        if not any(has_key(type(stage.config), key.split(".")) for stage in stages.values()):
            *above, last = key.split(".")
            known = {n for stage in stages.values() for n in field_names(type(stage.config), tuple(above), None)}
            yield f"{document.place(('set', key))}: set: no stage has a key '{key}'{did_you_mean(last, sorted(known))}"


def _build_stage(
    name: str,
    entry: StageEntry,
    document: Document,
    file: PipelineFile,
    folder: Path,
    kinds: Mapping[str, StageKind],
    problems: list[str],
    stand_ins: Path | None,
) -> Stage | None:
    here = ("stages", name)
    recipe = _folder(document, (*here, "recipe")) / entry.recipe
    if not recipe.is_file():
        near = did_you_mean(recipe.name, sorted(item.name for item in recipe.parent.glob("*.yaml")))
        problems.append(f"{document.place((*here, 'recipe'))}: the recipe {recipe} does not exist{near}")
        return None
    try:
        written = read_yaml(recipe)
    except RecipeError as error:
        problems.extend(error.problems)
        return None
    kind_name = written.data.get("stage")
    kind = kinds.get(kind_name) if isinstance(kind_name, str) else None
    if kind is None:
        fault = "missing required key 'stage'" if kind_name is None else f"unknown stage kind '{kind_name}'"
        problems.append(f"{written.place(('stage',))}: {fault}{did_you_mean(str(kind_name), kinds)}")
        return None
    model = kind.config_class()
    settings = _resolved(written.without("stage"), model, recipe.parent)
    shared = {key: value for key, value in file.set.items() if has_key(model, key.split("."))}
    layers = [(("set", key), value) for key, value in shared.items()]
    layers += [((*here, "set", key), value) for key, value in entry.set.items()]
    layers.sort(key=lambda layer: document.place(layer[0]).line == 0)  # the command line over every file
    for path, value in layers:
        layer = Document(value, {(): document.place(path)}).nested_under(path[-1].split("."))
        settings = _resolved(layer, model, _folder(document, path)).over(settings)
    config = check(model, settings, str(kind_name), problems, stand_ins)
    inputs = _inputs(name, entry, kind, document, folder, list(file.stages))
    if config is None:
        return None
    problems.extend(settings_problems(name, config, settings, inputs))
    return Stage(
        name=name,
        kind=str(kind_name),
        leaves=kind.leaves,
        config=config,
        record=config_record(config),
        inputs=inputs,
        seed=stage_seed(file.seed, name),
        recipe=recipe,
        folder=folder / name,
    )


def _resolved(document: Document, model: type[BaseModel], folder: Path) -> Document:
    return Document(resolve_paths(model, document.data, folder), document.places)


def _inputs(
    name: str, entry: StageEntry, kind: StageKind, document: Document, folder: Path, stages: list[str]
) -> tuple[Input, ...]:
    found = []
    for role, value in entry.inputs.items():
        wanted = kind.roles.get(role)
        labelled: Mapping[str, str]
        if isinstance(value, str):
            labelled = {role: value} if not isinstance(wanted, Many) else {f"{role}.{Path(value).name}": value}
        else:
            items = value.items() if isinstance(value, dict) else ((Path(item).name, item) for item in value)
            labelled = {f"{role}.{label}": item for label, item in items}
        here = ("stages", name, "inputs", role)
        for label, target in labelled.items():
            part = label.removeprefix(f"{role}.")
            place = document.place((*here, part) if isinstance(value, dict) else here)
            is_stage = target in stages
            path = folder / target if is_stage else _folder(document, here) / Path(target).expanduser()
            found.append(Input(role=label, stage=target if is_stage else None, path=path, written=target, place=place))
    return tuple(found)

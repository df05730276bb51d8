"""Faults of a stage's settings that its config class cannot see: missing files, labels and domains that hit nothing.

Free of torch, so that a recipe is refused at once and not when its stage comes up, hours later.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.config import is_local
from pipeline.errors import did_you_mean
from pipeline.inputs import Input
from pipeline.yaml_source import Document, KeyPath, Place
from rewards.combine import check_rewards

_DEFAULT = "default"  # the entry of `prompting` for checkpoints that have none of their own


def settings_problems(name: str, config: BaseModel, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """One sentence per fault of the settings of stage `name`; `settings` knows where each was written."""
    yield from _missing_files(config, settings)
    yield from _length_problems(name, config, settings, inputs)
    yield from _label_problems(name, config, settings, inputs)
    yield from _reward_problems(config, settings)


def _missing_files(config: Any, settings: Document) -> Iterator[str]:
    named = [
        ((*keys, number, "path"), source.path)
        for keys in (("problems", "sources"), ("held_out_sources",))
        for number, source in enumerate(_get(config, keys) or ())
    ]
    for keys, written in named:
        path = Path(written).expanduser()
        if is_local(written) and not path.exists():
            names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            yield f"{settings.place(keys)}: {_dotted(keys)}: there is no {written}{_near(path.name, names)}"


def _length_problems(name: str, config: Any, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    longest = _get(config, ("rollout", "max_new_tokens"))
    for item in inputs if isinstance(longest, int) else ():
        room = _max_positions(item.path) if item.stage is None else None
        if room is not None and longest >= room:
            yield (
                f"{settings.place(('rollout', 'max_new_tokens'))}: rollout.max_new_tokens of stage '{name}' is "
                f"{longest}, but {item.path} takes {room} tokens, prompt and completion together; set less than {room}"
            )


def _max_positions(checkpoint: Path) -> int | None:
    """`max_position_embeddings` of a checkpoint folder, None when it does not say."""
    try:
        found = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def _label_problems(name: str, config: Any, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """Labels of samples_for and prompting in the evaluate stage. The default of `prompting` may name others."""
    labels = [item.role.partition(".")[2] for item in inputs if item.role.startswith("checkpoints.")]
    for key, extra in (("samples_for", ()), ("prompting", (_DEFAULT,))):
        written = settings.data.get(key) if hasattr(config, key) else None
        for label in written if isinstance(written, dict) and labels else ():
            if label not in (*labels, *extra):
                hint = did_you_mean(label, labels)
                yield f"{settings.place((key, label))}: {key}: stage '{name}' has no checkpoint '{label}'{hint}"


def _reward_problems(config: Any, settings: Document) -> Iterator[str]:
    specs = _get(config, ("rewards",)) or ()
    if not specs:
        return
    try:
        classes = [reward_class for reward_class, _ in check_rewards(specs)]
    except ValueError as error:
        yield f"{settings.place(('rewards',))}: {error}"
        return
    domains, first = _possible_domains(config), {}
    for number, (spec, reward_class) in enumerate(zip(specs, classes, strict=True)):
        here = ("rewards", number)
        reward = getattr(reward_class, "name", spec.use)
        if reward in first:
            place: Place = settings.place((*here, "use"))
            yield f"{place}: rewards[{number}]: {spec.use} is listed twice, first as rewards[{first[reward]}]; keep one"
        first.setdefault(reward, number)
        for domain in spec.domains or ():
            if domains is not None and domain not in domains:
                place = settings.place((*here, "domains"))
                yield f"{place}: rewards[{number}].domains: {_no_domain(domain, domains)}"
        language = spec.options.get("language")
        if reward == "language" and language is not None and language not in _languages():
            place = settings.place((*here, "options", "language"))
            yield (
                f"{place}: rewards[{number}].options.language: '{language}' is not supported; "
                f"use one of {', '.join(_languages())}"
            )


def _possible_domains(config: Any) -> set[str] | None:
    """Domains the stage's problems can have; None when files decide."""
    problems = getattr(config, "problems", None)
    if problems is None or problems.sources:
        return None
    return {*problems.families, *(["general"] if problems.instruction_share else [])}


def _no_domain(domain: str, domains: Collection[str]) -> str:
    if domain == "general":
        return "no problem has domain 'general' while problems.instruction_share is 0; raise it, or drop the domain"
    return f"no problem of this stage has domain '{domain}'{did_you_mean(domain, sorted(domains))}"


def _languages() -> Collection[str]:
    from rewards.language import SCRIPTS

    return SCRIPTS


def _get(config: Any, keys: KeyPath) -> Any:
    for key in keys:
        config = getattr(config, str(key), None)
    return config


def _dotted(keys: KeyPath) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def _near(word: str, choices: Collection[str]) -> str:
    hint = did_you_mean(word, choices)
    return "" if hint.startswith("; known") else hint

"""Faults of a stage's settings that its config class cannot see: unreadable files, labels and domains that hit nothing.

Free of torch, so that a recipe is refused at once and not when its stage comes up, hours later.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.config import FILE_SUFFIXES, JUDGE_ROLES, JUDGING, PreferenceSource, ProblemSource, is_local
from data.errors import StageError
from data.safety_prompts import SAFETY
from data.schemas import SourceError
from data.sources import check_first_row
from distill.suites import suite_sources
from pipeline.errors import Absent, did_you_mean, near_miss
from pipeline.inputs import Input, context_length, longest_completion, too_long
from pipeline.yaml_source import Document, KeyPath, Place
from rewards.checkers import KNOWN_CHECKERS
from rewards.combine import check_rewards
from rewards.config import RewardSpec
from rewards.problem_checks import ACCURACY, asks_checker

_DEFAULT = "default"  # the entry of `prompting` for checkpoints that have none of their own


def settings_problems(name: str, config: BaseModel, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """One sentence per fault of the settings of stage `name`; `settings` knows where each was written."""
    yield from _source_problems(config, settings)
    yield from _checker_problems(config, settings)
    yield from _undrawn_problems(config, settings)
    yield from _dataset_problems(config, settings)
    yield from _length_problems(name, config, settings, inputs)
    yield from _label_problems(name, config, settings, inputs)
    yield from _reward_problems(config, settings)
    yield from _reward_model_problems(name, config, settings, inputs)
    yield from _preference_problems(name, config, settings, inputs)
    yield from _judge_problems(name, config, settings, inputs)
    yield from _teacher_problems(name, config, settings, inputs)
    yield from _trace_problems(name, config, settings, inputs)


_SOURCES = (
    *(("problems", "sources"), ("problems", "general_sources"), ("problems", "judging", "sources")),
    *(("held_out_sources",), ("sources",)),
)


def _source_problems(config: Any, settings: Document) -> Iterator[str]:
    """Files that are not there, or whose first row is no problem, or preference."""
    named = [
        ((*keys, number, "path"), source) for keys in _SOURCES for number, source in enumerate(_get(config, keys) or ())
    ]
    for keys, source in named:
        path = Path(source.path).expanduser()
        if is_local(source.path) and not path.exists():
            names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            sentence = (
                f"{settings.place(keys)}: {_dotted(keys)}: there is no {source.path}{near_miss(path.name, names)}"
            )
            yield Absent(sentence)
            continue
        try:
            _check_first(source)
        except SourceError as error:
            yield f"{settings.place(keys)}: {_dotted(keys)}: {error}"


def _check_first(source: ProblemSource | PreferenceSource) -> None:
    if isinstance(source, PreferenceSource):
        from data.preference_sources import check_first_preference  # imports pyarrow, which other recipes need not

        check_first_preference(source)
    else:
        check_first_row(source)


def _checker_problems(config: Any, settings: Document) -> Iterator[str]:
    """Checkers of sources that no grader knows, where a grader will be asked for them."""
    specs: Sequence[RewardSpec] = getattr(config, "rewards", (RewardSpec(use=ACCURACY),))
    for keys in (("problems", "sources"), ("problems", "general_sources")):
        for number, source in enumerate(_get(config, keys) or ()):
            here, checker = (*keys, number, "checker"), source.checker
            if checker not in KNOWN_CHECKERS and any(asks_checker(spec, source.domain) for spec in specs):
                hint = did_you_mean(checker, KNOWN_CHECKERS)
                yield f"{settings.place(here)}: {_dotted(here)}: there is no checker '{checker}'{hint}"


def _undrawn_problems(config: Any, settings: Document) -> Iterator[str]:
    """General prompts that nothing draws. The evaluate stage says by number how many it takes."""
    problems, by_number = getattr(config, "problems", None), hasattr(config, "general_problems")
    if problems is not None and problems.general_sources and not problems.instruction_share and not by_number:
        place = settings.place(("problems", "general_sources"))
        yield f"{place}: problems.general_sources are never drawn while problems.instruction_share is 0; raise it"


def _dataset_problems(config: Any, settings: Document) -> Iterator[str]:
    """Files of conversations whose type is unknown, or whose first row is no conversation."""
    named = [((key,), getattr(config, key, None)) for key in ("dataset", "general_dataset")]
    if hasattr(config, "near_duplicates"):  # the traces stage, which has a list of them
        named += [(("source", number), file) for number, file in enumerate(config.source)]
    for keys, file in named:
        if not isinstance(file, Path):
            continue
        written = Path(reduce(getitem, keys, settings.data))
        if not written.is_file():  # a plan is made with a stand-in
            yield Absent(f"{settings.place(keys)}: {_dotted(keys)}: there is no {written}")
        elif fault := _fault_of_conversations(file):
            yield f"{settings.place(keys)}: {_dotted(keys)}: {fault}"


def _fault_of_conversations(file: Path) -> str:
    """What is wrong with a file of conversations, as its type and its first row show; "" where nothing is."""
    if not file.name.endswith(FILE_SUFFIXES):
        return f"{file.name} is of an unknown file type; expected {', '.join(FILE_SUFFIXES)}"
    from sft.conversations import check_first_conversation  # imports numpy, which other recipes need not

    try:
        check_first_conversation(file)
    except StageError as error:
        return str(error)
    return ""


def _length_problems(name: str, config: Any, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """The longest completion against the folders a stage is given; `pipeline.inputs` looks at those of other stages."""
    longest = longest_completion(config)
    for item in inputs if longest is not None else ():
        if item.role in JUDGE_ROLES:  # they write judgements, of another length
            continue
        room = context_length(item.path) if item.stage is None else None
        if room is not None and longest is not None and longest >= room:
            yield f"{settings.place(('rollout', 'max_new_tokens'))}: {too_long(name, longest, item.path, room)}"


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
    specs = getattr(config, "rewards", None)
    if specs is None:
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
        for domain in (*(spec.domains or ()), *spec.except_domains):
            if domains is not None and domain not in domains:
                key = "except_domains" if domain in spec.except_domains else "domains"
                place = settings.place((*here, key))
                yield f"{place}: rewards[{number}].{key}: {_no_domain(domain, domains)}"
        language = spec.options.get("language")
        if reward == "language" and language is not None and language not in _languages():
            place = settings.place((*here, "options", "language"))
            yield (
                f"{place}: rewards[{number}].options.language: '{language}' is not supported; "
                f"use one of {', '.join(_languages())}"
            )


def _judge_problems(name: str, config: Any, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """Rewards that ask a judge which the stage is not given, and judges that no reward asks."""
    if getattr(config, "judges", None) is None:
        return
    asked, given = set(), {item.role: item for item in inputs if item.role in JUDGE_ROLES}
    for here, spec in _listed_rewards(config):
        role = _asked_judge(spec)
        asked.add(role)
        if role in JUDGE_ROLES and role not in given:
            place = settings.place((*here, "use"))
            yield f"{place}: {spec.use} asks a judge: give stage '{name}' one, e.g. inputs: {{{role}: grm_rl}}"
    for role in given.keys() - asked:
        yield f"{given[role].place}: no reward of stage '{name}' asks its input '{role}'; drop it, or add one that does"


def _asked_judge(spec: RewardSpec) -> str | None:
    """The input that a reward asks; None where it asks none or cannot be built, which others say."""
    try:
        ((reward, options),) = check_rewards([spec])
    except ValueError:
        return None
    asks_input = hasattr(reward, "connect") and getattr(options, "endpoint", None) is None
    return getattr(options, "input", None) if asks_input else None


def _listed_rewards(config: Any) -> list[tuple[KeyPath, RewardSpec]]:
    """The rewards of a stage and the second judge of its watch, each with its place in the recipe."""
    watch = getattr(config, "watch", None)
    second: list[tuple[KeyPath, RewardSpec]] = []
    if watch is not None and watch.second is not None:
        second = [(("watch", "second"), watch.second)]
    rewards = enumerate(getattr(config, "rewards", None) or ())
    return [*((("rewards", number), spec) for number, spec in rewards), *second]


def _reward_model_problems(name: str, config: Any, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """Rewards that need a model and are given none, and models that no reward asks for."""
    roles, wanted, names = {item.role for item in inputs}, set(), set()
    watch = getattr(config, "watch", None)
    for here, spec in _listed_rewards(config):
        try:
            ((reward_class, _),) = check_rewards([spec])
        except ValueError as error:
            if here == ("watch", "second"):
                yield f"{settings.place(here)}: watch.second: {error}"
            continue
        role = getattr(reward_class, "input_role", None)
        wanted.add(role)
        names |= {getattr(reward_class, "name", spec.use)} if here[0] == "rewards" else set()
        if role is not None and spec.options.get("model"):
            place = settings.place((*here, "options", "model"))
            yield f"{place}: options.model: give the model as input '{role}' of stage '{name}': inputs are hashed"
        elif role is not None and role not in roles:
            place = settings.place((*here, "use"))
            yield f"{place}: {spec.use} needs the input '{role}' of stage '{name}'"
    if watch is not None and watch.reward not in names:
        place = settings.place(("watch", "reward"))
        yield f"{place}: watch.reward: stage '{name}' has no reward '{watch.reward}'{did_you_mean(watch.reward, names)}"
    for item in inputs:
        if item.role.endswith("_rm") and item.role not in wanted:
            yield f"{item.place}: no reward of stage '{name}' asks for its input '{item.role}'; add one, or drop it"


def _preference_problems(name: str, config: Any, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """Preference data without anything to judge, or without the judge that it names."""
    judge = getattr(config, "judge", None)
    if judge is None:
        return
    roles = {item.role.partition(".")[0] for item in inputs}
    if "policies" not in roles and not config.sources:
        yield f"{settings.place()}: stage '{name}' has neither the input 'policies' nor `sources`: nothing to judge"
    if "policies" in roles and judge.kind == "checkpoint" and "judge" not in roles:
        place = settings.place(("judge",))
        yield f"{place}: judge.kind is checkpoint, so stage '{name}' needs the input 'judge'; or take endpoint or rule"
    if "judge" in roles and judge.kind != "checkpoint":
        place = settings.place(("judge", "kind"))
        yield f"{place}: stage '{name}' has an input 'judge', which judge.kind {judge.kind} ignores"


def _trace_problems(name: str, config: Any, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """Traces of no origin, or of several; endpoint beside source is refused by the config itself."""
    if not hasattr(config, "near_duplicates"):
        return
    roles = {item.role: item for item in inputs if item.role in ("policy", "dataset")}
    keys = [key for key in ("endpoint", "solutions", "source") if getattr(config, key)]
    if not roles and not keys:
        yield (
            f"{settings.place()}: stage '{name}' has no rows: give it the input 'policy' (a teacher) or 'dataset', or "
            "set `endpoint` (a teacher behind OpenAI's API), `solutions` or `source` (files of conversations)"
        )
    for other in [*keys, *(role for role in roles if role != "policy")] if len(roles) + len(keys) > 1 else ():
        item = roles.get("policy") or next(iter(roles.values()))
        if other != item.role:
            yield f"{item.place}: stage '{name}' has an input '{item.role}' and '{other}'; rows come from one of them"
    try:
        for source in suite_sources(config.suites):
            _check_first(source)
    except SourceError as error:
        yield f"{settings.place(('suites',))}: suites: {error}"


def _teacher_problems(name: str, config: Any, settings: Document, inputs: Sequence[Input]) -> Iterator[str]:
    """Teachers that nothing listens to, and weights of domains and teachers that are not there."""
    given = next((item for item in inputs if item.role == "teacher"), None)
    if given is not None and getattr(config, "kl", True) is None:
        yield f"{given.place}: the input teacher of stage '{name}' is not asked while kl is not set; set kl, or drop it"
    teachers = [item.role.partition(".")[2] for item in inputs if item.role.startswith("teachers.")]
    domains = _possible_domains(config)
    for domain, weights in (getattr(config, "weights", None) or {}).items() if teachers else ():
        place = settings.place(("weights", domain))
        if domains is not None and domain not in domains:
            yield f"{place}: weights: {_no_domain(domain, domains)}"
        for teacher in weights:
            if teacher not in teachers:
                hint = did_you_mean(teacher, teachers)
                yield f"{place}: weights.{domain}: stage '{name}' has no teacher '{teacher}'{hint}"


def _possible_domains(config: Any) -> set[str] | None:
    """Domains the stage's problems can have; None when files decide."""
    problems = getattr(config, "problems", None)
    if problems is None or problems.sources or problems.general_sources:
        return None
    if problems.judging is not None:
        return {JUDGING}
    return {*problems.families, *(problems.instruction_domains() if problems.instruction_share else ())}


def _no_domain(domain: str, domains: Collection[str]) -> str:
    if domain == SAFETY:
        return "no problem has domain 'safety' while problems.safety_share is 0; raise it, or drop the domain"
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

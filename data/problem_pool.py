"""The problems a stage draws from: procedural families, general instructions, your own files, in stated shares."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from data.config import JUDGING, JudgingConfig, ProblemSource
from data.decontaminate import decontaminate, problem_texts
from data.families import FAMILIES, LANGUAGES, LEVELS, Split
from data.families import problem as family_problem
from data.instructions import instruction_problem
from data.problems import Problem
from data.safety_prompts import SAFETY, safety_problem
from data.schemas import SourceError, with_instruction
from data.sources import held_out_texts, read_problems
from data.word_problems import WORD_FAMILIES, word_problem


class ProblemsConfig(BaseModel, extra="forbid", frozen=True):
    families: tuple[str, ...] = Field(
        default=FAMILIES,
        description="procedural families to draw from: all of the tiny chain by default, or word problems with written "
        f"solutions for pretrained models ({', '.join(WORD_FAMILIES)}; languages: [en])",
    )
    levels: tuple[int, ...] = Field(default=LEVELS, description="difficulty levels, 1 (easy) to 3, in equal shares")
    languages: tuple[str, ...] = Field(default=LANGUAGES, description="languages of the prompts, in equal shares")
    instruction: str = Field(
        default="",
        description="line added to every procedural question, e.g. 'Put your final answer within \\boxed{}.', for "
        "pretrained models; empty: none, as the tiny chain's. Sources have an `instruction` of their own",
    )
    instruction_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of general prompts: of general_sources, else procedural instructions (domain 'general')",
    )
    general_sources: tuple[ProblemSource, ...] = Field(
        default=(),
        description="files or datasets of general prompts; when given, they replace the procedural instructions. Their "
        "domain is 'general' where neither the file nor the source's `domain` says another, such as 'safety'",
    )
    safety_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of these instructions that ask for what the miniature's guideline forbids (domain "
        "'safety'); R1 has 12k harmlessness prompts among 78k general ones (Table 4)",
    )
    sources: tuple[ProblemSource, ...] = Field(
        default=(),
        description="files or datasets; when given, they replace the procedural families. A pool holds its problems "
        "in memory (about 1 KB each): give large hub datasets a `limit`",
    )
    judging: JudgingConfig | None = Field(
        default=None,
        description="judgements of responses as problems, in place of all others: for a policy that is to become a "
        "generative reward model. None: it is not",
    )

    def instruction_domains(self) -> set[str]:
        """Domains of the procedural instructions."""
        return {*(["general"] if self.safety_share < 1 else []), *([SAFETY] if self.safety_share else [])}

    @field_validator("families", "levels", "languages")
    @classmethod
    def _there_is_data(cls, chosen: tuple[Any, ...], info: Any) -> tuple[Any, ...]:
        known = {"families": (*FAMILIES, *WORD_FAMILIES), "levels": LEVELS, "languages": LANGUAGES}[info.field_name]
        if not chosen or set(chosen) - set(known):
            raise ValueError(f"{info.field_name}: choose one or more of {', '.join(map(str, known))}")
        return chosen

    @model_validator(mode="after")
    def _word_problems_are_english(self) -> Self:
        if self.languages != ("en",) and (told := set(self.families) & set(WORD_FAMILIES)):
            raise ValueError(f"problems.families: {min(told)} is told in English only; set languages: [en]")
        return self

    @model_validator(mode="after")
    def _judging_stands_alone(self) -> Self:
        if self.judging is not None and (self.sources or self.general_sources or self.instruction_share):
            raise ValueError(
                "problems.judging takes the place of all other problems; drop sources, general_sources and "
                "instruction_share"
            )
        return self

    @model_validator(mode="after")
    def _safety_is_in_the_files(self) -> Self:
        if self.general_sources and self.safety_share:
            raise ValueError("problems.safety_share is of procedural instructions; general_sources say domains")
        return self


class ProblemPool:
    """An endless, reproducible sequence of problems: number i is always the same one."""

    def __init__(self, config: ProblemsConfig, split: Split, seed: int, held_out: Sequence[ProblemSource] = ()):
        """`held_out`: benchmarks; listed problems, and items to judge, that share 10 words in a row with them are left
        out and counted."""
        self.config, self.seed = config, seed
        self.split: Split = split
        self._judging = _judging_pool(config, split, seed, held_out) if config.judging else None
        if self._judging is not None:
            self.contaminated = self._judging.contaminated
            return
        ids: set[str] = set()
        self._listed = _Listed(config.sources, "epoch", seed, held_out, ids)
        self._general = _Listed(config.general_sources, "general epoch", seed, held_out, ids)
        self.contaminated = self._listed.contaminated + self._general.contaminated

    def listed_domains(self) -> set[str] | None:
        """Domains of the problems that files have; None where problems are not from files."""
        return self._listed.domains() | self._general.domains() if self.config.sources else None

    def domains(self) -> set[str]:
        """Domains that problems of this pool can have."""
        if self._judging is not None:
            return {JUDGING}
        domains = self._listed.domains() if self.config.sources else set(self.config.families)
        if not self.config.instruction_share:
            return domains
        general = self._general.domains() if self.config.general_sources else self.config.instruction_domains()
        return domains | general

    def listed(self) -> list[Problem]:
        """The problems that files have."""
        return [] if self._judging is not None else [*self._listed.problems, *self._general.problems]

    def draw(self, start: int, count: int, instruction_share: float | None = None) -> list[Problem]:
        """Problems start, ..., start + count - 1. `instruction_share` overrides the recipe's, for schedules."""
        share = self.config.instruction_share if instruction_share is None else instruction_share
        return [self._problem(index, share) for index in range(start, start + count)]

    def draw_distinct(self, count: int, instruction_share: float) -> list[Problem]:
        """The first `count` problems with different questions; fewer when the pool has no more."""
        distinct: dict[str, Problem] = {}
        for index in range(20 * count):
            if len(distinct) == count:
                break
            problem = self._problem(index, instruction_share)
            distinct.setdefault(problem.question, problem)
        return list(distinct.values())

    def _problem(self, index: int, instruction_share: float) -> Problem:
        if self._judging is not None:
            return self._judging.problem(index)
        rng = random.Random(f"{self.seed}-{self.split}-{index}")
        language = self.config.languages[index % len(self.config.languages)]
        if rng.random() < instruction_share:
            if self.config.general_sources:
                return self._general.problem(index)
            if self.config.safety_share and rng.random() < self.config.safety_share:
                return safety_problem(index, self.split, language, self.seed)
            return instruction_problem(index, self.split, language, self.seed)
        if self.config.sources:
            return self._listed.problem(index)
        # Alternate languages within a family: index counts (family, language) pairs.
        family = self.config.families[index // len(self.config.languages) % len(self.config.families)]
        level = rng.choice(self.config.levels)
        if family in WORD_FAMILIES:
            told = word_problem(family, level, index, self.split, self.seed)
        else:
            told = family_problem(family, level, index, self.split, language, self.seed)
        return with_instruction(told, self.config.instruction) if self.config.instruction else told


class _Listed:
    """All problems of some sources, in another order in every epoch. Raises SourceError when sources hold none."""

    def __init__(
        self, sources: Sequence[ProblemSource], name: str, seed: int, held_out: Sequence[ProblemSource], ids: set[str]
    ) -> None:
        """`ids`: those taken by other sources, to which these are added."""
        listed = (_with_own_id(p, number, ids) for number, s in enumerate(sources, start=1) for p in read_problems(s))
        clean = decontaminate(listed, held_out_texts(held_out if sources else ()), problem_texts)
        self.problems, self.contaminated = clean.kept, clean.dropped_count
        self._name, self._seed = name, seed
        self._orders: dict[int, list[int]] = {}  # of the last epoch drawn from
        if sources and not self.problems:
            found = f" that are not held out ({self.contaminated} are)" if self.contaminated else ""
            raise SourceError(f"no problems in {', '.join(source.path for source in sources)}{found}")

    def domains(self) -> set[str]:
        return {problem.domain for problem in self.problems}

    def problem(self, index: int) -> Problem:
        epoch, place = divmod(index, len(self.problems))
        if epoch not in self._orders:
            order = list(range(len(self.problems)))
            random.Random(f"{self._seed}-{self._name}-{epoch}").shuffle(order)
            self._orders = {epoch: order}
        return self.problems[self._orders[epoch][place]]


def _with_own_id(problem: Problem, number: int, ids: set[str]) -> Problem:
    """Two sources may count from 1 both; what is asked and graded is told apart by ids. `number`: of the source."""
    own = problem.id
    while own in ids:
        own = f"{own}@{number}"
    ids.add(own)
    return problem if own == problem.id else replace(problem, id=own)


def _judging_pool(config: ProblemsConfig, split: Split, seed: int, held_out: Sequence[ProblemSource]) -> Any:
    from data.judging_pool import JudgingPool  # imports pyarrow, which other problems need not

    assert config.judging is not None
    return JudgingPool(config.judging, split, seed, config.languages, held_out_texts(held_out))

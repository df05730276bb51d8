"""The problems a stage draws from: procedural families, general instructions, your own files, in stated shares."""

import random
from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from data.config import JudgingConfig, ProblemSource
from data.decontaminate import decontaminate, problem_texts
from data.families import FAMILIES, LANGUAGES, LEVELS, Split
from data.families import problem as family_problem
from data.instructions import instruction_problem
from data.problems import Problem
from data.safety_prompts import safety_problem
from data.schemas import SourceError
from data.sources import held_out_texts, read_problems


class ProblemsConfig(BaseModel, extra="forbid", frozen=True):
    families: tuple[str, ...] = Field(default=FAMILIES, description="procedural families to draw from; all of them")
    levels: tuple[int, ...] = Field(default=LEVELS, description="difficulty levels, 1 (easy) to 3, in equal shares")
    languages: tuple[str, ...] = Field(default=LANGUAGES, description="languages of the prompts, in equal shares")
    instruction_share: float = Field(
        default=0.0, ge=0, le=1, description="share of general instructions with verifiable checks (domain 'general')"
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

    @field_validator("families", "levels", "languages")
    @classmethod
    def _there_is_data(cls, chosen: tuple[Any, ...], info: Any) -> tuple[Any, ...]:
        known = {"families": FAMILIES, "levels": LEVELS, "languages": LANGUAGES}[info.field_name]
        if not chosen or set(chosen) - set(known):
            raise ValueError(f"{info.field_name}: choose one or more of {', '.join(map(str, known))}")
        return chosen

    @model_validator(mode="after")
    def _judging_stands_alone(self) -> Self:
        if self.judging is not None and (self.sources or self.instruction_share):
            raise ValueError(
                "problems.judging takes the place of all other problems; drop sources and instruction_share"
            )
        return self


class ProblemPool:
    """An endless, reproducible sequence of problems: number i is always the same one."""

    def __init__(self, config: ProblemsConfig, split: Split, seed: int, held_out: Sequence[ProblemSource] = ()):
        """`held_out`: benchmarks; listed problems, and items to judge, that share 10 words in a row with them are left
        out and counted."""
        self.config, self.seed = config, seed
        self.split: Split = split
        self._orders: dict[int, list[int]] = {}  # of the last epoch drawn from
        self._judging = _judging_pool(config, split, seed, held_out) if config.judging else None
        if self._judging is not None:
            self._listed, self.contaminated = [], self._judging.contaminated
            return
        listed = (problem for source in config.sources for problem in read_problems(source))
        clean = decontaminate(listed, held_out_texts(held_out), problem_texts)
        self._listed, self.contaminated = clean.kept, clean.dropped_count
        if config.sources and not self._listed:
            found = f" that are not held out ({self.contaminated} are)" if self.contaminated else ""
            raise SourceError(f"no problems in {', '.join(source.path for source in config.sources)}{found}")

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
            if self.config.safety_share and rng.random() < self.config.safety_share:
                return safety_problem(index, self.split, language, self.seed)
            return instruction_problem(index, self.split, language, self.seed)
        if self._listed:
            return self._shuffled(index)
        # Alternate languages within a family: index counts (family, language) pairs.
        family = self.config.families[index // len(self.config.languages) % len(self.config.families)]
        return family_problem(family, rng.choice(self.config.levels), index, self.split, language, self.seed)

    def _shuffled(self, index: int) -> Problem:
        epoch, place = divmod(index, len(self._listed))
        if epoch not in self._orders:
            order = list(range(len(self._listed)))
            random.Random(f"{self.seed}-epoch-{epoch}").shuffle(order)
            self._orders = {epoch: order}
        return self._listed[self._orders[epoch][place]]


def _judging_pool(config: ProblemsConfig, split: Split, seed: int, held_out: Sequence[ProblemSource]) -> Any:
    from data.judging_pool import JudgingPool  # imports pyarrow, which other problems need not

    assert config.judging is not None
    return JudgingPool(config.judging, split, seed, config.languages, held_out_texts(held_out))

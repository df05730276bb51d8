"""Settings of the traces stage. Free of torch and numpy, so that recipes load fast."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, FilePath, model_validator

from data.config import OPERATIONAL
from rewards.config import RewardSpec
from rewards.endpoint_config import ServerConfig
from rollouts.config import JudgeServiceConfig, RolloutConfig
from sft.config import CurationConfig
from sft.filters import FilterConfig

_OF_SAMPLING = (
    *("problems", "prompts", "samples_per_prompt", "rollout", "generator", "reward_workers", "rewards", "judges"),
    "chunk_prompts",
)


class TeacherConfig(ServerConfig, extra="forbid", frozen=True, allow_inf_nan=False):
    """A teacher behind OpenAI's chat API. How it samples is in `rollout`; its own server renders the prompt."""

    url: str = Field(
        min_length=1, description="address up to and with /v1, e.g. http://127.0.0.1:8000/v1; no default, it is yours"
    )
    model: str = Field(min_length=1, description="name of the model as the server knows it; no default")
    concurrency: Annotated[int, OPERATIONAL] = Field(
        default=32, ge=1, description="requests at a time; long answers are batched well by a server of several GPUs"
    )
    deadline_s: Annotated[float, OPERATIONAL] = Field(
        default=1800.0, gt=0, description="seconds for one whole answer; 32,768 tokens take that long at 18 a second"
    )
    retries: Annotated[int, OPERATIONAL] = Field(
        default=3, ge=0, description="further tries of an answer that does not come, after 2, 4, 8, ... seconds"
    )
    failed_limit: Annotated[float, OPERATIONAL] = Field(
        default=0.05,
        ge=0,
        le=1,
        description="largest share of a chunk's answers that may be missing after all tries, refused or late; they are "
        "counted as no_answer. Above it the stage stops, and goes on from there when it is run again",
    )


class NearDuplicatesConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Rows that are nearly the same as one kept before them, found by MinHash-LSH (`distill.near_duplicates`)."""

    threshold: float | None = Field(
        default=0.8,
        gt=0,
        le=1,
        description="a row is dropped when its estimated Jaccard similarity with one kept before it is at least this: "
        "the share of the shingles in either that are in both. 0.8 is that of Lee et al. (arXiv:2107.06499), FineWeb "
        "aims at 0.75; null keeps near duplicates",
    )
    shingle_words: int = Field(
        default=5,
        ge=1,
        description="words in a row that make a shingle; 5 in Lee et al. and FineWeb (arXiv:2406.17557)",
    )
    of: Literal["conversation", "response"] = Field(
        default="conversation",
        description="what is compared: all turns, or the last answer alone, which also finds one answer to several "
        "questions, and takes answers that share a template for one",
    )


class TracesConfig(CurationConfig, extra="forbid", frozen=True):
    """Data for a student: a teacher's samples or rows of your own; verified, filtered, deduplicated, decontaminated."""

    rollout: RolloutConfig = Field(
        default=RolloutConfig(temperature=0.6, top_p=0.95),
        description="how the teacher samples; 0.6 and 0.95 are what DeepSeek-R1 is used and evaluated with (D.1)",
    )
    endpoint: TeacherConfig | None = Field(
        default=None, description="a teacher behind OpenAI's API in place of the input `policy`; none"
    )
    solutions: bool = Field(
        default=False,
        description="the problems' own written solutions in place of a teacher's samples: GSM8K, MATH, word problems. "
        "They are verified and filtered alike",
    )
    source: tuple[FilePath, ...] = Field(
        default=(),
        description="files of conversations (JSONL, parquet) that are filtered in place of samples; none: there is a "
        "teacher. Relative to the recipe. The input `dataset` is the same for another stage's rows",
    )
    rewards: tuple[RewardSpec, ...] = Field(
        default=(RewardSpec(use="rewards.accuracy:Accuracy"),), description="what a sample must pass"
    )
    judges: JudgeServiceConfig = Field(
        default=JudgeServiceConfig(),
        description="the processes of the inputs `judge` and `grm`, where rewards ask a judge",
    )
    filters: FilterConfig = Field(default=FilterConfig(), description="correct, readable, one language")
    near_duplicates: NearDuplicatesConfig = Field(
        default=NearDuplicatesConfig(), description="rows that are nearly the same; exact ones are always dropped"
    )
    suites: tuple[FilePath, ...] = Field(
        default=(),
        description="evaluate recipes (as those in recipes/suites) whose problem sources are kept out like "
        "held_out_sources; none: a hub's data sets need a network. Relative to the recipe",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens of all answers together: rows are chosen by seed until the next would go beyond; none: all",
    )
    tokenizer: FilePath | None = Field(
        default=None,
        description="a tokenizer.json, such as the student's, that counts tokens; none: the teacher's own count, or a "
        "quarter of the UTF-8 bytes where there is no checkpoint (about right for English prose)",
    )
    rows_per_shard: int = Field(
        default=100_000, ge=1, description="rows of one parquet file; 100,000 of a few KB each are some hundred MB"
    )
    filter_workers: Annotated[int, OPERATIONAL] = Field(
        default=2, ge=1, description="processes that filter `source` or `dataset`; the result does not depend on it"
    )

    @model_validator(mode="after")
    def _there_is_one_origin(self) -> Self:
        given = {"endpoint": self.endpoint is not None, "solutions": self.solutions, "source": bool(self.source)}
        both = [name for name, there in given.items() if there]
        if len(both) > 1:
            raise ValueError(f"{' and '.join(both)} are both given; rows come from one of them: drop the other")
        if self.solutions and (unused := self.model_fields_set & {"samples_per_prompt", "rollout", "generator"}):
            raise ValueError(f"{min(unused)} would be ignored: solutions are not sampled; leave it out")
        ignored = [name for name in _OF_SAMPLING if self.source and name in self.model_fields_set]
        if ignored:
            raise ValueError(f"{ignored[0]} would be ignored: rows of `source` are filtered, not sampled; leave it out")
        return self

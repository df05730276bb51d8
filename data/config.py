"""Where problems and preferences come from: the keys of one entry under `sources:` in a recipe."""

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

RowSchema = Literal[
    "auto", "r1", "gsm8k", "math", "aime", "gpqa", "mmlu", "ifeval", "live_code_bench", "prompts", "columns"
]
PreferenceSchema = Literal["auto", "pairs", "ranked", "safety", "ultrafeedback", "helpsteer2", "helpsteer2_preference"]
JudgeStyle = Literal["full", "terse"]  # how a generative reward model is asked
JUDGE_ROLES = ("grm", "judge")  # inputs of a stage that judge for its rewards, each served by processes of its own
JUDGING = "judging"  # domain and checker of problems that ask for a judgement
FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
# Marks of fields, for the readers of recipes:
LOCAL_OR_HUB = "a path, or the name of something on a hub"
OPERATIONAL = "how a stage is run, not what it makes: a stage that was cut off goes on with another value"


HUB_FILE = "hf://datasets/"  # how the path of one file of a hub data set begins


def is_local(written: str, folder: Path = Path()) -> bool:
    """Whether `written` means a path: it looks like one, or there is such a file or folder under `folder`."""
    if written.startswith(HUB_FILE):
        return False
    return written.startswith(("./", "../", "/", "~")) or written.endswith(FILE_SUFFIXES) or (folder / written).exists()


class Columns(BaseModel, extra="forbid", frozen=True):
    """Which column of your own file holds what; used with `row_schema: columns`."""

    question: str = Field(default="question", description="column with the question text; the usual name")
    answer: str = Field(default="answer", description="column with the ground truth; the usual name")
    id: str | None = Field(default=None, description="column with a unique id; none: the row number is used")
    language: str | None = Field(default=None, description="column with the ISO 639-1 code; none: `language` decides")
    domain: str | None = Field(default=None, description="column with the domain; none: `domain` decides")
    checker: str | None = Field(default=None, description="column with the grader's name; none: `checker` decides")


class RowSource(BaseModel, extra="forbid", frozen=True):
    """One file, folder or Hugging Face dataset of rows."""

    path: Annotated[str, LOCAL_OR_HUB] = Field(
        description="file (.jsonl, .jsonl.gz, .parquet), folder, hub name or one file of a hub data set "
        "(hf://datasets/OWNER/NAME/FILE); no default, data is yours"
    )
    split: str = Field(default="train", description="split of a folder or hub dataset; train keeps test data unseen")
    subset: str | None = Field(
        default=None, description="configuration of a hub dataset (gsm8k: main); most have one only"
    )
    revision: str | None = Field(default=None, description="commit or tag of a hub dataset; none: the newest one")


class Where(BaseModel, extra="forbid", frozen=True):
    """Which values of a column are kept. Texts compare as texts, so ISO dates do by time; dates are written so."""

    at_least: str | float | None = Field(default=None, description="the smallest value kept; none: no lower end")
    below: str | float | None = Field(default=None, description="the smallest value not kept; none: no upper end")
    one_of: tuple[str | float, ...] = Field(default=(), description="the values kept; empty: all between the ends")

    @field_validator("at_least", "below", mode="before")
    @classmethod
    def _dates_are_texts(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, date) else value  # YAML reads 2024-08-01 as a date


class ProblemSource(RowSource, extra="forbid", frozen=True):
    """A RowSource of problems, and how to read its rows."""

    row_schema: RowSchema = Field(default="auto", description="layout of the rows; auto decides by the first row")
    columns: Columns = Field(default=Columns(), description="column names for `row_schema: columns`")
    name: str | None = Field(
        default=None,
        description="prefix of generated ids; none: folder and file name",
    )
    where: dict[str, Where] = Field(
        default={},
        description="column -> which rows to keep, e.g. {contest_date: {at_least: 2024-08-01, below: 2025-02-01}}; all",
    )
    limit: int | None = Field(default=None, ge=1, description="problems to keep, after shuffling; none: all")
    shuffle_seed: int | None = Field(default=None, description="seed of the shuffle; none: the order of the file")
    shuffle_buffer: int = Field(
        default=10_000,
        ge=1,
        description="problems held while shuffling; a smaller source is shuffled whole, memory is bounded",
    )
    language: str = Field(
        default="auto",
        pattern=r"^(auto|[a-z]{2})$",
        description="ISO 639-1 code of the questions; auto: zh where Han characters outnumber Latin words, else en",
    )
    domain: str | None = Field(default=None, description="domain for metrics; none: the schema's name, e.g. gsm8k")
    checker: str = Field(default="math", description="grader for rows that name none; these sets are maths")
    instruction: str = Field(
        default="",
        description="line added to every question, e.g. 'Put your final answer within \\boxed{}.'; empty: none, as "
        "tiny models cannot follow one",
    )
    skip_bad_rows: bool = Field(
        default=False,
        description="drop rows that do not fit the schema, with a warning (a broken file always stops); false: stop "
        "at the first one, so nothing is lost silently",
    )

    @model_validator(mode="after")
    def _columns_need_their_schema(self) -> Self:
        if self.columns != Columns() and self.row_schema != "columns":
            raise ValueError(
                f"ProblemSource: `columns` only works with `row_schema: columns`, got row_schema: {self.row_schema}"
            )
        return self


class PreferenceSource(RowSource, extra="forbid", frozen=True):
    """A RowSource of preference pairs, ranked responses or safety labels, mostly labelled by people."""

    row_schema: PreferenceSchema = Field(
        default="auto", description="layout of the rows; auto decides by the first row"
    )
    limit: int | None = Field(default=None, ge=1, description="records to keep, in the order of the file; none: all")
    language: str = Field(
        default="auto",
        pattern=r"^(auto|[a-z]{2})$",
        description="ISO 639-1 code of the prompts; auto: zh where Han characters outnumber Latin words, else en",
    )
    bad_row_limit: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest share of rows that may be left out as malformed, empty or identical; they are counted and "
        "the first of each kind is named. Sets labelled by people have some, a wrong schema has nothing else. Ties and "
        "rows without a label are honest and do not count",
    )


class JudgingConfig(BaseModel, extra="forbid", frozen=True):
    """Problems that ask for a judgement of responses: what a generative reward model (GRM) is trained on."""

    style: JudgeStyle = Field(
        default="full",
        description="how the judge is asked: full (principles, critiques and scores explained) or terse, for models of "
        "a few million parameters that only know the layout they were taught",
    )
    responses: tuple[int, ...] = Field(
        default=(2,),
        min_length=1,
        description="numbers of responses of procedural items, in turn; 2 as in pairs. Listed items have their own",
    )
    sources: tuple[PreferenceSource, ...] = Field(
        default=(),
        description="files or data sets of pairs or ranked responses; none: procedural items of the tiny chain. Items "
        "without a strictly best response are left out and counted",
    )

"""Length: overlong shaping, cosine length, token budget. Each is a value in [0, 1].

Penalties of the papers are shifted up by a constant to stay in [0, 1]; a constant cancels in the group advantage.
Length is that of the whole completion, in words, characters or tokens of a given tokenizer.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from data.problems import Problem
from rewards.accuracy import Accuracy, AccuracyOptions
from rewards.repetition import units_of
from rewards.reward import Score, Verdict

Unit = Literal["words", "characters", "tokens"]


class LengthOptions(BaseModel, extra="forbid", frozen=True):
    """What length is measured in."""

    unit: Unit = Field(
        default="words",
        description="words (Chinese and Japanese characters count as one each), characters, or tokens; words need no "
        "tokenizer.",
    )
    tokenizer: str | None = Field(
        default=None, description="tokenizer.json of the policy; needed for unit tokens, and only there."
    )

    def measure(self, text: str) -> int:
        """Length of a text. Raises ValueError when tokens are asked for without a tokenizer."""
        if self.unit == "characters":
            return len(text)
        if self.unit == "words":
            return len(units_of(text))
        if self.tokenizer is None:
            raise ValueError("unit: tokens needs the option tokenizer, the path of a tokenizer.json.")
        return len(_tokenizer(self.tokenizer).encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=4)
def _tokenizer(path: str):
    from tokenizers import Tokenizer

    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"tokenizer: {file} does not exist.")
    return Tokenizer.from_file(str(file))


class OverlongOptions(LengthOptions, extra="forbid", frozen=True):
    """Options of the overlong reward."""

    max_length: int = Field(default=4096, ge=1, description="Length from which the value is 0.")
    buffer: int = Field(
        default=1024, ge=0, description="The value falls linearly over this much before max_length; 0 is a hard limit."
    )


class Overlong:
    """Soft overlong punishment (DAPO, arXiv:2503.14476, Eq. 13) plus 1: 1, falling to 0 over the buffer."""

    name = "overlong"
    judges = frozenset({"length"})
    Options = OverlongOptions

    def __init__(self, options: OverlongOptions | None = None):
        self.options = options or OverlongOptions()
        if self.options.buffer > self.options.max_length:
            raise ValueError(f"buffer {self.options.buffer} is larger than max_length {self.options.max_length}.")
        self.options.measure("")  # a missing tokenizer is found before the run starts

    def __call__(self, problem: Problem, completion: str) -> Score:
        length, limit, buffer = self.options.measure(completion), self.options.max_length, self.options.buffer
        left = limit - length
        value = float(left >= 0) if buffer == 0 else min(1.0, max(0.0, left / buffer))
        return _score(value, f"{length} {self.options.unit} of {limit}")


class TokenBudgetOptions(LengthOptions, extra="forbid", frozen=True):
    """Options of the budget reward."""

    budget: int | None = Field(
        default=None, ge=1, description="Length asked for; none takes metadata['budget'] of each problem."
    )
    tolerance: float = Field(
        default=0.5, gt=0, description="Share of the budget by which the length may miss it before the value is 0."
    )
    exact: bool = Field(
        default=False, description="True punishes shorter completions too; false treats the budget as a maximum."
    )


class TokenBudget:
    """How well a length that the prompt asks for is kept: 1 at the budget, 0 at `tolerance` from it, linear between.

    After L1 (arXiv:2503.04697), which adds it to accuracy in an exact and a maximum form.
    """

    name = "budget"
    judges = frozenset({"length"})
    Options = TokenBudgetOptions

    def __init__(self, options: TokenBudgetOptions | None = None):
        self.options = options or TokenBudgetOptions()
        self.options.measure("")

    def __call__(self, problem: Problem, completion: str) -> Score:
        budget = self.options.budget or problem.metadata.get("budget")
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
            return Score.error(f"Problem {problem.id} has no whole number metadata['budget'], and no budget is set.")
        length = self.options.measure(completion)
        missed = abs(length - budget) if self.options.exact else max(0, length - budget)
        return _score(max(0.0, 1 - missed / (self.options.tolerance * budget)), f"{length} of {budget}")


class CosineOptions(LengthOptions, extra="forbid", frozen=True):
    """Options of the cosine reward."""

    max_length: int = Field(default=4096, ge=1, description="Length at which the long end is reached.")
    right_short: float = Field(default=1.0, ge=0, le=1, description="Value of a right answer of length 0.")
    right_long: float = Field(default=0.5, ge=0, le=1, description="Value of a right answer at max_length.")
    wrong_short: float = Field(
        default=0.0, ge=0, le=1, description="Value of a wrong answer of length 0; the paper's is the lowest of all."
    )
    wrong_long: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Value of a wrong answer at max_length. Above wrong_short it pays for thinking longer where the "
        "answer is wrong, as in the paper, and for padding, so 0 by default.",
    )
    accuracy: AccuracyOptions = Field(default=AccuracyOptions(), description="Options of the accuracy reward inside.")


class CosineLength:
    """Accuracy scaled by length along a half cosine (Yeo et al., arXiv:2502.03373, Eq. 1). Use it instead of accuracy.

    Beyond max_length the value is 0.
    """

    name = "accuracy"
    judges = frozenset({"answer", "length"})
    Options = CosineOptions

    def __init__(self, options: CosineOptions | None = None):
        self.options = options or CosineOptions()
        if self.options.wrong_long > self.options.right_long:
            raise ValueError("wrong_long is above right_long: long wrong answers would earn more than right ones.")
        self.options.measure("")
        self._accuracy = Accuracy(self.options.accuracy)

    def __call__(self, problem: Problem, completion: str) -> Score:
        score = self._accuracy(problem, completion)
        if score.verdict is Verdict.ERROR:
            return score
        options, length = self.options, self.options.measure(completion)
        right = score.verdict is Verdict.PASS
        short, long = (options.right_short, options.right_long) if right else (options.wrong_short, options.wrong_long)
        if length > options.max_length:
            return Score(verdict=score.verdict, value=0.0, detail=f"{score.detail}; longer than {options.max_length}")
        value = long + (short - long) * (1 + math.cos(math.pi * length / options.max_length)) / 2
        return Score(verdict=score.verdict, value=value, detail=f"{score.detail}; {length} {options.unit}")

    def close(self) -> None:
        """End the grader processes."""
        self._accuracy.close()


def _score(value: float, detail: str) -> Score:
    return Score.passed(value, detail) if value == 1 else Score.failed(value, detail)

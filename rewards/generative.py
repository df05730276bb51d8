"""A generative reward model (GRM) as a reward: it scores the completions of a problem, together or one by one.

value = mean score over the votes that could be read, less 1, by 9: in [0, 1]     (the sum of votes, scaled)

The judge is the stage's input of the name `input` (`inputs: {policy: ..., grm: ...}`). Each vote shows the completions
in another shuffled order. A completion that no vote could be read for is unscorable: the judge failed, not the answer.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field

from data.chat import parse_completion
from data.config import JudgeStyle
from data.judging import judging_messages, rubric_of
from data.preferences import Turns
from data.problems import Problem
from rewards.grm import read_vote, scaled, shuffled_orders
from rewards.judges import Judge, JudgeFailed, RemoteJudge, seed_of
from rewards.reward import Score

Part = Literal["final", "whole"]


class GenerativeOptions(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Options of the generative reward."""

    input: str = Field(default="grm", description="the stage's input that judges")
    style: JudgeStyle = Field(default="full", description="how the judge is asked; that which it was trained with")
    votes: int = Field(default=4, ge=1, description="judgements per completion; the paper gains up to 32, 4 is cheap")
    together: int = Field(
        default=4,
        ge=1,
        description="completions shown in one judgement, at most; larger groups are cut anew for each vote. 1 judges "
        "each alone. More tell them apart better and need a longer context",
    )
    part: Part = Field(
        default="final", description="what is judged: the final part alone, as R1's helpful reward, or the whole text"
    )
    pass_from: float = Field(default=0.5, ge=0, le=1, description="value from which the verdict is a pass; the middle")
    deadline_s: float = Field(
        default=600.0, gt=0, description="seconds for one batch of judgements; then its completions are unscorable"
    )


@dataclass(slots=True)
class _Tally:
    """The votes about one response."""

    total: int = 0
    votes: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class Generative:
    """The mean score of a judge. Needs `connect` before it scores."""

    name = "generative"
    judges = frozenset({"answer"})
    Options = GenerativeOptions

    def __init__(self, options: GenerativeOptions | None = None):
        self.options = options or GenerativeOptions()
        self._judge: Judge | None = None

    def connect(self, inputs: Mapping[str, Any]) -> None:
        """Take the judge from what the stage hands to its rewards. Raises ValueError when it is not among it."""
        self._judge = judge_from(inputs, self.options.input, self.options.deadline_s, self.name)

    def __call__(self, problem: Problem, completion: str) -> Score:
        return self.score_batch([problem], [completion])[0]

    def score_batch(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """Completions of one problem are judged together. Equal texts are judged once and get the same score."""
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, problem in enumerate(problems):
            rows_of[problem.id].append(row)
        scores: dict[int, Score] = {}
        for rows in rows_of.values():
            texts = [judged_part(completions[row], self.options.part) for row in rows]
            by_text = self._score_texts(problems[rows[0]], list(dict.fromkeys(filter(str.strip, texts))))
            scores |= {row: by_text.get(text, _NOTHING) for row, text in zip(rows, texts, strict=True)}
        return [scores[row] for row in range(len(problems))]

    def _score_texts(self, problem: Problem, texts: Sequence[str]) -> dict[str, Score]:
        try:
            tallies = self._vote(problem, texts) if texts else []
        except JudgeFailed as error:
            return dict.fromkeys(texts, Score.error(str(error)))
        return {text: self._score(tally) for text, tally in zip(texts, tallies, strict=True)}

    def _vote(self, problem: Problem, texts: Sequence[str]) -> list[_Tally]:
        """One tally per text. Every vote shuffles the texts and shows them in lots of `together`."""
        if self._judge is None:
            raise JudgeFailed(f"the reward {self.name} was given no judge: call connect first")
        seed, options = seed_of(problem.id, *texts), self.options
        orders = shuffled_orders(len(texts), options.votes, seed, problem.id)
        lots = [lot for order in orders for lot in cut_evenly(order, options.together)]
        answers = self._judge.answers([self._prompt(problem, [texts[i] for i in lot]) for lot in lots], seed)
        tallies = [_Tally() for _ in texts]
        for lot, answer in zip(lots, answers, strict=True):
            vote = read_vote(range(len(lot)), answer)
            for place, text in enumerate(lot):
                if vote.scores is None:
                    tallies[text].faults[vote.fault] += 1
                else:
                    tallies[text].total += vote.scores[place]
                    tallies[text].votes += 1
        return tallies

    def _prompt(self, problem: Problem, texts: Sequence[str]) -> Turns:
        rubric = rubric_of(problem.metadata)
        return judging_messages(problem.messages, texts, self.options.style, problem.language, rubric)

    def _score(self, tally: _Tally) -> Score:
        if not tally.votes:
            reasons = ", ".join(f"{reason} {count}" for reason, count in tally.faults.most_common())
            return Score.error(f"no judgement could be read ({reasons})")
        value = scaled(tally.total, tally.votes)
        detail = f"mean score {tally.total / tally.votes:.3g} of {tally.votes} votes"
        return Score.passed(value, detail) if value >= self.options.pass_from else Score.failed(value, detail)


_NOTHING = Score.failed(detail="there is no final part to judge")


def judged_part(completion: str, part: Part) -> str:
    """What of a completion is shown to a judge."""
    if part == "whole":
        return completion
    parsed = parse_completion(completion)
    return parsed.final if parsed.answer is None else parsed.answer


def judge_from(inputs: Mapping[str, Any], role: str, deadline_s: float, reward: str) -> Judge:
    """The judge a stage hands on: the handle of its actor, or an object that answers itself.

    Raises ValueError when the role is empty.
    """
    if role not in inputs:
        raise ValueError(
            f"the reward {reward} needs the stage's input '{role}', e.g. inputs: {{{role}: grm_rl}}; r1 reward takes "
            f"--input {role}=CHECKPOINT."
        )
    given = inputs[role]
    return RemoteJudge(given, deadline_s) if hasattr(getattr(given, "answers", None), "remote") else given


def cut_evenly(order: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Lots of at most `most`, whose sizes differ by at most one."""
    count = -(-len(order) // most)
    return [tuple(order[lot::count]) for lot in range(count)]

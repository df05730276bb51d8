"""A generative reward model (GRM) as a reward: it scores the completions of a problem, together or one by one.

value = mean score over the votes that could be read, less 1, by 9: in [0, 1]     (the sum of votes, scaled)

The judge is the stage's input of the name `input` (`inputs: {policy: ..., grm: ...}`). Each vote shows the completions
in another shuffled order. A completion that no vote could be read for is unscorable: the judge failed, not the answer.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from data.config import JudgeStyle
from data.judging import judging_messages, rubric_of
from data.preferences import Turns
from data.problems import Problem
from rewards.grm import UNREADABLE, read_vote, scaled, shuffled_orders
from rewards.judged import Judged, JudgedOptions, Part, judged_part
from rewards.judges import JudgeFailed, seed_of
from rewards.reward import Score


class GenerativeOptions(JudgedOptions, extra="forbid", frozen=True, allow_inf_nan=False):
    """Options of the generative reward."""

    input: str = Field(default="grm", description="the stage's input that judges, where there is no `endpoint`")
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


@dataclass(slots=True)
class _Tally:
    """The votes about one response."""

    total: int = 0
    votes: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class Generative(Judged):
    """The mean score of a judge."""

    name = "generative"
    judges = frozenset({"answer"})
    Options = GenerativeOptions

    def __init__(self, options: GenerativeOptions | None = None):
        self.options = options or GenerativeOptions()
        super().__init__(self.options)

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
            return dict.fromkeys(texts, Score.error(str(error), retry=True))
        return {text: self._score(tally) for text, tally in zip(texts, tallies, strict=True)}

    def _vote(self, problem: Problem, texts: Sequence[str]) -> list[_Tally]:
        """One tally per text. Every vote shuffles the texts and shows them in lots of `together`."""
        seed, options = seed_of(problem.id, *texts), self.options
        orders = shuffled_orders(len(texts), options.votes, seed, problem.id)
        lots = [lot for order in orders for lot in cut_evenly(order, options.together)]
        answers = self.ask([self._prompt(problem, [texts[i] for i in lot]) for lot in lots], seed)
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
            of_server = any(fault not in UNREADABLE for fault in tally.faults)
            return Score.error(f"no judgement could be read ({reasons})", retry=of_server)
        value = scaled(tally.total, tally.votes)
        detail = f"mean score {tally.total / tally.votes:.3g} of {tally.votes} votes"
        return Score.passed(value, detail) if value >= self.options.pass_from else Score.failed(value, detail)


_NOTHING = Score.failed(detail="there is no final part to judge")


def cut_evenly(order: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Lots of at most `most`, whose sizes differ by at most one."""
    count = -(-len(order) // most)
    return [tuple(order[lot::count]) for lot in range(count)]

"""The rule reward that trains a generative reward model: did its scores say what is known? (DeepSeek-GRM, eq. 5.)

+1 when the best response has strictly the highest score, or when the score of a single response equals its label; -1
otherwise. There is no format reward: a judgement that cannot be read is a wrong one, and a larger KL coefficient keeps
the format (section 3.2).
"""

import json

from data.config import JUDGING
from data.judging import HIGHEST, LOWEST
from data.problems import Problem
from rewards.grm_text import Unreadable, read_scores
from rewards.reward import Score, Verdict

RIGHT, WRONG = 1.0, -1.0


class GRMRule:
    """+1 or -1 for the scores that a completion ends with. Its problems are those of `data.judging.judging_problem`."""

    name = "grm_rule"
    judges = frozenset({"answer"})
    checkers = frozenset({JUDGING})

    def __call__(self, problem: Problem, completion: str) -> Score:
        try:
            count, place, label = _read_truth(problem.ground_truth)
        except (ValueError, TypeError, KeyError, RecursionError):
            return Score.error(
                f'The ground truth of problem {problem.id} is neither {{"n": 2, "best": 0}} nor {{"n": 1, "label": 7}}.'
            )
        scores = read_scores(completion, count)
        if isinstance(scores, Unreadable):
            return Score(verdict=Verdict.FAIL, value=WRONG, detail=scores.reason, unreadable=True)
        if label is not None:
            right = scores[0] == label
        else:
            right = all(scores[place] > score for other, score in enumerate(scores) if other != place)
        return Score.passed(RIGHT, f"scores {scores}") if right else Score.failed(WRONG, f"scores {scores}")


def _read_truth(text: str) -> tuple[int, int, int | None]:
    """(responses, place of the best, label of a single one). Raises on anything else, KeyError included."""
    truth = json.loads(text)
    count = truth["n"]
    place, label = (0, truth["label"]) if count == 1 else (truth["best"], None)
    whole = all(type(value) is int for value in (count, place)) and (label is None or type(label) is int)
    if not whole or not 0 <= place < count or (label is not None and not LOWEST <= label <= HIGHEST):
        raise ValueError("out of range")
    return count, place, label

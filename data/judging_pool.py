"""The judging items a stage draws from: ranked responses from files, or procedural ones of the tiny chain."""

import random
from collections.abc import Sequence

from data.config import JudgingConfig
from data.instructions import Split
from data.judging import in_order, judging_problem, judging_truth, procedural_item
from data.preference_sources import Tally, read_ranked
from data.preferences import BadRecord, RankedResponses
from data.problems import Problem
from data.schemas import SourceError


class JudgingPool:
    """An endless, reproducible sequence of items: number i is always the same, its responses in the same order."""

    def __init__(self, config: JudgingConfig, split: Split, seed: int, languages: Sequence[str]):
        """Raises SourceError when the sources hold no item that a judgement can be right about."""
        self.config, self.seed, self.languages = config, seed, tuple(languages)
        self.split: Split = split
        self.tally = Tally()
        self._listed = [item for source in config.sources for item in read_ranked(source, self.tally)]
        self._listed = [item for item in self._listed if self._has_right_judgement(item)]
        if config.sources and not self._listed:
            refused = ", ".join(f"{count} {reason}" for reason, count in self.tally.refused.most_common())
            raise SourceError(f"no item of judging.sources has a strictly best response ({refused or 'none at all'})")

    def item(self, index: int) -> RankedResponses:
        """Listed items come in the order of their files, again from the start after the last one."""
        language, place = self.languages[index % len(self.languages)], index // len(self.languages)
        if not self._listed:
            counts = self.config.responses
            return procedural_item(place // len(counts), self.split, language, self.seed, counts[place % len(counts)])
        listed = self._listed[index % len(self._listed)]
        order = list(range(len(listed.responses)))
        random.Random(f"order {self.seed} {index}").shuffle(order)  # files put the chosen one first
        return in_order(listed, order)

    def problem(self, index: int, hinted: bool = False) -> Problem:
        return judging_problem(self.item(index), self.config.style, hinted)

    def _has_right_judgement(self, item: RankedResponses) -> bool:
        try:
            judging_truth(item)
        except BadRecord as fault:
            self.tally.refuse(item.id, fault)
            self.tally.kept -= 1
            return False
        return True

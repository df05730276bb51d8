"""The judging items a stage draws from: ranked responses from files, or procedural ones of the tiny chain."""

import random
from collections.abc import Iterable, Sequence

from data.config import JudgingConfig
from data.decontaminate import decontaminate
from data.instructions import Split
from data.judging import in_order, judging_problem, judging_truth, procedural_item
from data.preference_sources import Tally, read_ranked
from data.preferences import BadRecord, RankedResponses, record_texts
from data.problems import Problem
from data.schemas import SourceError


class JudgingPool:
    """An endless, reproducible sequence of items: number i is always the same, its responses in the same order."""

    def __init__(
        self,
        config: JudgingConfig,
        split: Split,
        seed: int,
        languages: Sequence[str],
        held_out_texts: Iterable[str] = (),
    ):
        """Listed items that share 10 words in a row with `held_out_texts` are left out and counted.

        Raises SourceError when the sources hold no item that a judgement can be right about.
        """
        self.config, self.seed, self.languages = config, seed, tuple(languages)
        self.split: Split = split
        self.tally = Tally()
        listed = [item for source in config.sources for item in read_ranked(source, self.tally)]
        right = [item for item in listed if self._has_right_judgement(item)]
        clean = decontaminate(right, held_out_texts, record_texts)
        self._listed, self.contaminated = clean.kept, clean.dropped_count
        if config.sources and not self._listed:
            counts = [*self.tally.refused.most_common(), *([("held out", clean.dropped_count)] if right else [])]
            refused = ", ".join(f"{count} {reason}" for reason, count in counts)
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

"""Judges for tests, in the test's process or in an actor."""

import re


class ByLength:
    """Scores responses by their length, at most 10, and remembers what it was asked. Imported by path in actors."""

    def __init__(self, favours_first: bool = False):
        self.favours_first = favours_first
        self.asked: list[str] = []

    def answers(self, prompts, seed):
        from rewards.judges import Answer

        return [Answer(*answer) for answer in self.raw(prompts)]

    def raw(self, prompts):
        return [(self._judgement(turns[-1]["content"]), False) for turns in prompts]

    def _judgement(self, content: str) -> str:
        self.asked.append(content)
        shown = re.findall(r"^(?:\[\d+\]|## Response \d+)\n((?:> .*\n?)+)", content, re.MULTILINE)
        scores = [min(10, max(1, len(text.replace("> ", "").strip()))) for text in shown]
        if self.favours_first:
            scores[0] = 10
        return f"I measured them.\nScores: {scores}"


class ServedByLength(ByLength):
    """The same behind an actor's handle, whose answers are plain tuples."""

    def answers(self, prompts, seed):
        return self.raw(prompts)


class Says:
    """Always the same."""

    def __init__(self, *texts: str, truncated: bool = False):
        self.texts, self.truncated, self.asked = texts, truncated, []

    def answers(self, prompts, seed):
        from rewards.judges import Answer

        self.asked += [turns[-1]["content"] for turns in prompts]
        return [Answer(self.texts[n % len(self.texts)], self.truncated) for n in range(len(prompts))]


class Quotes:
    """Quotes everything that it was shown, then ends with a line of its own."""

    def __init__(self, ending: str):
        self.ending = ending

    def answers(self, prompts, seed):
        from rewards.judges import Answer

        shown = ["\n".join(re.findall("^> .*", turns[-1]["content"], re.MULTILINE)) for turns in prompts]
        return [Answer(f"They say:\n{quoted}\n{self.ending}") for quoted in shown]


class Down:
    def answers(self, prompts, seed):
        from rewards.judges import JudgeFailed

        raise JudgeFailed("nobody answers")


class NoRoom:
    def answers(self, prompts, seed):
        return [None] * len(prompts)

"""General prompts of the tiny chain that ask for two words in one sentence: thousands, one for each pair of nouns.

`data.instructions` has a few hundred prompts, few enough for a reward model to know by heart what goes with each. With
these it has to compare the words that are asked for with those that are written. They are for training only.
"""

import json
import random
from collections.abc import Sequence

from data.instructions import nouns
from data.problems import Problem

WORD_PAIR = "word_pair"  # their task
_ASKING = {"en": "Use the words {one} and {other} in a sentence.", "zh": "用“{one}”和“{other}”造一个短句。"}
_SENTENCES = {
    "en": ("I see the {one} and the {other}.", "We like the {one} and the {other}."),
    "zh": ("我看见{one}和{other}了。", "我们喜欢{one}和{other}。", "这里有{one}和{other}。"),
}


def word_pair_problem(index: int, language: str, seed: int) -> Problem:
    """The problem at `index` of an endless sequence of random pairs. Raises KeyError for a language without words."""
    words = random.Random(f"{seed} word pair {language} {index}").sample(nouns(language), 2)
    checks = [{"kind": "one_line"}, *({"kind": "use_word", "word": word} for word in words)]
    checks.append({"kind": "language", "code": language})
    return Problem(
        id=f"word-pair-{seed}-{index}-{language}",
        messages=({"role": "user", "content": _filled(_ASKING[language], words)},),
        ground_truth=json.dumps({"checks": checks}, ensure_ascii=False),
        checker="instruction",
        domain="general",
        language=language,
        metadata={"task": WORD_PAIR, "index": index, "split": "train", "arguments": {"words": words}},
    )


def both_words(problem: Problem, rng: random.Random) -> str:
    """A sentence that meets every check."""
    return _filled(rng.choice(_SENTENCES[problem.language]), problem.metadata["arguments"]["words"])


def one_word(problem: Problem, rng: random.Random) -> str:
    """Such a sentence with another word in the place of one of the two."""
    words = list(problem.metadata["arguments"]["words"])
    words[rng.randrange(2)] = rng.choice([noun for noun in nouns(problem.language) if noun not in words])
    return _filled(rng.choice(_SENTENCES[problem.language]), words)


def _filled(frame: str, words: Sequence[str]) -> str:
    return frame.format(one=words[0], other=words[1])

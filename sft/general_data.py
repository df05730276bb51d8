"""Non-reasoning rows of the curated set: an instruction, a short thought, a good answer.

R1 (B.3.3) has DeepSeek-V3 think before the answer of some general tasks; here it is a line per kind of task.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count

from data.instructions import good_answer, instruction_problem, instructions
from data.problems import Problem
from sft.refine import r1_layout

THOUGHTS = {
    "greet": {"en": "They want a short greeting that names {name}.", "zh": "需要一句提到{name}的问候。"},
    "use_word": {"en": "One short sentence with the word {word} will do.", "zh": "写一个含有{word}的短句就行。"},
    "end_with": {"en": "The sentence has to end with {word}.", "zh": "句子要以{word}结尾。"},
    "list": {"en": "They want a list of {category}, one on each line.", "zh": "需要列出几种{category}，每行一种。"},
    "repeat": {"en": "The word to repeat is {word}.", "zh": "要重复的词是{word}。"},
    "copy": {"en": "Only the case of the letters changes.", "zh": "只改变字母的大小写。"},
    "fact": {"en": "This is a question of fact, so a short answer is enough.", "zh": "这是常识问题，简短回答即可。"},
}


def general_answers(languages: Sequence[str], seed: int) -> Iterator[tuple[Problem, str]]:
    """(problem, completion), languages in turn: every train instruction three times, answered anew each time."""
    rounds = 3 * max(len(instructions("train", language)) for language in languages)
    for index in count():
        place, language = index // len(languages), languages[index % len(languages)]
        if place >= rounds:
            return
        problem = instruction_problem(place, "train", language, seed)
        rng = random.Random(f"{seed}-general-{problem.id}")
        arguments = problem.metadata["arguments"]
        thought = THOUGHTS[problem.metadata["task"]][language].format(**arguments)
        yield problem, r1_layout(thought, good_answer(problem, rng))

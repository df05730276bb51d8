"""Judgements written by template for a model too small to write its own: the layout of a judgement, and a way to judge.

Each judgement of a general instruction of the tiny chain names the instruction's checks as weighted points, says of
each response which it meets, and scores it: 10 when it meets all, else 1 to 6 by the weight of those it meets (a single
response 10 or 1). The text is this project's own invention; nothing of it comes from a model or from the papers.

    Points: river 60, one line 20, English 20
    [1] river yes, one line yes, English yes
    [2] river no, one line yes, English yes
    Scores: [10, 3]
"""

import json
import random
from typing import Any

from data.judging import HIGHEST, LOWEST, judging_problem, procedural_item
from data.preferences import RankedResponses
from data.write import DataCard, count_by, write_dataset
from rewards.instruction import read_checks
from rewards.instruction_kinds import KINDS
from sft.grm_config import GRMColdStartConfig
from training.run_log import write_stats
from training.stage import StageContext

PARTIAL = 6  # the score of a response that meets all the weight but breaks a check of next to none
MAIN_WEIGHT = 60  # percent, of the check that the instruction is about
_WORDS = {
    "en": {"points": "Points", "yes": "yes", "no": "no", "one_line": "one line", "zh": "Chinese", "en": "English"},
    "zh": {"points": "要点", "yes": "是", "no": "否", "one_line": "一句", "zh": "中文", "en": "英文"},
}
_SCORES = {"en": "Scores", "zh": "评分"}
_SIDE = ("one_line", "language")  # checks that most instructions have beside the one they are about


def run(config: GRMColdStartConfig, context: StageContext) -> None:
    rows = [_row(config, context.seed, index) for index in range(config.items)]
    card = DataCard(
        n_rows=len(rows),
        by_domain=count_by(rows, "domain"),
        by_language=count_by(rows, "language"),
        by_source=count_by(rows, "source"),
        sampling={"seed": context.seed, "written_by": "templates of sft/grm_cold_start.py", **config.model_dump()},
    )
    write_dataset(context.output, rows, card)
    write_stats(context.output, {"rows": len(rows)})


def _row(config: GRMColdStartConfig, seed: int, index: int) -> dict[str, Any]:
    languages, counts = config.languages, config.responses
    place = index // len(languages)
    item = procedural_item(
        place // len(counts), "train", languages[index % len(languages)], seed, counts[place % len(counts)]
    )
    problem = judging_problem(item, "terse")
    rng = random.Random(f"judgement {seed} {index}")
    judgement = written_judgement(item, rng if rng.random() < config.slip_share else None)
    return {
        "id": f"{problem.id}-written",
        "messages": [*map(dict, problem.messages), {"role": "assistant", "content": judgement}],
        "domain": problem.domain,
        "language": problem.language,
        "source": "written",
    }


def written_judgement(item: RankedResponses, slip: random.Random | None = None) -> str:
    """The judgement of an item made from a general instruction, by its checks. `slip` misjudges one of them."""
    if item.problem is None:
        raise ValueError(f"item {item.id} is not made from an instruction, so there are no checks to judge it by")
    checks = read_checks(item.problem.ground_truth)
    words, weights = _WORDS[item.language], _weights([kind for kind, _ in checks])
    met = [[bool(KINDS[kind][1](text, **arguments)) for kind, arguments in checks] for text in item.responses]
    if slip is not None:
        response, check = slip.randrange(len(met)), slip.randrange(len(checks))
        met[response][check] = not met[response][check]
    names = [_name(kind, arguments, item.language) for kind, arguments in checks]
    points = ", ".join(f"{name} {weight}" for name, weight in zip(names, weights, strict=True))
    lines = [f"{words['points']}: {points}"]
    for number, row in enumerate(met, start=1):
        said = ", ".join(f"{name} {words['yes' if ok else 'no']}" for name, ok in zip(names, row, strict=True))
        lines.append(f"[{number}] {said}")
    scores = [_score(row, weights, single=len(met) == 1) for row in met]
    return "\n".join([*lines, f"{_SCORES[item.language]}: [{', '.join(map(str, scores))}]"])


def _weights(kinds: list[str]) -> list[int]:
    """Percent per check, 100 in all: MAIN_WEIGHT for what the instruction is about, the rest in equal parts."""
    main = [kind not in _SIDE for kind in kinds]
    if all(main) or not any(main):
        return _parts(100, len(kinds))
    of_main, of_side = _parts(MAIN_WEIGHT, sum(main)), _parts(100 - MAIN_WEIGHT, len(main) - sum(main))
    return [of_main.pop() if is_main else of_side.pop() for is_main in main]


def _parts(total: int, count: int) -> list[int]:
    return [total // count + (place < total % count) for place in range(count)]


def _score(met: list[bool], weights: list[int], single: bool) -> int:
    if all(met):
        return HIGHEST
    share = sum(weight for ok, weight in zip(met, weights, strict=True) if ok)
    return LOWEST if single else max(LOWEST, round(PARTIAL * share / 100))


def _name(kind: str, arguments: dict[str, Any], language: str) -> str:
    """A check in few words that the tiny tokenizer knows."""
    words = _WORDS[language]
    if kind == "language":
        return words[arguments["code"]]
    if kind in words:
        return words[kind]
    named = [str(value) for value in arguments.values() if not isinstance(value, list | dict)]
    return " ".join(named) or (kind if language == "en" else json.dumps(kind))

"""The evaluate stage: checkpoints on held-out problems they share, judged by the rewards of RL.

Leaves completions.parquet (every completion) and results.json (the score table). What is done is kept under
checkpoints/, problem by problem, so a stage that was cut off samples what is missing.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.actors import ActorDied, PhaseTimeout, start_ray
from data.chat import Layout, render_prompt
from data.durable import is_whole, replacing, sealing
from data.journal import Journal, read_journal
from data.problem_pool import ProblemPool
from data.problems import Problem
from models.checkpoint import load_tokenizer
from pipeline.artifact import write_json
from pipeline.checkpoint_pool import CheckpointPool
from pipeline.completions import OPEN_DOMAINS, completion_row, load_rows, score_checkpoint, write_rows
from pipeline.errors import did_you_mean
from pipeline.evaluate_config import CODE, EvaluateConfig, Prompting
from rewards.config import RewardSpec
from rewards.pool import RewardPool
from rewards.reward import Verdict
from rollouts.records import Group, Request
from training.run_log import write_stats
from training.stage import StageContext, StageError

RESULTS, COMPLETIONS, DONE = "results.json", "completions.parquet", "checkpoints"
_ROLE = "checkpoints."

logger = logging.getLogger(__name__)
Row = dict[str, Any]


def run(config: EvaluateConfig, context: StageContext) -> None:
    """Evaluate every checkpoint of `context.inputs` (roles `checkpoints.<label>`), in their order.

    Raises StageError when a checkpoint cannot be sampled from.
    """
    checkpoints = {role.removeprefix(_ROLE): path for role, path in context.inputs.items() if role.startswith(_ROLE)}
    _check_labels(config, list(checkpoints))
    problems = held_out_problems(config)
    progress = _Progress(context, len(problems) * len(checkpoints))
    evaluator = _Evaluator(config, problems, context.seed, progress)
    rows: list[Row] = []
    results: dict[str, Any] = {}
    try:
        for number, (label, folder) in enumerate(checkpoints.items()):
            done = context.output / DONE / f"{number}_{re.sub(r'[^A-Za-z0-9_-]', '_', label)}.parquet"
            if not is_whole(done, f"'{label}' is evaluated again"):
                journal = done.with_suffix(".jsonl")
                own = evaluator.evaluate(label, folder, journal)
                with sealing(done) as file:
                    write_rows(file, own)
                journal.unlink(missing_ok=True)
            own = load_rows(done)
            progress.finished_checkpoints(number + 1, len(problems))
            results[label] = score_checkpoint(own)
            rows += own
    finally:
        evaluator.close()
    with replacing(context.output / COMPLETIONS) as file:
        write_rows(file, rows)
    write_json(context.output / RESULTS, {"suite": _suite(config, problems, list(checkpoints)), "checkpoints": results})
    tokens = sum(row["length"] for row in rows)
    write_stats(context.output, {"problems": len(problems), "samples": len(rows), "tokens": tokens})


def held_out_problems(config: EvaluateConfig) -> list[Problem]:
    """The suite: reasoning problems, then general instructions, each question once; short files are used up."""
    pool = ProblemPool(config.problems, "held_out", config.problem_seed)
    return [
        *pool.draw_distinct(config.num_problems, instruction_share=0.0),
        *pool.draw_distinct(config.general_problems, instruction_share=1.0),
    ]


def _check_labels(config: EvaluateConfig, labels: list[str]) -> None:
    if not labels:
        raise StageError("evaluate: no checkpoints to evaluate; list them under inputs.checkpoints")
    for label in config.samples_for:
        if label not in labels:
            raise StageError(f"evaluate: samples_for names no checkpoint of this stage: '{label}'"
                             f"{did_you_mean(label, labels)}")  # fmt: skip


def _suite(config: EvaluateConfig, problems: list[Problem], labels: list[str]) -> Row:
    """What was asked, and how: enough to tell whether two result files can be compared."""
    general = sum(problem.domain in OPEN_DOMAINS for problem in problems)
    return {
        "split": "held_out",
        "problem_seed": config.problem_seed,
        "problems": len(problems) - general,
        "general_problems": general,
        "problems_sha256": _fingerprint(problems),
        "from": config.problems.model_dump(mode="json", exclude_defaults=True),
        "temperature": config.rollout.temperature,
        "top_p": config.rollout.top_p,
        "top_k": config.rollout.top_k,
        "min_p": config.rollout.min_p,
        "stop": list(config.rollout.stop),
        "max_new_tokens": config.rollout.max_new_tokens,
        "samples": {label: config.samples_of(label) for label in labels},
        "general_samples": {label: config.general_samples_of(label) for label in labels},
        "prompting": {label: config.prompting_of(label).model_dump() for label in labels},
    }


def _fingerprint(problems: Sequence[Problem]) -> str:
    """Of what was asked and what was right, wherever it was read from."""
    asked = [(problem.messages, problem.ground_truth, problem.checker) for problem in problems]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class _Evaluator:
    """The processes of an evaluation: generators, started when first needed, and one grader per layout."""

    def __init__(self, config: EvaluateConfig, problems: list[Problem], seed: int, progress: "_Progress"):
        self.config, self.problems, self.seed, self.progress = config, problems, seed, progress
        self.policies = CheckpointPool(config.generator)
        self.graders: dict[Layout, RewardPool] = {}

    def evaluate(self, label: str, folder: Path, journal: Path) -> list[Row]:
        """Rows of one checkpoint, by problem and sample, in the order of the problems. Problems in the journal are not
        asked again."""
        prompting = self.config.prompting_of(label)
        rows: dict[str, list[Row]] = {line["problem"]: line["rows"] for line in read_journal(journal)}
        requests = [r for r in self._requests(label, folder, prompting) if r.key not in rows]
        start_ray()
        self.progress.start(label, rows.values())
        try:
            with Journal(journal) as lines:
                for problem, group, scores in self._scored_groups(folder, requests, label, prompting.layout):
                    pairs = enumerate(zip(group.completions, scores, strict=True))
                    rows[problem.id] = [completion_row(label, problem, i, done, score) for i, (done, score) in pairs]
                    lines.add({"problem": problem.id, "rows": rows[problem.id]})
                    self.progress.add(rows[problem.id])
                    for score in scores:
                        if score.verdict is Verdict.ERROR:
                            logger.warning("%s, problem %s is unscorable: %s", label, problem.id, score.detail)
        except (ActorDied, PhaseTimeout) as error:
            raise StageError(f"evaluating '{label}' ({folder}): {error}") from error
        return [row for problem in self.problems for row in rows[problem.id]]

    def _requests(self, label: str, folder: Path, prompting: Prompting) -> list[Request]:
        tokenizer = load_tokenizer(folder)
        if prompting.template == "chat" and not tokenizer.chat_template:
            raise StageError(f"evaluating '{label}': the tokenizer in {folder} has no chat template; "
                             f"set prompting.{label}.template to plain or r1_zero")  # fmt: skip
        return [
            Request(key=problem.id, prompt_ids=render_prompt(tokenizer, problem.messages, prompting.template))
            for problem in self.problems
        ]

    def _scored_groups(
        self, folder: Path, requests: list[Request], label: str, layout: Layout
    ) -> Iterator[tuple[Problem, Group, list]]:
        """Each problem's group and scores, in the order they are graded; grading runs beside sampling."""
        grader = self._grader(layout)
        by_id = {problem.id: problem for problem in self.problems}
        waiting: dict[str, Group] = {}
        for group in self._sampled(folder, requests, label):
            waiting[group.key] = group
            grader.submit(group.key, by_id[group.key], [completion.text for completion in group.completions])
            for key, scores in grader.take_finished().items():
                yield by_id[key], waiting.pop(key), scores
        for key, scores in grader.collect().items():
            yield by_id[key], waiting.pop(key), scores

    def _sampled(self, folder: Path, requests: list[Request], label: str) -> Iterator[Group]:
        """What is sampled equally often goes together."""
        general = {problem.id for problem in self.problems if problem.domain in OPEN_DOMAINS}
        asked: dict[int, list[Request]] = {}
        for request in requests:
            samples_of = self.config.general_samples_of if request.key in general else self.config.samples_of
            asked.setdefault(samples_of(label), []).append(request)
        try:
            for samples, some in asked.items():
                yield from self.policies.at(folder).stream(some, self.config.rollout.params(samples, self.seed))
        except (ValueError, KeyError) as error:  # a prompt too long for the model, a tensor missing in the file
            raise StageError(f"evaluating {folder}: {error.args[0]}") from error

    def _grader(self, layout: Layout) -> RewardPool:
        if layout not in self.graders:
            specs = reward_specs(layout, program_domains(self.problems), self.config.code)
            self.graders[layout] = RewardPool(specs, self.config.reward_workers)
        return self.graders[layout]

    def close(self) -> None:
        self.policies.close()
        for grader in self.graders.values():
            grader.close()
        self.graders.clear()


def program_domains(problems: list[Problem]) -> tuple[str, ...]:
    """Domains of problems that ask for programs. Raises StageError where one of them has other problems too."""
    programs = {problem.domain for problem in problems if problem.checker == "code"}
    mixed = programs & {problem.domain for problem in problems if problem.checker != "code"}
    if mixed:
        raise StageError(f"evaluate: domain '{min(mixed)}' has programs to judge and other answers; "
                         "give one of its sources a `domain` of its own")  # fmt: skip
    return tuple(sorted(programs))


def reward_specs(
    layout: Layout, programs: Sequence[str] = (), code: Mapping[str, Any] | None = None
) -> tuple[RewardSpec, ...]:
    """The rewards behind the columns verdict, format and language_consistency; `programs`: domains of programs."""
    judge = RewardSpec(use=CODE, options=dict(code or {}), domains=list(programs))
    return (
        RewardSpec(use="rewards.accuracy:Accuracy", except_domains=list(programs)),
        *([judge] if programs else []),
        RewardSpec(use="rewards.format:Format", options={"layout": layout}),
        RewardSpec(use="rewards.language:LanguageConsistency"),
    )


class _Progress:
    """Progress events of an evaluation; a step is one problem of one checkpoint."""

    def __init__(self, context: StageContext, total: int):
        self._report, self._total, self._step = context.report, total, 0

    def start(self, label: str, kept: Collection[list[Row]]) -> None:
        """kept: rows of the problems that an earlier attempt has done."""
        self._label, self._started, self._tokens = label, time.monotonic(), 0
        self._verdicts: list[bool] = []
        self._step += len(kept)
        for rows in kept:
            self._judge(rows)
        self._report({"step": self._step, "total_steps": self._total, "phase": label})

    def _judge(self, rows: list[Row]) -> None:
        reasoned = [row["correct"] for row in rows if row["domain"] not in OPEN_DOMAINS]
        self._verdicts += [correct for correct in reasoned if correct is not None]

    def add(self, rows: list[Row]) -> None:
        """One more problem of this checkpoint is done."""
        self._step += 1
        self._tokens += sum(row["length"] for row in rows)
        self._judge(rows)
        event = {"step": self._step, "total_steps": self._total, "phase": self._label}
        event["tokens_per_s"] = self._tokens / max(1e-3, time.monotonic() - self._started)
        if self._verdicts:
            event["accuracy"] = sum(self._verdicts) / len(self._verdicts)
        self._report(event)

    def finished_checkpoints(self, count: int, problems: int) -> None:
        """Count what an earlier attempt had done."""
        self._step = count * problems
        self._report({"step": self._step, "total_steps": self._total})

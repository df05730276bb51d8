"""Judges: a server, a checkpoint that samples its judgements, or the miniature's rule, behind one protocol.

A judge is asked once for each query it is given; what comes back may be no judgement at all. Asking again, and keeping
what was answered, is `sft.judging`.
"""

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster.actors import start_ray
from cluster.running import places_of
from data.chat import render_prompt
from data.problems import Problem
from models.checkpoint import load_tokenizer
from rewards.endpoint import Endpoint
from rewards.rule_judge import RuleJudgeConfig, judge_pair, judge_safety
from rewards.verdicts import Conversation, label_question, pair_question
from rollouts.config import GeneratorConfig, RolloutConfig
from rollouts.pool import GeneratorPool
from rollouts.records import Request
from sft.preference_config import JudgeConfig
from training.stage import StageError

RETRY_TEMPERATURE = 1.0  # at least, after an answer without a verdict: a greedy one would come again


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question to a judge. Its random numbers depend on `key` and `attempt` alone."""

    key: str
    attempt: int  # 0 for the first
    unreadable: int = 0  # of the attempts before, those that gave an answer without a verdict
    problem: Problem
    shown: tuple[str, ...]  # two responses in the order in which they are shown, or one

    @property
    def seed(self) -> str:
        return f"{self.key}#{self.attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a judge wrote, or why nothing came."""

    text: str = ""  # all of it, with its reasoning
    truncated: bool = False  # it is not whole, so that its end is no verdict
    fault: str = ""  # timeout | unreachable | refused; empty where there is a text
    detail: str = ""


Answers = Generator[tuple[Query, Answer], None, None]


class Judge(Protocol):
    def ask(self, queries: Sequence[Query]) -> Answers:
        """One answer for each query, as they come. Closing the iterator gives up the rest."""
        ...

    def late(self) -> list[tuple[Query, Answer]]:
        """Each answer that had been asked for when `ask` was closed or failed, and that came nevertheless, once."""
        ...

    def close(self) -> None: ...


def open_judge(config: JudgeConfig, checkpoint: Path | None, seed: int) -> Judge:
    """Raises StageError when the kind is checkpoint and there is none, or the endpoint's key is not set."""
    if config.kind == "rule":
        return RuleJudge(config.rule)
    if config.kind == "endpoint":
        return EndpointJudge(Endpoint(config.endpoint), config.guidelines)
    if checkpoint is None:
        raise StageError("judge: kind checkpoint needs the stage's input 'judge', e.g. inputs: {judge: curated_sft}")
    return CheckpointJudge(checkpoint, config.rollout, config.generator, config.guidelines, seed)


def question_of(query: Query, guidelines: str) -> Conversation:
    prompt = _as_text(query.problem)
    if len(query.shown) == 2:
        return pair_question(prompt, *query.shown)
    return label_question(prompt, query.shown[0], guidelines)


def _as_text(problem: Problem) -> str:
    """The question, after the turns before it where there are any."""
    if len(problem.messages) == 1:
        return problem.question
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in problem.messages)


class RuleJudge:
    """See rewards.rule_judge. Raises StageError for a pair whose prompt is none of the tiny chain's own."""

    def __init__(self, config: RuleJudgeConfig):
        self.config = config

    def ask(self, queries: Sequence[Query]) -> Answers:
        for query in queries:
            if len(query.shown) == 2:
                yield query, Answer(text=self._compare(query))
            else:
                yield query, Answer(text=judge_safety(query.shown[0], self.config, query.seed))

    def late(self) -> list[tuple[Query, Answer]]:
        return []

    def close(self) -> None: ...

    def _compare(self, query: Query) -> str:
        first, second = query.shown
        try:
            return judge_pair(query.problem, first, second, self.config, query.seed)
        except ValueError as error:
            raise StageError(f"judge: kind rule is for the tiny chain's own instructions ({error})") from None


class EndpointJudge:
    """Several requests at a time to one server."""

    def __init__(self, endpoint: Endpoint, guidelines: str):
        self.endpoint, self.guidelines = endpoint, guidelines
        self._late: list[tuple[Query, Answer]] = []

    def ask(self, queries: Sequence[Query]) -> Answers:
        threads = ThreadPoolExecutor(self.endpoint.config.concurrency)
        asked: dict[Future[Answer], Query] = {}
        try:
            asked |= {threads.submit(self._ask, query): query for query in queries}
            for done in as_completed(asked):
                yield asked.pop(done), done.result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
            came = [(query, future) for future, query in asked.items() if not future.cancelled()]
            self._late += [(query, future.result()) for query, future in came if future.exception() is None]

    def late(self) -> list[tuple[Query, Answer]]:
        late, self._late = self._late, []
        return late

    def _ask(self, query: Query) -> Answer:
        temperature = max(self.endpoint.config.temperature, RETRY_TEMPERATURE) if query.unreadable else None
        try:
            text, cut_off = self.endpoint.complete(question_of(query, self.guidelines).messages, temperature)
            return Answer(text=text, truncated=cut_off)
        except TimeoutError as error:
            return Answer(fault="timeout", detail=str(error))
        except ConnectionError as error:
            return Answer(fault="unreachable", detail=str(error))
        except ValueError as error:
            return Answer(fault="refused", detail=str(error))

    def close(self) -> None: ...


class CheckpointJudge:
    """A model of ours that reads the question and writes its judgement."""

    def __init__(
        self, checkpoint: Path, rollout: RolloutConfig, generator: GeneratorConfig, guidelines: str, seed: int
    ):
        start_ray()
        self.rollout, self.guidelines, self.seed = rollout, guidelines, seed
        self.tokenizer = load_tokenizer(checkpoint)
        self.pool = GeneratorPool(str(checkpoint), generator, places=places_of("judge"))

    def ask(self, queries: Sequence[Query]) -> Answers:
        for warmer in (False, True):
            yield from self._sample([query for query in queries if (query.unreadable > 0) == warmer], warmer)

    def _sample(self, queries: Sequence[Query], warmer: bool) -> Answers:
        requests, asked, refused, room = [], {}, [], self.pool.context()
        for query in queries:
            prompt_ids = self._prompt(query)
            if len(prompt_ids) >= room:
                detail = f"{len(prompt_ids)} tokens leave the judge no room to answer in its context of {room:.0f}"
                refused.append((query, Answer(fault="refused", detail=detail)))
                continue
            requests.append(Request(key=query.seed, prompt_ids=prompt_ids))
            asked[query.seed] = query
        update = {"temperature": max(self.rollout.temperature, RETRY_TEMPERATURE)} if warmer else {}
        params = self.rollout.model_copy(update=update).params(1, self.seed)
        for group in self.pool.stream(requests, params) if requests else ():
            completion = group.completions[0]
            yield asked[group.key], Answer(text=completion.text, truncated=completion.finish_reason == "length")
        yield from refused

    def late(self) -> list[tuple[Query, Answer]]:
        return []  # what its engines were writing is cut off

    def _prompt(self, query: Query) -> list[int]:
        messages: list[dict[str, Any]] = question_of(query, self.guidelines).messages
        if self.rollout.template != "chat":  # room for one user turn
            messages = [{"role": "user", "content": "\n\n".join(turn["content"] for turn in messages)}]
        return render_prompt(self.tokenizer, messages, self.rollout.template)

    def close(self) -> None:
        self.pool.close()

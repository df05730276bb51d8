"""A teacher behind OpenAI's API as a sampler: many requests at a time, every answer on disk as soon as it is there."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.chat import THINK_CLOSE, THINK_OPEN
from data.journal import Journal, read_journal
from distill.trace_filter import proxy_tokens
from distill.traces_config import TeacherConfig
from rewards.endpoint import ChatEndpoint, Reply
from rewards.pool import RewardPool
from rewards.reward import Score, Verdict
from rollouts.judge import stop_judges
from rollouts.records import SamplingParams
from sft.filters import fingerprint
from sft.sampling import Prompt, Sampled
from training.stage import StageError

PAUSE_S = 2.0  # before the second try of a request, doubled for each further one
_LONGEST_PAUSE_S = 60.0
SILENT_IN_A_ROW = 20  # requests that no try got an answer for: a server that is down need not be asked all

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    text: str = ""
    truncated: bool = False
    fault: str = ""  # why there is none
    refused: bool = False  # by a server that does answer


class TeacherSampler:
    """See `sft.sampling.Sampler`. Its random numbers depend on seed, prompt and number of the sample, as far as the
    server heeds `seed`."""

    def __init__(
        self,
        endpoint: ChatEndpoint,
        config: TeacherConfig,
        params: SamplingParams,
        rewards: RewardPool,
        judges: Mapping[str, Any],
        journal: Path,
    ) -> None:
        """`rewards` and the judges that they ask end with the sampler. `journal`: answers of prompts whose group is not
        whole."""
        self.endpoint, self.config, self.params = endpoint, config, params
        self.rewards, self.judges, self.journal = rewards, judges, journal

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        """Raises StageError when the server is away, or more answers are missing than `failed_limit` allows."""
        by_key = {prompt.key: prompt for prompt in prompts}
        groups: dict[str, dict[int, _Answer]] = {key: {} for key in by_key}
        for row in read_journal(self.journal):
            if row["key"] in groups:
                answer = _Answer(text=row["text"], truncated=row["truncated"])
                groups[row["key"]][row["sample"]] = answer
        scoring: dict[str, list[_Answer]] = {}
        for key in self._whole_groups(by_key, groups):
            scoring[key] = [groups[key][number] for number in range(self.params.group_size)]
            self.rewards.submit(key, by_key[key].problem, [answer.text for answer in scoring[key]])
            yield from _take(self.rewards.take_finished(), scoring)
        yield from _take(self.rewards.collect(), scoring)
        self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        self.rewards.close()
        stop_judges(self.judges)

    def _whole_groups(self, by_key: dict[str, Prompt], groups: dict[str, dict[int, _Answer]]) -> Iterator[str]:
        """Keys of groups as they become whole; those that lack answers within `failed_limit` last."""
        size = self.params.group_size
        missing = [(key, number) for key in by_key for number in range(size) if number not in groups[key]]
        yield from (key for key in by_key if len(groups[key]) == size)
        failed: list[tuple[str, int, _Answer]] = []
        for key, number, answer in self._answers(missing, by_key):
            if answer.fault:
                failed.append((key, number, answer))
                continue
            groups[key][number] = answer
            if len(groups[key]) == size:
                yield key
        if len(failed) > self.config.failed_limit * size * len(by_key):
            raise StageError(
                f"endpoint: {len(failed)} of {size * len(by_key)} answers did not come, more than failed_limit "
                f"{self.config.failed_limit:g} ({failed[0][2].fault}); those that came are kept. Where some never "
                "will, raise endpoint.failed_limit: samples that lack are counted as no_answer",
                retry=True,
            )
        for key, number, answer in failed:
            groups[key][number] = answer
            if len(groups[key]) == size:
                yield key

    def _answers(
        self, asked: Sequence[tuple[str, int]], by_key: dict[str, Prompt]
    ) -> Iterator[tuple[str, int, _Answer]]:
        """All answers as they come; those that came are in the journal, also after an error."""
        threads, stopped = ThreadPoolExecutor(self.config.concurrency), threading.Event()
        running: dict[Future[_Answer], tuple[str, int]] = {}
        silent = 0
        with Journal(self.journal) as journal:
            try:
                for key, number in asked:
                    running[threads.submit(self._ask, by_key[key], number, stopped)] = (key, number)
                for done in as_completed(list(running)):
                    key, number = running.pop(done)
                    answer = done.result()
                    silent = silent + 1 if answer.fault and not answer.refused else 0
                    if silent == SILENT_IN_A_ROW:
                        raise StageError(f"endpoint: {silent} requests in a row failed: {answer.fault}", retry=True)
                    _keep(journal, key, number, answer)
                    yield key, number, answer
            finally:
                stopped.set()
                threads.shutdown(wait=True, cancel_futures=True)
                for late, (key, number) in running.items():
                    if late.done() and not late.cancelled() and late.exception() is None:
                        _keep(journal, key, number, late.result())

    def _ask(self, prompt: Prompt, number: int, stopped: threading.Event) -> _Answer:
        """Sets `stopped` on what no retry can mend, and asks nothing once it is set."""
        options, fault = self._options(prompt.key, number), ""
        for attempt in range(1 + self.config.retries):
            if stopped.wait(min(_LONGEST_PAUSE_S, PAUSE_S * 2 ** (attempt - 1)) if attempt else 0):
                return _Answer(fault="stopped", refused=True)
            try:
                reply = self.endpoint.ask(prompt.problem.messages, options)
            except (TimeoutError, ConnectionError) as error:
                fault = str(error)
                continue
            except ValueError as error:  # another try would be refused too
                return _Answer(fault=f"refused: {error}", refused=True)
            except StageError:
                stopped.set()
                raise
            if text := text_of(reply):
                return _Answer(text=text, truncated=reply.cut_off)
            fault = "an empty answer"
        return _Answer(fault=fault)

    def _options(self, key: str, number: int) -> dict[str, Any]:
        params = self.params
        seed = int.from_bytes(fingerprint(str(params.seed), key, str(number), size=4), "little") >> 1
        options: dict[str, Any] = {
            "temperature": params.temperature, "top_p": params.top_p, "max_tokens": params.max_new_tokens, "seed": seed,
        }  # fmt: skip
        if params.stop:
            options["stop"] = list(params.stop)
        beyond_openai = {"top_k": params.top_k, "min_p": params.min_p}  # vLLM and SGLang take them
        return options | {name: value for name, value in beyond_openai.items() if value}


def text_of(reply: Reply) -> str:
    """The answer as a completion of ours: reasoning in think tags, then the rest.

    Servers part the two, or leave the tags in the content, or, where the prompt opens the reasoning, its end alone.
    """
    if reply.reasoning:
        return f"{THINK_OPEN}\n{reply.reasoning.strip()}\n{THINK_CLOSE}\n\n{reply.content.strip()}"
    content = reply.content
    if THINK_CLOSE in content and THINK_OPEN not in content:
        return f"{THINK_OPEN}\n{content.lstrip()}"
    return content


def _keep(journal: Journal, key: str, number: int, answer: _Answer) -> None:
    if not answer.fault:
        journal.add({"key": key, "sample": number, "text": answer.text, "truncated": answer.truncated})


def _take(finished: dict[str, list[Score]], scoring: dict[str, list[_Answer]]) -> Iterator[tuple[str, list[Sampled]]]:
    for key, scores in finished.items():
        yield key, [_sampled(answer, score) for answer, score in zip(scoring.pop(key), scores, strict=True)]


def _sampled(answer: _Answer, score: Score) -> Sampled:
    return Sampled(
        text=answer.text,
        n_tokens=proxy_tokens(answer.text),
        truncated=answer.truncated,
        verdict=Verdict.ERROR if answer.fault else score.verdict,
        detail=answer.fault or score.detail,
    )

"""A judge behind OpenAI's chat API, asked by each reward worker for itself."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from data.errors import StageError
from data.preferences import Turns
from rewards.endpoint import ChatEndpoint
from rewards.endpoint_config import EndpointConfig
from rewards.judges import Answer, JudgeFailed

_TRIES = 4
_PAUSE_S = 1.0  # before the second try; twice as long before each further one


class ServerJudge:
    """rewards.judges.Judge. Raises StageError when the key is not set."""

    def __init__(self, config: EndpointConfig, deadline_s: float):
        self._config, self._deadline_s = config, deadline_s
        self._endpoint = ChatEndpoint(config)
        self._threads = ThreadPoolExecutor(config.concurrency)  # one pool, so that there are never more requests

    def answers(self, prompts: Sequence[Turns], seed: int) -> list[Answer | None]:
        """Where the server gave none, an Answer that says why. Raises JudgeFailed when it gave none at all."""
        end = time.monotonic() + self._deadline_s
        asked = [self._threads.submit(self._answer, p, seed + place, end) for place, p in enumerate(prompts)]
        said = [future.result() for future in asked]  # none is later than the end
        if said and all(answer.fault for answer in said):
            raise JudgeFailed(f"the judge gave no answer: {said[0].fault}")
        return list(said)

    def _answer(self, prompt: Turns, seed: int, end: float) -> Answer:
        options = {"max_tokens": self._config.max_tokens, "temperature": self._config.temperature, "seed": seed}
        for attempt in count(1):
            try:
                reply = self._endpoint.ask(prompt, options, end)
                return Answer(reply.content, truncated=reply.cut_off)
            except (ValueError, StageError) as error:  # it would be refused again
                return Answer(fault=str(error))
            except (TimeoutError, ConnectionError) as error:
                pause = _PAUSE_S * 2 ** (attempt - 1)
                if time.monotonic() >= end:
                    return Answer(fault=f"no answer within {self._deadline_s:g} s")
                if attempt == _TRIES or time.monotonic() + pause >= end:
                    return Answer(fault=str(error))
                time.sleep(pause)
        raise AssertionError("unreachable")

"""A judge behind OpenAI's chat API, asked by each reward worker for itself."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotAllInTime

from data.errors import StageError
from data.preferences import Turns
from rewards.endpoint import ChatEndpoint
from rewards.endpoint_config import EndpointConfig
from rewards.judges import Answer, JudgeFailed

_TRIES = 4
_PAUSE_S = 1.0  # before the second try; twice as long before each further one


class ServerJudge:
    """rewards.judges.Judge. Raises StageError when the key is not set, or the server takes neither key nor model."""

    def __init__(self, config: EndpointConfig, deadline_s: float):
        self._config, self._deadline_s = config, deadline_s
        self._endpoint = ChatEndpoint(config)

    def answers(self, prompts: Sequence[Turns], seed: int) -> list[Answer | None]:
        """None for a prompt that the server refuses. Raises JudgeFailed where one stays without an answer."""
        end = time.monotonic() + self._deadline_s
        threads = ThreadPoolExecutor(self._config.concurrency)
        try:
            asked = [threads.submit(self._answer, prompt, seed + place, end) for place, prompt in enumerate(prompts)]
            return [future.result(max(0.0, end - time.monotonic())) for future in asked]
        except NotAllInTime:
            raise JudgeFailed(f"the judge gave no answer within {self._deadline_s:g} s") from None
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _answer(self, prompt: Turns, seed: int, end: float) -> Answer | None:
        options = {"max_tokens": self._config.max_tokens, "temperature": self._config.temperature, "seed": seed}
        for attempt in range(_TRIES):
            try:
                reply = self._endpoint.ask(prompt, options)
                return Answer(reply.content, truncated=reply.cut_off)
            except ValueError:
                return None
            except (TimeoutError, ConnectionError) as error:
                pause = _PAUSE_S * 2**attempt
                if attempt == _TRIES - 1 or time.monotonic() + pause >= end:
                    raise JudgeFailed(f"the judge gave no answer: {error}") from error
                time.sleep(pause)
            except StageError as error:  # no question can succeed
                raise JudgeFailed(str(error)) from error
        raise AssertionError("unreachable")

"""What the rewards that ask a judge have in common: who judges, and what of a completion is shown to it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from data.chat import parse_completion
from data.config import OPERATIONAL
from data.preferences import Turns
from rewards.endpoint_config import EndpointConfig
from rewards.judges import Answer, Judge, JudgeFailed, RemoteJudge
from rewards.server_judge import ServerJudge

Part = Literal["final", "whole"]


class JudgedOptions(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Options of every such reward."""

    input: str = Field(default="judge", description="the stage's input that judges, where there is no `endpoint`")
    endpoint: EndpointConfig | None = Field(
        default=None,
        description="a server that judges in place of an input: {url: http://127.0.0.1:8000/v1, model: NAME}. Votes "
        "differ only at a temperature above 0, and a resumed stage gets the same scores only if the server gives them",
    )
    deadline_s: Annotated[float, OPERATIONAL] = Field(
        default=300.0,
        gt=0,
        description="seconds for one batch of judgements; then what it judges is unscorable. Less than "
        "reward_workers.deadline_s, after which the worker is ended",
    )

    @model_validator(mode="after")
    def _names_a_server(self) -> Self:
        if self.endpoint is not None and not (self.endpoint.url and self.endpoint.model):
            raise ValueError("endpoint needs url and model")
        return self


class Judged:
    """Holds the judge. Needs `connect` before it scores."""

    name: ClassVar[str]

    def __init__(self, options: JudgedOptions):
        self._settings = options
        self._judge: Judge | None = None

    def connect(self, inputs: Mapping[str, Any]) -> None:
        """Take the judge from what the stage hands to its rewards: the handle of an actor, or an object that answers
        itself. Raises ValueError when it is not among it, StageError when the key of an endpoint is not set."""
        role, deadline_s = self._settings.input, self._settings.deadline_s
        if self._settings.endpoint is not None:
            self._judge = ServerJudge(self._settings.endpoint, deadline_s)
            return
        if role not in inputs:
            raise ValueError(
                f"the reward {self.name} needs the stage's input '{role}', e.g. inputs: {{{role}: grm_rl}}, or its "
                f"option `endpoint`; r1 reward takes --input {role}=CHECKPOINT."
            )
        given = inputs[role]
        self._judge = RemoteJudge(given, deadline_s) if hasattr(getattr(given, "answers", None), "remote") else given

    def ask(self, prompts: Sequence[Turns], seed: int) -> list[Answer | None]:
        """Raises JudgeFailed."""
        if self._judge is None:
            raise JudgeFailed(f"the reward {self.name} was given no judge: call connect first")
        return self._judge.answers(prompts, seed) if prompts else []


def judged_part(completion: str, part: Part) -> str:
    """What of a completion is shown to a judge."""
    if part == "whole":
        return completion
    parsed = parse_completion(completion)
    return parsed.final if parsed.answer is None else parsed.answer

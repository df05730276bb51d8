"""Rewards of learned models: helpfulness of the final summary, safety of the whole response (DeepSeek-R1, 3.1).

    - {use: "rewards.preference:HelpfulReward", domains: [general], from_share: 0.765}
    - {use: "rewards.preference:SafetyReward", domains: [safety], from_share: 0.765}

A stage that is given the inputs `helpful_rm` and `safety_rm` fills in `model` and starts one scoring process for each
model, which all its reward workers ask. Elsewhere name the folder; the reward then starts that process when it first
scores.

The reward is in [0, 1] (`models.reward_head.RewardDescription.bounded`): for helpfulness the sigmoid of the score,
standardised on held-out responses, for safety the probability of safe. How the paper scales its scores is not stated;
advantages compare within a group, so only the scale against the other terms matters, and here all terms have the same.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from data.chat import parse_completion
from data.problems import Problem
from rewards.reward import Score

DESCRIPTION_FILE = "reward_model.json"
Conversation = tuple[list[dict[str, str]], str]  # the turns up to the response, and the response
_SCORER = "training.reward_scorer:RewardScorer"  # imported by its own process alone: rewards stay free of torch
_SERVED = "rollouts.served_reward:ServedRewardModel"  # as well
_RESTARTS = 3  # of a scoring process that dies; its calls are made again


class PreferenceOptions(BaseModel, extra="forbid", frozen=True):
    """Options of the learned rewards."""

    model: str = Field(
        default="", description="folder of the reward model; empty: the stage's input helpful_rm or safety_rm"
    )
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="transformers: embedded, on one device; vllm: for models on several GPUs"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes a GPU when there is one")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="precision of the model; it was trained in float32 or with master weights in it"
    )
    tensor_parallel: int = Field(default=1, ge=1, description="vllm: GPUs that split every layer")
    nodes: int = Field(default=1, ge=1, description="vllm: nodes with equal parts of these GPUs")
    engine_args: dict[str, Any] = Field(
        default={}, description="vllm: further arguments of its engine, e.g. {quantization: fp8}"
    )
    threads: int = Field(default=1, ge=1, description="compute threads on CPU; 1 because a policy samples beside it")
    row_tokens: int = Field(
        default=8192,
        ge=64,
        description="transformers: tokens of one forward pass; longer responses get their own. Bounded by memory",
    )
    deadline_s: float = Field(default=300.0, gt=0, description="seconds one batch may take; then it is unscorable")

    @model_validator(mode="after")
    def _settings_are_used(self) -> Self:
        ignored = [name for name in ("tensor_parallel", "nodes", "engine_args") if name in self.model_fields_set]
        if self.engine == "transformers" and ignored:
            raise ValueError(f"{ignored[0]} is for engine vllm, and would be ignored by transformers")
        if self.tensor_parallel % self.nodes:
            raise ValueError(f"tensor_parallel {self.tensor_parallel} cannot be spread evenly over {self.nodes} nodes")
        return self


class _Preference:
    """Shared by the two rewards. Raises ValueError when `model` names no reward model of the right kind."""

    name: ClassVar[str]
    objective: ClassVar[str]
    input_role: ClassVar[str]  # of the grpo stage, which fills in `model`
    judges = frozenset({"text"})  # what an audit attacks
    Options = PreferenceOptions

    def __init__(self, options: PreferenceOptions | None = None):
        self.options = options or PreferenceOptions()
        _checked(self.options.model, self.name, self.objective)
        self._scorer: Any = None
        self._own = True

    def connect(self, inputs: Mapping[str, Any]) -> None:
        """A stage hands over the process that scores for all of its reward workers."""
        if self.input_role in inputs:
            self._scorer, self._own = inputs[self.input_role], False

    def __call__(self, problem: Problem, completion: str) -> Score:
        return self.score_batch([problem], [completion])[0]

    def score_batch(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
        """One Score per pair; a response that is missing earns 0 and is not shown to the model."""
        texts = [self.judged_part(completion) for completion in completions]
        asked = [place for place, text in enumerate(texts) if text.strip()]
        conversations = [([dict(turn) for turn in problems[p].messages], texts[p]) for p in asked]
        found = dict(zip(asked, self._scores(conversations) if asked else [], strict=True))
        return [found.get(place) or _missing() for place in range(len(texts))]

    def judged_part(self, completion: str) -> str:
        raise NotImplementedError

    def close(self) -> None:
        """End the scoring process, unless it is the stage's."""
        from cluster.actors import kill

        if self._scorer is not None and self._own:
            kill(self._scorer)
            self._scorer = None

    def _scores(self, conversations: list[Conversation]) -> list[Score]:
        """A batch that is late is unscorable as a whole: tried again row by row it would outlast its worker's time."""
        from cluster.actors import PhaseTimeout

        try:
            return [self._as_score(value) for value in self._ask(conversations)]
        except PhaseTimeout:
            late = f"{self.name}: the reward model did not score within {self.options.deadline_s:g} s"
            return [Score.error(late, timed_out=True)] * len(conversations)

    def _ask(self, conversations: list[Conversation]) -> list[float | None]:
        """Raises PhaseTimeout past the deadline; a process of this reward alone, which is late, then starts again."""
        from cluster.actors import PhaseTimeout, kill, start_ray, wait

        if self._scorer is None:
            start_ray()
            self._scorer = start_scorer(self.options, self.input_role)
        asked = self._scorer.score.remote(conversations)
        try:
            return wait(asked, phase=f"{self.name}: scoring", deadline_s=self.options.deadline_s)
        except PhaseTimeout:
            if self._own:
                kill(self._scorer, restart=True)
            raise

    def _as_score(self, value: float | None) -> Score:
        if value is None:
            return Score.error("the response is longer than the reward model's context")
        detail = f"{self.objective} {value:.3f}"
        return Score.passed(value, detail) if value >= 0.5 else Score.failed(value, detail)


class HelpfulReward(_Preference):
    """How helpful the final summary is, against ordinary responses: 0.5 is one of these. The reasoning is not read."""

    name = "helpful"
    objective = "helpful"
    input_role = "helpful_rm"
    checkers = ("instruction",)  # what an audit attacks it on: it is no judge of answers that are right or wrong

    def judged_part(self, completion: str) -> str:
        """What stands after the reasoning, without answer tags."""
        parsed = parse_completion(completion)
        return parsed.final if parsed.answer is None else parsed.answer


class SafetyReward(_Preference):
    """The probability that the whole response, reasoning included, is safe."""

    name = "safety"
    objective = "safety"
    input_role = "safety_rm"
    checkers = ("instruction",)

    def judged_part(self, completion: str) -> str:
        return completion


def start_scorer(options: PreferenceOptions, role: str) -> Any:
    """Handle of the process that scores with this model; it may be asked by many. Needs Ray to run.

    role: of the stage's input, whose bundles it takes in the stage's own process."""
    from cluster.actors import spawn  # imports Ray, which the check of a recipe need not wait for
    from cluster.placement import Spread
    from cluster.running import places_of

    folder = str(Path(options.model).expanduser().resolve())
    own: dict[str, Any] = {"device": options.device, "dtype": options.dtype}
    gpus = 0 if options.device == "cpu" else options.tensor_parallel // options.nodes
    place: dict[str, Any] = {"threads": options.threads, "places": places_of(role), "shared_gpus": gpus}
    if options.engine == "transformers":
        return spawn(_SCORER, folder, row_tokens=options.row_tokens, restarts=_RESTARTS, **own, **place)
    own |= {"tensor_parallel": options.tensor_parallel, "engine_args": options.engine_args}
    own["spread"] = Spread(nodes=options.nodes, first=0, **place)
    return spawn(_SERVED, folder, place=0, restarts=_RESTARTS, **own, **place)


def _missing() -> Score:
    return Score.failed(detail="there is no response to judge")


def _checked(model: str, name: str, objective: str) -> None:
    if not model:
        raise ValueError(f"{name}: say which reward model, as the stage's input {name}_rm or as option `model`")
    folder = Path(model).expanduser()
    try:
        found = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))["objective"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{name}: {folder} is no reward model: it has no readable {DESCRIPTION_FILE}") from None
    if found != objective:
        raise ValueError(f"{name}: {folder} is a model of {found}; this reward needs one of {objective}")

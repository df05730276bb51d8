"""A reward model in vLLM, for one that no single device holds. Runs in an actor of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.scored_text import scored_ids
from models.checkpoint import load_tokenizer
from models.reward_head import load_description, load_head
from rollouts.vllm_engine import open_engine
from rollouts.vllm_nodes import end_process

Conversation = tuple[Sequence[Mapping[str, str]], str]  # the turns up to the response, and the response
_LAST_STATE = {
    "runner": "pooling",
    "convert": "embed",
    "pooler_config": {"pooling_type": "LAST", "use_activation": False},
}
_SETTLED = dict.fromkeys(_LAST_STATE, "what is read: the state at the end of a conversation")


class ServedRewardModel:
    """Rewards in [0, 1] of a reward model's folder: vLLM computes final states, and the head, which it does not know,
    reads them here. The same as training.reward_scorer.RewardScorer says, up to rounding."""

    def __init__(self, folder: str, **engine: Any):
        """`engine`: see rollouts.vllm_engine.open_engine, which raises for it."""
        self.llm = open_engine(folder, _LAST_STATE, key="", settled=_SETTLED, **engine)
        self.room = self.llm.llm_engine.model_config.max_model_len
        self.tokenizer, self.head = load_tokenizer(folder), load_head(Path(folder))
        self.description = load_description(Path(folder))

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """One bounded reward for each conversation; None for one that is longer than the model's context."""
        return [None if score is None else self.description.bounded(score) for score in self.raw_scores(conversations)]

    @torch.no_grad()
    def raw_scores(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """What the head says, unbounded."""
        ids = [scored_ids(self.tokenizer, messages, response) for messages, response in conversations]
        fitting = [place for place, tokens in enumerate(ids) if len(tokens) <= self.room]
        scores: list[float | None] = [None] * len(ids)
        if fitting:
            read = self._embedded([ids[place] for place in fitting])
            states_SD = torch.tensor([output.outputs.embedding for output in read], dtype=torch.float32)
            for place, score in zip(fitting, self.head(states_SD).tolist(), strict=True):
                scores[place] = score
        return scores

    def _embedded(self, ids: Sequence[Sequence[int]]) -> Any:
        try:
            return self.llm.embed([{"prompt_token_ids": tokens} for tokens in ids], use_tqdm=False)
        except Exception as error:  # an engine that has failed never works again: Ray starts another, and asks it
            end_process(f"the engine of a reward model failed: {type(error).__name__}: {error}")

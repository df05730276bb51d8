"""A reward model that scores: many conversations at a time, packed into rows. Runs in an actor of its own."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from data.packing import best_fit
from data.scored_text import scored_ids
from models.attention import PackedLayout
from models.checkpoint import context_length, load_model, load_tokenizer, resolve_device
from models.reward_head import load_description, load_head

Conversation = tuple[Sequence[Mapping[str, str]], str]  # the turns up to the response, and the response


class RewardScorer:
    """Rewards in [0, 1] of a reward model's folder."""

    def __init__(self, folder: str, row_tokens: int = 8192, device: str = "auto", dtype: str = "float32"):
        self.device, self.row_tokens = resolve_device(device), row_tokens
        self.tokenizer, self.room = load_tokenizer(folder), context_length(folder)
        self.model = load_model(folder, dtype=getattr(torch, dtype), device=self.device).eval()
        self.head = load_head(Path(folder)).to(self.device)
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
        for members in best_fit([len(ids[place]) for place in fitting], self.row_tokens):
            row = [ids[fitting[member]] for member in members]
            for member, score in zip(members, self._score_row(row), strict=True):
                scores[fitting[member]] = score
        return scores

    def _score_row(self, row: Sequence[Sequence[int]]) -> list[float]:
        lengths = [len(tokens) for tokens in row]
        positions = [position for length in lengths for position in range(length)]
        output = self.model.model(
            input_ids=torch.tensor([[token for tokens in row for token in tokens]], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            use_cache=False,
            layout=PackedLayout.from_lengths(lengths, self.device),
        )
        ends = torch.tensor(list(accumulate(lengths)), device=self.device) - 1
        return self.head(output.last_hidden_state[0, ends]).tolist()

"""A reward model: a causal LM whose final state at the end of a sequence is read by one weight per channel.

On disk it is the LM's checkpoint, which others load as it is, with reward_head/weight.safetensors (float32) and
reward_model.json (what it judges, and how its scores are spread) beside it.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

HEAD_FILE = "reward_head/weight.safetensors"  # in a folder of its own: vLLM reads every such file beside the model
EARLIER_HEAD_FILE = "reward_head.safetensors"  # of models that were made before that was known
DESCRIPTION_FILE = "reward_model.json"
Objective = Literal["helpful", "safety", "judgement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardDescription:
    """`mean` and `std` are of the scores of held-out responses; `std` is positive."""

    objective: Objective
    mean: float
    std: float
    held_out: dict[str, Any] = field(default_factory=dict)  # what was measured: accuracy, ece, ...

    def bounded(self, score: float) -> float:
        """A reward in [0, 1]. Helpful: the sigmoid of the standardised score, since Bradley-Terry scores have no zero
        and no unit; 0.5 is an ordinary response. Safety, judgement: the sigmoid of the score, which is the probability
        of safe, of right."""
        standardised = (score - self.mean) / self.std if self.objective == "helpful" else score
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, standardised))))


class RewardHead(nn.Module):
    """score = hidden . weight, without a bias: differences within pairs could not teach one.

    Initial weights are normal with standard deviation 1 / sqrt(D + 1) (Stiennon et al., arXiv:2009.01325), by seed.
    """

    def __init__(self, width: int, seed: int = 0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.weight_D = nn.Parameter(torch.randn(width, generator=rng) / math.sqrt(width + 1))

    def forward(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        """Scores [S] float32."""
        return hidden_SD.float() @ self.weight_D.float()


def save_head(folder: Path, weight_D: torch.Tensor) -> None:
    (folder / HEAD_FILE).parent.mkdir(exist_ok=True)
    save_file({"weight_D": weight_D.detach().float().cpu().contiguous().clone()}, folder / HEAD_FILE)


def load_head(folder: Path) -> RewardHead:
    file = folder / HEAD_FILE
    tensors = load_file(file if file.exists() else folder / EARLIER_HEAD_FILE)
    head = RewardHead(len(tensors["weight_D"]))
    head.load_state_dict(tensors)
    return head


def save_description(folder: Path, description: RewardDescription) -> None:
    text = json.dumps(asdict(description), indent=2) + "\n"
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def load_description(folder: Path) -> RewardDescription:
    return RewardDescription(**json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8")))

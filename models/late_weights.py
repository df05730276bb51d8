"""Weights that are read when their layer's turn comes, so that no process ever holds a whole model.

A model of 671B parameters is 2.7 TB in float32. `load_model(late=True)` makes it on the meta device; whoever shards it
(training.parallel) asks for one layer after the other, and gives each away before the next.
"""

import logging
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from models.fp8_checkpoint import TensorFiles, read_into
from models.weight_names import hub_pieces, hub_views, stored_name

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LateWeights:
    """Where the weights of a model are, and which of them it has been given."""

    files: TensorFiles
    read: set[str] = field(default_factory=set)  # names in the model's state dict


def leave(model: PreTrainedModel, files: TensorFiles) -> bool:
    """Leave the weights of `model`, whose parameters are on the meta device, where they are until `fill` asks for them.
    Its buffers have memory: they are small, and rotary frequencies stand in no file. False, and nothing is left, unless
    the files have every weight under the name that is known here."""
    if missing := next((name for name in hub_views(model) if name not in files), None):
        logger.info("%s has no tensor %s: its weights are read at once, by every process", files.folder, missing)
        return False
    model.late_weights = LateWeights(files)  # pyright: ignore[reportArgumentType]
    return True


def is_late(model: nn.Module) -> bool:
    return hasattr(model, "late_weights")


@torch.no_grad()
def fill(model: PreTrainedModel, part: nn.Module) -> None:
    """Give `part` of `model`, or all of it, its weights, on the CPU, in so far as they were left where they are. They
    are trainable, or not, as they were said to be. A `part` of something else stays as it is.

    Raises KeyError or ValueError, naming the folder, for files that have changed since.
    """
    prefix = next((f"{name}." if name else "" for name, module in model.named_modules() if module is part), None)
    late: LateWeights | None = getattr(model, "late_weights", None)
    if late is None or prefix is None:
        return
    given: dict[nn.Parameter, nn.Parameter] = {}  # a tied one stays one
    for owner in part.modules():
        for leaf, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.is_meta:
                if parameter not in given:
                    here = torch.empty_like(parameter, device="cpu")
                    given[parameter] = nn.Parameter(here, requires_grad=parameter.requires_grad)
                setattr(owner, leaf, given[parameter])
    for name, tensor in part.state_dict(prefix=prefix).items():
        if name not in late.read and (stored := stored_name(model, name)) is not None:
            read_into(dict(hub_pieces(stored, tensor)), late.files)
        late.read.add(name)

"""The kinds of stages: where their config and code live, what they take and what they leave.

Both are named as "module:attribute" and imported late, so that reading a recipe never imports torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from pydantic import BaseModel

from training.stage import StageContext

ArtifactKind = Literal["checkpoint", "dataset", "reward_model", "scores"]


@dataclass(frozen=True, slots=True)
class Many:
    """A role that takes several artifacts, each with a label."""

    kind: ArtifactKind


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKind:
    config: str | type[BaseModel]  # "module:Class", or the class itself
    run: str | Callable[[Any, StageContext], None]  # "module:function", or the function itself
    leaves: ArtifactKind
    inputs: Mapping[str, ArtifactKind | Many] = field(default_factory=dict)  # role -> artifact kind
    optional: Mapping[str, ArtifactKind | Many] = field(default_factory=dict)  # roles that may stay empty

    @property
    def roles(self) -> dict[str, ArtifactKind | Many]:
        """All of them, those that must be filled first."""
        return {**self.inputs, **self.optional}

    def config_class(self) -> type[BaseModel]:
        return _load(self.config) if isinstance(self.config, str) else self.config

    def run_function(self) -> Callable[[Any, StageContext], None]:
        """The stage's code. Imports torch and friends: call it only when the stage really runs."""
        return _load(self.run) if isinstance(self.run, str) else self.run


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


KINDS: dict[str, StageKind] = {
    "import": StageKind(config="sft.import_config:ImportConfig", run="sft.import_model:run", leaves="checkpoint"),
    "pretrain": StageKind(config="sft.config:PretrainConfig", run="sft.pretrain:run", leaves="checkpoint"),
    "sft": StageKind(
        config="sft.config:SFTConfig",
        run="sft.train:run",
        inputs={"policy": "checkpoint", "dataset": "dataset"},
        leaves="checkpoint",
    ),
    "grpo": StageKind(
        config="rl.config:GRPOConfig",
        run="rl.train:run",
        inputs={"policy": "checkpoint"},
        optional={
            "helpful_rm": "reward_model",
            "safety_rm": "reward_model",
            "grm": "checkpoint",
            "judge": "checkpoint",
        },
        leaves="checkpoint",
    ),
    "cold_start_data": StageKind(
        config="sft.config:ColdStartConfig",
        run="sft.cold_start:run",
        inputs={"policy": "checkpoint"},
        leaves="dataset",
    ),
    "rejection_sampling": StageKind(
        config="sft.config:RejectionSamplingConfig",
        run="sft.rejection_sampling:run",
        inputs={"policy": "checkpoint"},
        optional={"grm": "checkpoint", "judge": "checkpoint"},
        leaves="dataset",
    ),
    "grm_cold_start_data": StageKind(
        config="sft.grm_config:GRMColdStartConfig", run="sft.grm_cold_start:run", leaves="dataset"
    ),
    "grm_rft_data": StageKind(
        config="sft.grm_config:GRMDataConfig",
        run="sft.grm_data:run",
        inputs={"policy": "checkpoint"},
        leaves="dataset",
    ),
    "grm_meta_data": StageKind(
        config="sft.grm_config:GRMDataConfig",
        run="sft.grm_meta:run",
        inputs={"policy": "checkpoint"},
        leaves="dataset",
    ),
    "preference_data": StageKind(
        config="sft.preference_config:PreferenceDataConfig",
        run="sft.preference_data:run",
        optional={"policies": Many("checkpoint"), "judge": "checkpoint"},
        leaves="dataset",
    ),
    "reward_model": StageKind(
        config="sft.preference_config:RewardModelConfig",
        run="sft.reward_model:run",
        inputs={"policy": "checkpoint", "dataset": "dataset"},
        leaves="reward_model",
    ),
    "traces": StageKind(
        config="distill.traces_config:TracesConfig",
        run="distill.traces:run",
        optional={"policy": "checkpoint", "dataset": "dataset", "grm": "checkpoint", "judge": "checkpoint"},
        leaves="dataset",
    ),
    "distill": StageKind(
        config="distill.config:DistillConfig",
        run="distill.train:run",
        inputs={"student": "checkpoint", "dataset": "dataset"},
        optional={"teacher": "checkpoint"},
        leaves="checkpoint",
    ),
    "teacher_logprobs": StageKind(
        config="distill.config:TeacherLogprobsConfig",
        run="distill.stored:run",
        inputs={"teacher": "checkpoint", "dataset": "dataset"},
        leaves="dataset",
    ),
    "on_policy_distill": StageKind(
        config="distill.config:OnPolicyDistillConfig",
        run="distill.on_policy:run",
        inputs={"student": "checkpoint", "teachers": Many("checkpoint")},
        leaves="checkpoint",
    ),
    "evaluate": StageKind(
        config="pipeline.evaluate_config:EvaluateConfig",
        run="pipeline.evaluate:run",
        inputs={"checkpoints": Many("checkpoint")},
        leaves="scores",
    ),
}

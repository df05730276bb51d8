"""The distill stage: a dense student learns from the curated set by SFT alone (DeepSeek-R1, section 4; B.4.3)."""

from distill.config import DistillConfig
from sft.config import SFTConfig
from sft.train import fine_tune
from training.stage import StageContext


def run(config: DistillConfig, context: StageContext) -> None:
    # The students are dense: no MTP module to train, no experts to balance.
    supervised = SFTConfig(**{name: getattr(config, name) for name in DistillConfig.model_fields}, mtp_weight=0.0)
    fine_tune(supervised, context, checkpoint=context.inputs["student"], dataset=context.inputs["dataset"])

"""How many processes train one policy, and what each of them holds. Free of torch, so that recipes load fast."""

from typing import Any, Self

from pydantic import BaseModel, Field, model_validator


class MeshConfig(BaseModel, extra="forbid", frozen=True):
    """The ranks of a trainer as a device mesh. One rank per device."""

    data: int = Field(
        default=1,
        ge=1,
        description="ranks that share the rows of a step; weights, gradients and optimizer state are sharded over them "
        "(FSDP2), and over those of `context`. 1: one process, which is what a small model needs",
    )
    expert: int = Field(
        default=1,
        ge=1,
        description="of the data ranks, how many hold different experts: a token travels to the ranks of its experts "
        "and back (all-to-all). Divides data and the number of experts. 1: every rank computes all experts, "
        "gathered when their layer's turn comes, which is best while a layer's experts fit in memory",
    )
    pipeline: int = Field(
        default=1,
        ge=1,
        description="ranks that a row travels through, each with two chunks of the decoder layers: rank i has chunks i "
        "and 2 * pipeline - 1 - i (DualPipeV). There are pipeline * context * data ranks. 1: every rank has all "
        "layers, which is best while the gathered weights of a layer and the activations of a row fit in memory",
    )

    context: int = Field(
        default=1,
        ge=1,
        description="ranks that a row's tokens are spread over; each has a part of its activations, and gathers keys "
        "and values for attention. Weights are sharded over these too. For rows too long for one device. 1: "
        "whole rows",
    )

    @property
    def shards(self) -> int:
        """Ranks that a weight is sharded over."""
        return self.context * self.data

    @property
    def ranks(self) -> int:
        return self.pipeline * self.shards

    @model_validator(mode="after")
    def _experts_borrow_data_ranks(self) -> Self:
        if self.data % self.expert:
            raise ValueError(
                f"mesh: expert {self.expert} does not divide data {self.data}: groups of `expert` ranks are made of "
                f"the data ranks; set data to a multiple of {self.expert}"
            )
        return self

    def check_model(self, config: Any) -> None:
        """`config`: of a transformers model. Raises ValueError for a model that cannot be laid out over this mesh."""
        if self.context > 1 and config.model_type == "deepseek_v4":
            raise ValueError(
                "mesh: deepseek_v4's attention compresses tokens, which needs whole rows; set context to 1"
            )
        if self.pipeline > 1 and config.model_type == "deepseek_v4":
            raise ValueError(
                "mesh: a pipeline hands one state per token from layer to layer, and deepseek_v4's layers have several "
                "and ask for the token as well; set pipeline to 1"
            )
        if self.pipeline > 1 and config.num_hidden_layers < (chunks := 2 * self.pipeline):
            layers = config.num_hidden_layers
            raise ValueError(
                f"mesh: pipeline {self.pipeline} cuts the decoder layers into {chunks} chunks, and this model has "
                f"{layers} layers; set pipeline to {max(1, layers // 2)} or less"
            )
        if self.expert == 1:
            return
        experts = getattr(config, "n_routed_experts", None) or getattr(config, "num_experts", None)
        if not experts:
            raise ValueError(
                f"mesh: expert {self.expert} needs a model with routed experts, and {config.model_type} has none here; "
                "set expert to 1"
            )
        if experts % self.expert:
            raise ValueError(
                f"mesh: expert {self.expert} does not divide the model's {experts} experts; set it to a divisor of both"
            )
        rest = self.shards // self.expert
        sizes = {"hidden_size": config.hidden_size, "2 * moe_intermediate_size": 2 * config.moe_intermediate_size}
        for name, size in sizes.items():
            if size % rest:
                raise ValueError(
                    f"mesh: every expert is cut over context * data / expert = {rest} ranks along the model's {name} "
                    f"({size}), which {rest} does not divide; choose data and expert so that it does"
                )


ONE_RANK = MeshConfig()

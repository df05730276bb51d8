"""Settings of GRPO. Free of torch, so that recipes load fast."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from data.config import OPERATIONAL, ProblemSource
from data.problem_pool import ProblemsConfig
from rewards.config import RewardSpec, RewardWorkersConfig
from rl.objective import ObjectiveConfig
from rollouts.config import GeneratorConfig, JudgeServiceConfig, RolloutConfig
from training.config import OptimizerConfig, TrainingConfig


class RewardWatchConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The watch for reward hacking (rl.reward_watch)."""

    reward: str = Field(default="helpful", description="name of the learned reward that is watched")
    second: RewardSpec | None = Field(
        default=None,
        description="another judge of general answers, which nothing is trained on: another reward model, a generative "
        "one, or in miniature the truth; none leaves accuracy and length to tell",
    )
    every: int = Field(
        default=4, ge=1, description="rollout batches between two checks; each costs 2 x problems answers"
    )
    problems: int = Field(
        default=64,
        ge=8,
        description="held-out problems of each kind, reasoning and general; 64 show a change of a tenth",
    )
    sources: tuple[ProblemSource, ...] = Field(
        default=(),
        description="held-out problems to watch on, general ones with domain general; needed where problems.sources "
        "are trained on, which leave out whatever shares 10 words in a row with these. None: held-out procedural ones",
    )
    risk: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="chance of a false alert in a whole run whose judges stand still; 0.05 as is usual",
    )
    length_factor: float = Field(
        default=2.0, gt=1, description="growth of general answers that counts as parting, under a rising reward"
    )
    on_alert: Literal["log", "stop"] = Field(
        default="log",
        description="log: say so in the log and go on; stop: end the stage there, with the policy as it is then",
    )


class OwnSamplesConfig(TrainingConfig, extra="forbid", frozen=True):
    """A policy that is trained on what it samples itself."""

    steps: int = Field(default=1000, ge=1, description="optimizer steps; how many is for the stage to say")
    problems: ProblemsConfig = Field(default=ProblemsConfig(), description="prompts to sample on")
    held_out_sources: tuple[ProblemSource, ...] = Field(
        default=(),
        description="benchmarks no problem of `problems.sources`, nor item of `problems.judging.sources`, may share 10 "
        "words in a row with (R1, D.1)",
    )
    sample_in_trainer: bool = Field(
        default=False,
        description="the trainer's process samples with the very weights it trains: no copies, no weight sync, least "
        "memory; false: separate generator processes, faster where they have cores or devices of their own",
    )
    rollout: RolloutConfig = Field(default=RolloutConfig(), description="how completions are drawn")
    generator: GeneratorConfig = Field(default=GeneratorConfig(), description="the sampling processes")

    @model_validator(mode="after")
    def _generator_is_used(self) -> Self:
        given, default = self.generator.model_dump(), GeneratorConfig().model_dump()
        ignored = [key for key in given if given[key] != default[key] and key not in ("max_slots", "deadline_s")]
        if self.sample_in_trainer and ignored:
            raise ValueError(f"sample_in_trainer starts no generators, so generator.{ignored[0]} would be ignored")
        if self.sample_in_trainer and self.optimizer.offload != "none":
            raise ValueError(
                "sample_in_trainer starts no generators to make room for, so optimizer.offload would be ignored; leave "
                "one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _sampler_has_whole_weights(self) -> Self:
        trainer = self.trainer
        rounds = trainer.precision == "bfloat16" or (trainer.precision == "fp8" and trainer.device == "cuda")
        if self.sample_in_trainer and (trainer.mesh.ranks > 1 or rounds):
            raise ValueError(
                "sample_in_trainer samples with the whole weights of one process, and trainer.mesh, precision bfloat16 "
                "or precision fp8 on a GPU shards them; set sample_in_trainer: false"
            )
        return self

    @model_validator(mode="after")
    def _both_sides_quantise_alike(self) -> Self:
        trainer, wire = self.trainer, self.generator.sync.wire
        if wire == "fp8" and trainer.precision == "fp8" and trainer.fp8.scales != "float32":
            raise ValueError(
                "generator.sync.wire fp8 has float32 scales, and trainer.fp8.scales power_of_two would train on other "
                "weights; set trainer.fp8.scales: float32 or generator.sync.wire: bfloat16"
            )
        return self


class GRPOConfig(OwnSamplesConfig, extra="forbid", frozen=True):
    """GRPO as DeepSeek-R1 runs it (section 2.1): sample a rollout batch, split it into mini-batches, one step each."""

    rewards: tuple[RewardSpec, ...] = Field(
        default=(RewardSpec(use="rewards.accuracy:Accuracy"), RewardSpec(use="rewards.format:Format")),
        description="reward terms; accuracy and format with the same weight are R1-Zero's (Eq. 4)",
    )
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="preset and overrides; r1 by default")
    steps: int = Field(
        default=10400, ge=1, description="optimizer steps; 10,400 for R1-Zero, 1,700 for R1's last stage"
    )
    questions_per_step: int = Field(default=32, ge=1, description="questions behind one optimizer step; the paper's 32")
    group_size: int = Field(default=16, ge=2, description="completions per question; the paper's 16")
    mini_batches: int = Field(
        default=16, ge=1, description="optimizer steps per rollout batch, one epoch; the paper's 16"
    )
    max_new_tokens_from: dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="step -> longest completion, tokens, of the rollout batches that begin at this step or later, in "
        "place of rollout.max_new_tokens; R1-Zero: {8200: 65536}",
    )
    resample_rounds: int = Field(
        default=9,
        ge=0,
        description="with objective.dynamic_sampling: further rounds of questions at most, to fill the batch with "
        "groups that have a signal; 9, as DAPO's code gives up after 10 in all. What is there is then trained on",
    )
    max_staleness: int = Field(
        default=0,
        ge=0,
        description="weight syncs that may lie between a token being sampled and being trained on. 0: sampling and "
        "training take turns, as in R1. 1: a batch is sampled while the one before is trained on. More: the batches "
        "after it are begun too, where generators have free slots, and go on with new weights, so that long "
        "completions keep no slot waiting. Give objective.correction with it, or preset v3_2: the policy has moved on",
    )
    reference_every: int = Field(
        default=400, ge=1, description="steps after which the reference becomes the current policy"
    )
    general_from_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps after which general problems enter; R1's last stage: 0.765 (1,300 of 1,700)",
    )
    watch: RewardWatchConfig | None = Field(
        default=None, description="watch a learned reward for hacking; none: no learned reward, nothing to watch"
    )
    reward_workers: RewardWorkersConfig = Field(
        default=RewardWorkersConfig(), description="the scoring processes, which work while others are still sampled"
    )
    judges: JudgeServiceConfig = Field(
        default=JudgeServiceConfig(), description="the processes of the inputs `grm` and `judge`, where there are any"
    )
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(), description="constant 3e-6 as the paper; schedule not stated"
    )
    mtp_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the multi-token-prediction loss on the sampled tokens, whatever their advantage; not "
        "stated for RL. It trains the MTP module alone, so that drafting keeps up with the policy and the policy "
        "learns from rewards only; 0 leaves the module as it is",
    )
    bias_speed: float = Field(
        default=0.0,
        ge=0,
        description="speed of aux-loss-free balance; not stated for RL: at 0 the routers stay those that sampled",
    )
    balance_weight: float = Field(
        default=0.0, ge=0, description="weight of the sequence-wise balance loss; not stated for RL, 0 is ours"
    )
    unscorable_limit: Annotated[float, OPERATIONAL] = Field(
        default=0.2,
        ge=0,
        le=1,
        description="largest share of a rollout batch that rewards may fail to judge; above it the run stops, since "
        "what is left is no fair sample",
    )
    mismatch_limit: Annotated[float, OPERATIONAL] = Field(
        default=0.05,
        gt=0,
        description="nats; the run stops when generator and trainer disagree more than this per token on average: then "
        "the policy that samples is not the policy that trains",
    )
    allow_truncated_sampling: bool = Field(
        default=False,
        description="train on completions of top_p, top_k or min_p without objective.keep_sampling_mask all the same; "
        "false: they are not drawn from the policy that is trained. The mismatch then holds the share that was cut "
        "off (up to -log top_p per token), so mismatch_limit must lie above it",
    )
    log_routing_groups: int = Field(
        default=4,
        ge=0,
        description="groups of a rollout batch whose experts the generator returns, for mismatch/routing_agreement; a "
        "few cost next to nothing. All do under routing_replay: rollout; dense models have none",
    )
    log_samples: int = Field(default=8, ge=0, description="completions kept in samples.jsonl per rollout batch")
    record_every: int = Field(
        default=1,
        ge=0,
        description="rollout batches of which one is kept whole in groups/: every token with its logprobs, reward and "
        "advantage, some 15 bytes per token, for `r1 view` and `r1 replay`. 1: every step can be run again; 0: none",
    )

    @model_validator(mode="after")
    def _samples_what_it_trains(self) -> Self:
        if self.rollout.temperature == 0:
            raise ValueError("rollout: training needs temperature above 0: greedy completions of a group are all equal")
        keeps_mask = self.objective.resolve().keep_sampling_mask
        if self.rollout.truncates and not (keeps_mask or self.allow_truncated_sampling):
            raise ValueError(
                "rollout: top_p, top_k and min_p cut tokens off, but old and policy logprobs are those of the whole "
                "distribution, which biases every importance ratio; set objective.keep_sampling_mask: true (logprobs "
                "over what was left) or allow_truncated_sampling: true (train with the bias)"
            )
        return self

    @model_validator(mode="after")
    def _can_run_ahead(self) -> Self:
        if not self.max_staleness:
            return self
        if self.sample_in_trainer or self.generator.sleep:
            key = "sample_in_trainer" if self.sample_in_trainer else "generator.sleep"
            raise ValueError(
                f"max_staleness {self.max_staleness} samples while the trainer trains, and {key} lets them take turns; "
                f"set {key}: false or max_staleness: 0"
            )
        if self.optimizer.offload != "none":
            raise ValueError(
                f"max_staleness {self.max_staleness} samples while the trainer trains, so that optimizer.offload "
                f"{self.optimizer.offload} would be ignored; set it to none or max_staleness: 0"
            )
        if self.max_staleness > 1 and self.generator.work_stealing:
            raise ValueError(
                f"max_staleness {self.max_staleness} goes on with interrupted completions, and under "
                "generator.work_stealing it depends on the clock which these are; set work_stealing: false or "
                "max_staleness: 1"
            )
        return self

    @model_validator(mode="after")
    def _general_part_is_reached(self) -> Self:
        last = (self.rollouts - 1) / self.rollouts
        if self.problems.instruction_share and self.general_from_share > last:
            raise ValueError(
                f"general_from_share {self.general_from_share} is never reached: the last rollout batch starts at "
                f"{last:.3g} of the steps; take more steps or a smaller share"
            )
        return self

    @model_validator(mode="after")
    def _lengths_are_reached(self) -> Self:
        late = [start for start in self.max_new_tokens_from if start >= self.steps]
        if late:
            raise ValueError(f"max_new_tokens_from: step {late[0]} is not among the stage's {self.steps} steps")
        return self

    @model_validator(mode="after")
    def _there_is_something_to_watch(self) -> Self:
        if self.watch is None:
            return self
        for key in ("sources", "general_sources"):
            if getattr(self.problems, key) and not self.watch.sources:
                raise ValueError(
                    f"watch: the stage trains on all of problems.{key}; give held-out ones as watch.sources"
                )
        if not self.problems.instruction_share and not self.watch.sources:
            raise ValueError("watch: there are no general problems to watch; set problems.instruction_share")
        return self

    @model_validator(mode="after")
    def _whole_rollouts(self) -> Self:
        if self.steps % self.mini_batches:
            raise ValueError(
                f"steps ({self.steps}) must be a multiple of mini_batches ({self.mini_batches}): a rollout batch is "
                "trained on as a whole"
            )
        return self

    def max_new_tokens_at(self, step: int) -> int:
        """The longest completion of a rollout batch that begins at `step`."""
        reached = [start for start in self.max_new_tokens_from if start <= step]
        return self.max_new_tokens_from[max(reached)] if reached else self.rollout.max_new_tokens

    @property
    def rollouts(self) -> int:
        return self.steps // self.mini_batches

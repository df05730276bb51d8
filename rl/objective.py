"""What the policy maximises: named presets, each field of which a recipe may override on its own.

    J = agg_t [ c M min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) - kl_coef KL(policy || reference)
                + entropy_coef H(policy) ]

Sources: r1 = DeepSeek-R1 (arXiv:2501.12948), v3_2 = DeepSeek-V3.2 (2512.02556, section 3.1), dapo = DAPO (2503.14476),
dr_grpo = Dr. GRPO (2503.20783), gspo = GSPO (2507.18071). What a paper leaves open is chosen here and marked "ours".
The maths is in `rl.loss`, `rl.correction` (c, M) and `rl.advantage`; this module is free of torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

Preset = Literal["r1", "v3_2", "dapo", "dr_grpo", "gspo"]
KLEstimator = Literal["k1", "k2", "k3"]
RatioLevel = Literal["token", "sequence"]
Aggregation = Literal["sequence_mean", "token_mean", "sequence_sum"]
Overlong = Literal["soft", "mask", "none"]
Correction = Literal["none", "tis_token", "tis_sequence", "mis_token", "mis_sequence"]

# correction: (floor, cap) where a recipe gives none. 2 is verl's cap for TIS, [0.5, 2] its bounds for masked sequences,
# [0.5, 5] are IcePop's.
CORRECTION_BOUNDS: dict[Correction, tuple[float, float]] = {
    "none": (0.0, math.inf),
    "tis_token": (0.0, 2.0),
    "tis_sequence": (0.0, 2.0),
    "mis_token": (0.5, 5.0),
    "mis_sequence": (0.5, 2.0),
}
RoutingReplayMode = Literal["off", "rollout", "trainer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A resolved objective: plain numbers, no preset. `ObjectiveConfig` says what each field means."""

    clip_low: float
    clip_high: float
    kl_coef: float
    kl_estimator: KLEstimator
    unbiased_kl: bool
    entropy_coef: float
    advantage_std: bool
    ratio_level: RatioLevel
    aggregation: Aggregation
    sequence_mask_delta: float | None  # nats per token; None = no mask
    correction: Correction
    correction_floor: float  # ratio in [0, 1]; 0 = no floor
    correction_cap: float  # ratio of at least 1; infinity = no cap
    dynamic_sampling: bool
    overlong: Overlong
    overlong_buffer: float  # share of the maximum completion length
    routing_replay: RoutingReplayMode
    keep_sampling_mask: bool

    def __post_init__(self) -> None:
        if self.unbiased_kl and self.kl_estimator != "k3":
            raise ValueError(
                f"unbiased_kl is defined for kl_estimator k3 (V3.2 eq. 7), got {self.kl_estimator}; "
                "set kl_estimator to k3 or unbiased_kl to false"
            )
        if self.correction == "none" and (self.correction_floor > 0 or self.correction_cap < math.inf):
            raise ValueError(
                "correction_floor and correction_cap bound the weights of a correction, but correction is "
                "none; choose one or leave the bounds out"
            )
        if self.correction.startswith("tis") and self.correction_floor > 0:
            raise ValueError(
                f"{self.correction} only caps weights, so correction_floor {self.correction_floor} would be "
                "ignored; leave it out or choose mis_token or mis_sequence"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads reference logprobs."""
        return self.kl_coef > 0

    @property
    def made_in_chunks(self) -> bool:
        """Whether the loss is a sum over tokens whose shares need no other token's policy logprob, so that it can be
        made some tokens at a time; the mask of sequences, which does need them, is guessed (rl.chunked_loss)."""
        return self.ratio_level == "token"

    @property
    def needs_sampling(self) -> bool:
        """Whether the loss reads the generator's logprobs."""
        return self.sequence_mask_delta is not None or self.correction != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """What the loss of one *mini-batch* is divided by, summed over all its micro-batches and ranks."""

    sequences: int  # trained sequences
    tokens: int  # completion tokens of those sequences
    max_length: int  # the longest completion the rollout may sample, tokens; constant within a rollout batch

    def __post_init__(self) -> None:
        for name in ("sequences", "tokens", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"denominators: {name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def of(cls, lengths: Sequence[int], max_length: int) -> "Denominators":
        """From the completion lengths of every trained sequence of the mini-batch."""
        return cls(sequences=len(lengths), tokens=sum(lengths), max_length=max_length)


_R1 = Objective(
    clip_low=10.0,
    clip_high=10.0,
    kl_coef=0.001,
    kl_estimator="k3",
    unbiased_kl=False,
    entropy_coef=0.0,
    advantage_std=True,
    ratio_level="token",
    aggregation="sequence_mean",  # not stated; ours, as in DeepSeekMath
    sequence_mask_delta=None,
    correction="none",
    correction_floor=0.0,
    correction_cap=math.inf,
    dynamic_sampling=False,
    overlong="none",
    overlong_buffer=0.2,
    routing_replay="off",
    keep_sampling_mask=False,
)
PRESETS: dict[Preset, Objective] = {
    "r1": _R1,
    # V3.2 prints neither clip range, kl_coef nor delta: the first two stay R1's, delta is ours.
    "v3_2": replace(
        _R1,
        unbiased_kl=True,
        advantage_std=False,
        sequence_mask_delta=0.5,
        routing_replay="rollout",
        keep_sampling_mask=True,
    ),
    "dapo": replace(
        _R1,
        clip_low=0.2,
        clip_high=0.28,
        kl_coef=0.0,
        aggregation="token_mean",
        dynamic_sampling=True,
        overlong="soft",
    ),
    "dr_grpo": replace(_R1, clip_low=0.2, clip_high=0.2, kl_coef=0.0, advantage_std=False, aggregation="sequence_sum"),
    # GSPO leaves the KL term out of its formulas; no KL is ours.
    "gspo": replace(_R1, clip_low=3e-4, clip_high=4e-4, kl_coef=0.0, ratio_level="sequence"),
}


class ObjectiveConfig(BaseModel, extra="forbid", frozen=True):
    """A preset and what differs from it. A field left null takes the preset's value."""

    preset: Preset = Field(
        default="r1",
        description="Named objective that fills every field left null: r1 (DeepSeek-R1's GRPO), v3_2 (DeepSeek-V3.2), "
        "dapo, dr_grpo, gspo; r1 because this is the pipeline being reproduced.",
    )
    clip_low: float | None = Field(
        default=None,
        ge=0,
        description="The importance ratio is kept above 1 - clip_low where the advantage is negative. r1: 10, as "
        "printed (section 3.2.1: a small value cuts the gradient of many tokens); the interval is [-9, 11] and ratios "
        "are positive, so this side never binds, and with a negative advantage the ratio is unbounded above, as in "
        "plain PPO. v3_2: not stated, R1's (ours). dapo: 0.2. dr_grpo: PPO's usual 0.2 (ours). gspo: 3e-4, on the "
        "sequence ratio.",
    )
    clip_high: float | None = Field(
        default=None,
        ge=0,
        description="The importance ratio is kept below 1 + clip_high where the advantage is positive. r1: 10, as "
        "printed: the gradient of a token is cut once it is 11 times likelier than when sampled. v3_2: not stated, "
        "R1's (ours). dapo: 0.28 (clip-higher: rare tokens may rise). dr_grpo: PPO's usual 0.2 "
        "(ours). gspo: 4e-4.",
    )
    kl_coef: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the KL to the reference policy in the loss; 0 needs no reference. r1: 0.001, as "
        "printed. v3_2: not stated, R1's (ours). dapo, dr_grpo: 0, as printed. gspo: 0 (ours: the paper leaves the "
        "term out).",
    )
    kl_estimator: KLEstimator | None = Field(
        default=None,
        description="Per-token estimate, with log_r = ref - policy: k1 = -log_r, k2 = log_r^2 / 2, "
        "k3 = exp(log_r) - log_r - 1. All presets: k3, as in GRPO; never negative. In a loss, k1 has no pull towards "
        "the reference on average.",
    )
    unbiased_kl: bool | None = Field(
        default=None,
        description="Multiply k3 by the importance ratio, gradient included (DeepSeek-V3.2 eq. 7), which makes the KL "
        "gradient unbiased when completions come from the old policy. v3_2: true. Others: false, as printed.",
    )
    entropy_coef: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the entropy of each token's distribution (nats, at the rollout's temperature and over "
        "its sampling mask) in what is maximised: it keeps a policy from narrowing. All presets: 0; no paper of theirs "
        "has it.",
    )
    advantage_std: bool | None = Field(
        default=None,
        description="Divide reward minus group mean by the group's standard deviation (population; the papers do not "
        "say which, ours). r1, dapo, gspo: true. v3_2, dr_grpo: false, as printed: dividing weighs very easy and very "
        "hard problems up.",
    )
    ratio_level: RatioLevel | None = Field(
        default=None,
        description="token: one importance ratio per token. sequence: their geometric mean over the completion, "
        "shared by its tokens. gspo: sequence. Others: token (R1's formula writes whole outputs, its text clips "
        "tokens).",
    )
    aggregation: Aggregation | None = Field(
        default=None,
        description="How tokens become one number. sequence_mean: mean over sequences of each one's token mean. "
        "token_mean: one mean over all tokens of the mini-batch. sequence_sum: mean over sequences of the token sum "
        "divided by the maximum completion length, a constant. r1: not stated, sequence_mean (ours, DeepSeekMath's "
        "1/|o_i|); v3_2, gspo: sequence_mean. dapo: token_mean. dr_grpo: sequence_sum.",
    )
    sequence_mask_delta: Annotated[float, Field(ge=0)] | Literal["none"] | None = Field(
        default=None,
        description="Off-policy sequence mask (DeepSeek-V3.2 eq. 8-9), nats per token, or none: a completion with "
        "negative advantage whose mean (sampling - policy logprob) exceeds it loses its policy term. v3_2: 0.5 (ours, "
        "the paper prints no value: far above the 1e-3 of numerical mismatch between generator and trainer). Others: "
        "none.",
    )
    correction: Correction | None = Field(
        default=None,
        description="Multiply each policy term by a weight that makes up for the generator's probabilities not being "
        "the trainer's, made of the mismatch ratio exp(old - sampling). tis_token, tis_sequence: the ratio, at most "
        "correction_cap (truncated importance sampling). mis_token, mis_sequence: the ratio if it lies in "
        "[correction_floor, correction_cap], else 0 (masked importance sampling). token: one ratio per token; little "
        "spread, some bias. sequence: their product over the completion; no bias but that of the bounds, and a spread "
        "that grows with length. All presets: none (no paper of theirs has one).",
    )
    correction_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] | Literal["none"] | None = Field(
        default=None,
        description="Largest mismatch ratio that counts in full, or none for no limit: tis cuts larger ones to it, mis "
        "drops them. A little bias, for gradients that no single token or completion rules. tis_token, tis_sequence, "
        "mis_sequence: 2, as in verl. mis_token: 5, IcePop's. At least 1, so that equal logprobs change nothing.",
    )
    correction_floor: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Smallest mismatch ratio that mis_token and mis_sequence keep, or 0 for no limit: a token far "
        "less likely to the trainer than to the generator is as wrong as the reverse. Both: 0.5, as in IcePop and "
        "verl. tis has no floor.",
    )
    dynamic_sampling: bool | None = Field(
        default=None,
        description="Leave groups without signal (all rewards equal) out of training altogether, and ask further "
        "questions in their place (see resample_rounds). dapo: true. Others: false: they have zero advantage but still "
        "count in the denominators and keep their KL term.",
    )
    overlong: Overlong | None = Field(
        default=None,
        description="Completions near the length limit. soft: lower the reward linearly down to -1 over the last "
        "tokens (DAPO eq. 13). mask: leave truncated completions out of the loss. none: no treatment. dapo: soft. "
        "Others: none (R1 does not say how truncated answers are treated).",
    )
    overlong_buffer: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Where `overlong: soft` starts, as the last share of the maximum completion length. All presets: "
        "0.2, DAPO's 4,096 of 20,480 tokens; a share, so that one preset serves every length.",
    )
    routing_replay: RoutingReplayMode | None = Field(
        default=None,
        description="Which experts tokens go to in training. off: those the policy's routers choose. rollout: those "
        "that the generator chose while sampling (R3, arXiv:2510.11370; DeepSeek-V3.2's keep routing), in the old "
        "logprobs and in every step. trainer: those of the pass for the old logprobs, in every step (R2). Gates come "
        "from the logits of the policy being trained, so routers still learn. The reference routes by itself (ours). "
        "Models without experts have nothing to replay. v3_2: rollout. Others: off.",
    )
    keep_sampling_mask: bool | None = Field(
        default=None,
        description="Where the rollout's top_p, top_k or min_p cut tokens off, remember which, and take policy, old "
        "and ref logprobs over what was left (DeepSeek-V3.2, section 3.1): the policy trained is then the one that "
        "sampled. No effect when nothing is cut off. v3_2: true. Others: false, and truncated sampling is refused.",
    )

    @model_validator(mode="after")
    def _reject_contradictions(self) -> "ObjectiveConfig":
        self.resolve()
        return self

    def resolve(self) -> Objective:
        """The preset with this config's overrides. Raises ValueError when they contradict each other."""
        overrides = self.model_dump(exclude={"preset"}, exclude_none=True)
        if overrides.get("sequence_mask_delta") == "none":
            overrides["sequence_mask_delta"] = None
        if overrides.get("correction_cap") == "none":
            overrides["correction_cap"] = math.inf
        if self.correction is not None:
            floor, cap = CORRECTION_BOUNDS[self.correction]
            overrides = {"correction_floor": floor, "correction_cap": cap} | overrides
        return replace(PRESETS[self.preset], **overrides)

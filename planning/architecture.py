"""The shape of a language model as its config.json tells it, and what follows: parameters, FLOPs, cache.

Counts are those of the released checkpoints' tensors (a test compares them with files). FLOPs are of one token's
forward pass: a product of [1, a] and [a, b] is 2 a b.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

KNOWN_TYPES = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "llama", "qwen2", "qwen3", "qwen3_moe")


class UnknownArchitecture(ValueError):
    """A config.json that this planner cannot count."""


@dataclass(frozen=True, slots=True)
class Flops:
    """Of some tokens, by what is multiplied: these run at different speeds on small machines."""

    dense: float = 0.0
    experts: float = 0.0
    attention: float = 0.0  # scores and weighted sums alone; its projections are dense
    head: float = 0.0

    @property
    def total(self) -> float:
        return self.dense + self.experts + self.attention + self.head

    def __mul__(self, factor: float) -> "Flops":
        return Flops(self.dense * factor, self.experts * factor, self.attention * factor, self.head * factor)

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.dense + other.dense,
            self.experts + other.experts,
            self.attention + other.attention,
            self.head + other.head,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder of dense layers and, after `dense_layers` of them, layers with routed experts, if there are any.

    kv_latent > 0: multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).
    """

    name: str
    model_type: str
    layers: int
    dense_layers: int
    width: int
    heads: int
    kv_heads: int
    qk_dim: int  # of one head, rotary part and all
    v_dim: int
    q_latent: int  # 0: queries are projected at once
    kv_latent: int  # 0: no latent
    rope_dim: int  # of the key that all heads share, with a latent
    dense_ffn: int
    expert_ffn: int
    experts: int
    top_k: int
    shared_experts: int
    vocab: int
    tied: bool
    mtp_layers: int
    context: int
    qkv_bias: bool = False
    qk_norm: bool = False
    index_heads: int = 0  # DeepSeek-V3.2's indexer
    index_dim: int = 0

    @classmethod
    def read(cls, config: Mapping[str, Any], name: str) -> Self:
        """Raises UnknownArchitecture, in one sentence, for a model type or values that it does not know."""
        kind = config.get("model_type")
        if kind not in KNOWN_TYPES:
            raise UnknownArchitecture(
                f"{name}: the planner cannot count models of model_type {kind!r}; it knows {', '.join(KNOWN_TYPES)}"
            )
        try:
            return cls(name=name, model_type=kind, **_sizes(config, kind))
        except (KeyError, TypeError) as error:
            raise UnknownArchitecture(f"{name}: config.json lacks what a {kind} has: {error}") from None

    # --- parameters ---

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers

    @property
    def attention_parameters(self) -> int:
        """Of one layer, its two norms left out."""
        if not self.kv_latent:
            projections = self.width * self.qk_dim * (self.heads + 2 * self.kv_heads)
            bias = self.qk_dim * (self.heads + 2 * self.kv_heads) if self.qkv_bias else 0
            return projections + self.heads * self.v_dim * self.width + bias + (2 * self.qk_dim if self.qk_norm else 0)
        queries = self.heads * self.qk_dim
        asked = (
            self.width * self.q_latent + self.q_latent + self.q_latent * queries
            if self.q_latent
            else self.width * queries
        )
        latent = self.width * (self.kv_latent + self.rope_dim) + self.kv_latent
        expanded = self.kv_latent * self.heads * (self.qk_dim - self.rope_dim + self.v_dim)
        return asked + latent + expanded + self.heads * self.v_dim * self.width + self._indexer_parameters

    @property
    def _indexer_parameters(self) -> int:
        if not self.index_heads:
            return 0
        queries = self.q_latent * self.index_heads * self.index_dim
        return queries + self.width * self.index_dim + 2 * self.index_dim + self.width * self.index_heads

    @property
    def expert_parameters(self) -> int:
        """Of one routed expert."""
        return 3 * self.width * self.expert_ffn

    @property
    def layer_parameters(self) -> int:
        """Of a layer with dense feed-forward."""
        return self.attention_parameters + 2 * self.width + 3 * self.width * self.dense_ffn

    @property
    def moe_layer_dense_parameters(self) -> int:
        """Of a layer with experts, these left out: attention, norms, router, shared experts."""
        router = self.experts * self.width + (self.experts if self.model_type in _WITH_BIAS else 0)
        return self.attention_parameters + 2 * self.width + router + self.shared_experts * self.expert_parameters

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.width

    @property
    def mtp_dense_parameters(self) -> int:
        """Of all MTP layers, routed experts and the shared embedding and head left out."""
        own = 2 * self.width * self.width + 3 * self.width
        return self.mtp_layers * (own + self.moe_layer_dense_parameters)

    @property
    def routed_parameters(self) -> int:
        """Routed experts of all layers, MTP included."""
        return (self.moe_layers + self.mtp_layers) * self.experts * self.expert_parameters

    @property
    def dense_parameters(self) -> int:
        """All that is not a routed expert, MTP included."""
        ends = self.embedding_parameters * (1 if self.tied else 2) + self.width
        layers = self.dense_layers * self.layer_parameters + self.moe_layers * self.moe_layer_dense_parameters
        return ends + layers + self.mtp_dense_parameters

    @property
    def parameters(self) -> int:
        """All, MTP included; a tied head counts once."""
        return self.dense_parameters + self.routed_parameters

    @property
    def main_parameters(self) -> int:
        """Without the MTP layers: what a generator that does not draft holds."""
        return self.parameters - self.mtp_dense_parameters - self._mtp_routed

    @property
    def _mtp_routed(self) -> int:
        return self.mtp_layers * self.experts * self.expert_parameters

    @property
    def active_parameters(self) -> int:
        """Used by one token, embedding and head included, MTP not."""
        idle = self.moe_layers * (self.experts - self.top_k) * self.expert_parameters
        return self.main_parameters - idle

    # --- FLOPs ---

    def layer_flops(self, seen: float) -> Flops:
        """Of one token through all decoder layers, `seen` tokens standing before it on average."""
        dense = self.layers * self._attention_products + self.dense_layers * 3 * self.width * self.dense_ffn
        dense += self.moe_layers * (self.experts * self.width + self.shared_experts * self.expert_parameters)
        experts = self.moe_layers * self.top_k * self.expert_parameters
        attention = self.layers * self.heads * (self.qk_dim + self.v_dim) * seen
        return Flops(2 * dense, 2 * experts, 2 * attention)

    def mtp_flops(self, seen: float) -> Flops:
        """Of one token through the MTP layers, their use of the head left out."""
        dense = self._attention_products + 2 * self.width * self.width + self.experts * self.width
        dense += self.shared_experts * self.expert_parameters
        attention = self.heads * (self.qk_dim + self.v_dim) * seen
        one = Flops(2 * dense, 2 * self.top_k * self.expert_parameters, 2 * attention)
        return one * self.mtp_layers

    @property
    def head_flops(self) -> float:
        """Of one predicted token."""
        return 2 * self.width * self.vocab

    @property
    def _attention_products(self) -> int:
        """Weights of one layer's attention that a token is multiplied by."""
        vectors = (self.q_latent + self.kv_latent) if self.kv_latent else 2 * self.qk_dim * self.qk_norm
        bias = self.qk_dim * (self.heads + 2 * self.kv_heads) * self.qkv_bias
        return self.attention_parameters - vectors - bias - 2 * self.index_dim

    # --- what a running completion keeps ---

    @property
    def latent_cache(self) -> int:
        """Elements per token of all layers as serving engines keep them: MLA's latent and rotary key (V3, 2.1.1), else
        keys and values of the key heads."""
        if self.kv_latent:
            return self.layers * (self.kv_latent + self.rope_dim + self.index_dim)
        return self.layers * self.kv_heads * (self.qk_dim + self.v_dim)

    @property
    def expanded_cache(self) -> int:
        """Elements per token as rollouts.kv_cache keeps them: MLA's keys and values are expanded."""
        heads = self.heads if self.kv_latent else self.kv_heads
        return self.layers * heads * (self.qk_dim + self.v_dim)

    # --- what a training pass keeps for backward, elements per token ---

    @property
    def _kept_by_attention(self) -> int:
        """Inputs and results of the two norms (3 each: input, normalised, scaled), of attention (queries, keys, values,
        result, and the same in the row's order for the last projection), and of the latents' norms."""
        kv_heads = self.heads if self.kv_latent else self.kv_heads
        attention = self.heads * (self.qk_dim + 2 * self.v_dim) + kv_heads * (self.qk_dim + self.v_dim)
        return 6 * self.width + attention + 3 * (self.q_latent + self.kv_latent)

    @property
    def kept_by_dense_layer(self) -> int:
        """With SwiGLU's gate, up, activated gate and product."""
        return self._kept_by_attention + 4 * self.dense_ffn

    @property
    def kept_by_moe_layer(self) -> int:
        """Every chosen expert keeps its rows, its gate and up, two products and its result."""
        routed = self.top_k * (3 * self.width + 4 * self.expert_ffn)
        return self._kept_by_attention + routed + self.shared_experts * 4 * self.expert_ffn + 3 * self.experts

    @property
    def kept_products(self) -> int:
        """Of all layers under recompute norms_and_up_projections: results of matrix products and of attention alone
        (models.recompute), up-projections left out."""
        attention = 2 * self.width + self.heads * self.v_dim + self.q_latent + self.kv_latent + self.rope_dim
        if not self.kv_latent:
            attention += (self.heads + 2 * self.kv_heads) * self.qk_dim
        dense = attention + 2 * self.dense_ffn + self.width
        moe = attention + self.top_k * (2 * self.expert_ffn + self.width) + self.shared_experts * 2 * self.expert_ffn
        return self.dense_layers * dense + self.moe_layers * (moe + self.width)

    @property
    def kept(self) -> int:
        """Of all layers, nothing computed again."""
        return self.dense_layers * self.kept_by_dense_layer + self.moe_layers * self.kept_by_moe_layer


_WITH_BIAS = ("deepseek_v3", "deepseek_v32")  # a selection bias per expert


def _sizes(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    common = {
        "layers": config["num_hidden_layers"],
        "width": width,
        "heads": heads,
        "vocab": config["vocab_size"],
        "tied": bool(config.get("tie_word_embeddings", False)),
        "context": config.get("max_position_embeddings", 0),
    }
    return common | (_deepseek(config, kind, heads) if kind.startswith("deepseek") else _grouped(config, kind))


def _deepseek(config: Mapping[str, Any], kind: str, heads: int) -> dict[str, Any]:
    experts = config.get("n_routed_experts") or 0
    layers, rope = config["num_hidden_layers"], config["qk_rope_head_dim"]
    indexed = kind == "deepseek_v32"
    return {
        "dense_layers": min(layers, config.get("first_k_dense_replace", 0)) if experts else layers,
        "kv_heads": heads,
        "qk_dim": config["qk_nope_head_dim"] + rope,
        "v_dim": config["v_head_dim"],
        "q_latent": config.get("q_lora_rank") or 0,
        "kv_latent": config["kv_lora_rank"],
        "rope_dim": rope,
        "dense_ffn": config["intermediate_size"],
        "expert_ffn": config.get("moe_intermediate_size", 0) if experts else 0,
        "experts": experts,
        "top_k": config.get("num_experts_per_tok", 0) if experts else 0,
        "shared_experts": (config.get("n_shared_experts") or 0) if experts else 0,
        "mtp_layers": (config.get("num_nextn_predict_layers") or 0) if kind != "deepseek_v2" else 0,
        "index_heads": config["index_n_heads"] if indexed else 0,
        "index_dim": config["index_head_dim"] if indexed else 0,
    }


def _grouped(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    experts = config["num_experts"] if kind == "qwen3_moe" else 0
    return {
        "dense_layers": len(config.get("mlp_only_layers", ())) if experts else layers,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "qk_dim": dim,
        "v_dim": dim,
        "q_latent": 0,
        "kv_latent": 0,
        "rope_dim": 0,
        "dense_ffn": config["intermediate_size"],
        "expert_ffn": config["moe_intermediate_size"] if experts else 0,
        "experts": experts,
        "top_k": config["num_experts_per_tok"] if experts else 0,
        "shared_experts": 0,
        "mtp_layers": 0,
        "qkv_bias": kind == "qwen2" or bool(config.get("attention_bias", False)),
        "qk_norm": kind.startswith("qwen3"),
    }

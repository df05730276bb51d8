"""Which architectures are computed here exactly; all others are refused before they load.

Our attention (models.attention) sees every earlier token of a sequence and nothing else: masks, windows and sinks would
be left out silently. DeepSeek-V4 keeps transformers' own (models.v4_attention).
"""

from transformers import PreTrainedConfig

# Each is compared with transformers' own attention in tests/test_rollouts_architectures.py.
CHECKED = ("llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4")
_OWN_ATTENTION = ("deepseek_v4",)  # models.v4_attention calls transformers' own
INDEXED = "deepseek_v32"
_OTHER_ATTENTION = {
    "gemma2": "it caps attention scores and has windows",
    "gemma3_text": "it has windows",
    "gpt_oss": "it has attention sinks and windows",
}


def check_architecture(config: PreTrainedConfig, indexed: bool = False) -> None:
    """Raises ValueError, in one sentence, for a model that our attention would not compute, or that nobody checked.

    indexed: indexers are to be trained (models.indexer), which only V3.2 has; then their reach is no matter.
    """
    kind = config.model_type
    if indexed and kind != INDEXED:
        raise ValueError(
            f"indexer: those of {INDEXED} alone are trained here, and this is a {kind} model; set it to frozen"
        )
    if why := _OTHER_ATTENTION.get(kind):
        raise ValueError(
            f"model type {kind} cannot be trained or sampled here: {why}, and r1's attention sees all earlier tokens "
            f"and nothing else; take a model of type {_listed()}"
        )
    if kind not in CHECKED:
        raise ValueError(
            f"model type {kind} is refused because nobody has checked that r1's attention computes it: take a model "
            f"of type {_listed()}, or add it to CONFIGS in tests/architectures.py and, when its tests pass, to CHECKED "
            "in models/architectures.py"
        )
    if kind in _OWN_ATTENTION:
        return _check_v4(config)
    if not indexed and (reach := _reach(config)):
        name, tokens = reach
        raise ValueError(
            f"this {kind} model attends to at most {tokens} earlier tokens ({name}) of a context of "
            f"{config.max_position_embeddings}, and r1's attention to all: set max_position_embeddings in its "
            f"config.json to {tokens}, within which the two are the same"
        )
    # longrope has one set of frequencies for short sequences and one for long ones; a packed row has both.
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        raise ValueError(
            f"this {kind} model has rotary embeddings (longrope) that depend on how long a sequence is, and r1 packs "
            "sequences of several lengths in one row: take a model with another rope_type"
        )


def check_rounding(config: PreTrainedConfig) -> None:
    """Raises ValueError for a model some of whose weights must not be gathered and multiplied in bfloat16."""
    if config.model_type in _OWN_ATTENTION:
        raise ValueError(
            f"trainer.precision bfloat16 would round what {config.model_type} keeps in float32 (hyper-connections, "
            "sinks, norms), and generators do not; set it to float32"
        )


def _check_v4(config: PreTrainedConfig) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "DeepSeek-V4 checkpoints in FP8 and FP4 are not read here (their blocks and scales are not V3's): convert "
            "this one to bfloat16 first"
        )


def _reach(config: PreTrainedConfig) -> tuple[str, int] | None:
    """(setting, tokens) of what keeps a query from seeing the whole context, if anything does."""
    sparse = config.model_type == INDEXED
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    name = "index_topk" if sparse else "sliding_window"
    tokens = getattr(config, name, None) if sparse or windows else None
    return (name, tokens) if tokens is not None and tokens < config.max_position_embeddings else None


def _listed() -> str:
    return f"{', '.join(CHECKED[:-1])} or {CHECKED[-1]}"

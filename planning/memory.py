"""Memory of one device, by what takes it. Bytes; each function says which module of the trainer it describes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from planning.architecture import Architecture
from planning.devices import GIB
from planning.mesh import Held, heaviest_rank
from planning.workload import Sampling, Training
from rewards.preference import PreferenceOptions
from rollouts.config import GeneratorConfig
from training.config import OptimizerConfig, TrainerConfig

# training.head_chunks.CHUNK_ELEMENTS, which imports torch.
CHUNK_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 27}
_PREFILL_TOKENS = 8192  # tokens of a prefill batch that an engine reckons with (vLLM's max_num_batched_tokens)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device at the worst moment, by part. `grows` is what takes what is left (an engine's cache)."""

    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def fits(self, room: float) -> bool:
        return self.total <= room * (1 + 1e-9)  # a sum of parts that is meant to be all there is

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size >= GIB / 20)
        return f"{self.total / GIB:.1f} GiB ({shown})" if shown else f"{self.total / 2**20:.0f} MiB"


def rounds(trainer: TrainerConfig, cuda: bool) -> bool:
    """Whether weights are gathered and multiplied in bfloat16 (training.parallel.Ranks.of)."""
    return trainer.precision == "bfloat16" or (trainer.precision == "fp8" and cuda)


def adapter_parameters(model: Architecture, trainer: TrainerConfig) -> float:
    """Of LoRA on all linear layers; in models with experts on attention alone (training.config.LoRAConfig)."""
    if trainer.lora is None:
        return 0.0
    width, heads = model.width, model.heads * model.qk_dim
    pairs = [(width, heads), (model.heads * model.v_dim, width)]
    if model.kv_latent:
        pairs += [(width, model.kv_latent + model.rope_dim), (model.kv_latent, heads)]
    else:
        pairs += 2 * [(width, model.kv_heads * model.qk_dim)]
    if not model.experts:
        pairs += 3 * [(width, model.dense_ffn)]
    return trainer.lora.rank * model.layers * sum(a + b for a, b in pairs)


def resident(
    model: Architecture, trainer: TrainerConfig, optimizer: OptimizerConfig, *, reference: bool, mtp: bool, cuda: bool
) -> dict[str, float]:
    """What a trainer rank holds between steps (training.trainer, training.optimizer, training.reference).

    mtp: whether the MTP layer learns. It is loaded, and has no optimizer state, where it does not.
    """
    mesh = trainer.mesh
    held = heaviest_rank(model, mesh, not trainer.drop_mtp)
    own = (held.dense + held.routed) / mesh.shards
    learning = _learning(model, trainer, held, mtp)
    parts = {"weights": 4 * own}
    parts["moments"] = (4 if optimizer.moments == "bfloat16" else 8) * learning
    if optimizer.ema_decay > 0 and not cuda:  # with the copy that it takes; beside GPUs it is in host memory
        parts["average"] = 8 * learning
    if reference:
        bare = heaviest_rank(model, mesh, False)
        whole = trainer.lora is None
        parts["reference"] = 4 * (bare.dense + bare.routed) / mesh.shards if whole else 4 * learning
    return parts


def _learning(model: Architecture, trainer: TrainerConfig, held: Held, mtp: bool) -> float:
    """Parameters with a gradient on one rank."""
    if trainer.lora is not None:
        return adapter_parameters(model, trainer) / trainer.mesh.shards
    without = heaviest_rank(model, trainer.mesh, mtp and not trainer.drop_mtp)
    return min(without.dense + without.routed, held.dense + held.routed) / trainer.mesh.shards


def training_memory(
    model: Architecture,
    trainer: TrainerConfig,
    optimizer: OptimizerConfig,
    training: Training,
    *,
    reference: bool,
    cuda: bool,
) -> Memory:
    """The peak of an optimizer step: at the start of the backward pass, or where AdamW works on all weights at once."""
    parts = resident(model, trainer, optimizer, reference=reference, mtp=training.mtp, cuda=cuda)
    held = heaviest_rank(model, trainer.mesh, not trainer.drop_mtp)
    learning = _learning(model, trainer, held, training.mtp)
    tokens = row_tokens(trainer, training)
    parts |= _gradients(trainer, held, learning, cuda)
    passing = {
        "activations": activation_bytes(model, trainer, tokens, held, cuda),
        "logits": logit_bytes(model, training, tokens, cuda),
    }
    # torch's foreach AdamW makes a second list of the weights' size; the one for bfloat16 moments goes one by one.
    working = 0.0 if optimizer.moments == "bfloat16" else 4 * learning
    if working > sum(passing.values()):
        return Memory(parts | {"optimizer step": working})
    return Memory(parts | passing)


def row_tokens(trainer: TrainerConfig, training: Training) -> float:
    """Tokens of the longest row of a step: a row is as full as there are sequences, and takes a long one whole."""
    longest = training.prompt + training.lengths.longest_of(training.steps * training.sequences)
    of_rank = training.sequences * (training.prompt + training.lengths.mean) / trainer.mesh.data
    return max(min(trainer.row_tokens, of_rank), longest)


def _gradients(trainer: TrainerConfig, held: Held, learning: float, cuda: bool) -> dict[str, float]:
    """Gradients and gathered weights (training.parallel.shard, training.pipeline)."""
    mesh, half = trainer.mesh, rounds(trainer, cuda)
    if mesh.ranks == 1 and not half:
        return {"gradients": 4 * learning}
    size = 2 if half else 4
    experts = held.routed / mesh.expert
    if mesh.pipeline > 1:  # gathered through the step, gradients added up whole in float32
        return {"gradients": 4 * (held.dense + experts) + 4 * learning, "gathered": size * (held.dense + experts)}
    block = held.largest_block + held.block_experts / mesh.expert
    # Two layers, one in use and one on its way; and one layer's gradients, in float32 as they are summed.
    gathered = size * (held.ends + 2 * block) + (4 + size) * block
    return {"gradients": 4 * learning, "gathered": min(gathered, 2 * size * (held.dense + experts))}


def activation_bytes(model: Architecture, trainer: TrainerConfig, tokens: float, held: Held, cuda: bool) -> float:
    """What the layers keep of a row for its backward pass (models.recompute)."""
    size = 2 if rounds(trainer, cuda) else 4
    one_layer = max(
        model.kept_by_dense_layer if model.dense_layers else 0, model.kept_by_moe_layer * bool(model.experts)
    )
    if trainer.recompute == "blocks":
        kept, again = model.width * model.layers, one_layer
    elif trainer.recompute == "norms_and_up_projections":
        kept, again = model.kept_products, one_layer
    else:
        kept, again = model.kept, 0
    seen = model.heads * (model.qk_dim + model.v_dim) * (1 if trainer.recompute == "blocks" else model.layers)
    if (ranks := trainer.mesh.pipeline) > 1:  # passes of a row through one of 2P chunks that wait for their backward
        waiting = (2 * ranks + 1) / (2 * ranks)
        kept, seen = kept * waiting, seen if trainer.recompute == "blocks" else seen * waiting
    if (ranks := trainer.mesh.context) > 1:  # keys and values are of the whole row (training.context)
        return size * tokens * ((kept + again) / ranks + seen + model.width)
    return size * tokens * (kept + again)


def logit_bytes(model: Architecture, training: Training, tokens: float, cuda: bool) -> float:
    """A chunk of logits, and the gradients that are made with them (training.head_chunks)."""
    if not training.with_head:
        return 4 * tokens * model.width
    targets = tokens * training.lengths.mean / (training.prompt + training.lengths.mean)
    chunk = min(targets * model.vocab, CHUNK_ELEMENTS["cuda" if cuda else "cpu"])
    chunk *= 1 + (0.125 if training.entropy else 0) + (0.5 if cuda else 0)  # bfloat16 operands on a GPU
    return 4 * (chunk + targets * model.width + model.embedding_parameters)


# --- sampling ---

VLLM_SHARE = 0.92  # of a GPU's memory: its default of gpu_memory_utilization, in 0.32


def engine_share(engine: GeneratorConfig | PreferenceOptions) -> float:
    """Share of a GPU's memory that an engine takes when it starts, whatever it needs. 0: it takes what it needs."""
    return float(engine.engine_args.get("gpu_memory_utilization", VLLM_SHARE)) if engine.engine == "vllm" else 0.0


def weight_bytes(generator: GeneratorConfig | PreferenceOptions) -> float:
    """Of one weight at rest in an engine, or a reward model."""
    if str(generator.engine_args.get("quantization", "")).startswith("fp8"):
        return 1
    return 2 if generator.dtype == "bfloat16" else 4


def generator_weights(model: Architecture, generator: GeneratorConfig) -> float:
    """Bytes on each device of a replica."""
    return weight_bytes(generator) * model.main_parameters / generator.tensor_parallel


def cache_bytes_per_token(model: Architecture, generator: GeneratorConfig, *, in_trainer: bool, split: bool) -> float:
    """Bytes of a token of a running completion, on each device of a replica.

    split: whether the devices share out MLA's latents (planning.assumptions.split_latent_cache).
    """
    if in_trainer or generator.engine == "transformers":
        return model.expanded_cache * (4 if in_trainer or generator.dtype == "float32" else 2)
    parts = model.kv_heads if not model.kv_latent else generator.tensor_parallel if split else 1
    return 2 * model.latent_cache / min(generator.tensor_parallel, parts)


def replica_completions(sampling: Sampling) -> float:
    """Completions that a replica is given at a time."""
    replicas = 1 if sampling.in_trainer else sampling.generator.replicas
    return max(1.0, sampling.completions / replicas)


def sampling_memory(sampling: Sampling, slots: float, *, split: bool) -> Memory:
    """Of a generator's device, or what sampling adds to the trainer's (rollouts.kv_cache), with `slots` running."""
    model, generator = sampling.model, sampling.generator
    per_token = cache_bytes_per_token(model, generator, in_trainer=sampling.in_trainer, split=split)
    # The embedded cache is one block, as long as the longest; vLLM's has pages, as many as are used.
    length = sampling.prompt + (sampling.lengths.longest if _is_embedded(sampling) else sampling.lengths.mean)
    working = _working_bytes(sampling, slots)
    weights = {} if sampling.in_trainer else {"generator weights": generator_weights(model, generator)}
    return Memory(weights | {"cache": per_token * slots * length, "sampling": working})


def _is_embedded(sampling: Sampling) -> bool:
    return sampling.in_trainer or sampling.generator.engine == "transformers"


def _working_bytes(sampling: Sampling, slots: float) -> float:
    """Beside weights and cache: logits, and the states of prompts that are read."""
    model, rows = sampling.model, min(slots, 1 << 12)
    if _is_embedded(sampling):
        return 4 * rows * 4 * model.vocab
    return 2 * _PREFILL_TOKENS * 4 * model.width + 4 * rows * model.vocab


def slots_that_fit(sampling: Sampling, room: float, *, split: bool) -> float:
    """Completions that can run at a time in a replica whose devices have `room` bytes left beside the weights."""
    wanted = min(sampling.generator.max_slots, replica_completions(sampling))
    if _is_embedded(sampling):
        return wanted  # it is allocated whole, or fails
    room -= _working_bytes(sampling, wanted)
    per_token = cache_bytes_per_token(sampling.model, sampling.generator, in_trainer=False, split=split)
    return min(wanted, max(0.0, room) / (per_token * (sampling.prompt + sampling.lengths.mean)))

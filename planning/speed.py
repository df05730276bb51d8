"""Seconds of passes and of decoding steps: by a roofline for GPUs, by measured constants for the machine at hand."""

from dataclasses import dataclass
from typing import Protocol

from planning.architecture import Architecture, Flops
from planning.assumptions import Assumptions
from planning.calibration import Calibration, PassCosts
from planning.devices import Cluster, Precision
from planning.lengths import Lengths
from planning.memory import cache_bytes_per_token, weight_bytes
from planning.mesh import pipeline_efficiency
from planning.workload import Training
from rollouts.config import GeneratorConfig
from training.config import OptimizerConfig, TrainerConfig

_WIRE_BYTES = {"float32": 4, "bfloat16": 2, "fp8": 1}
# Latency of a decoding layer within a node and on a single device, as shares of that between nodes. Ours.
_LATENCY_NEAR = {"device": 0.1, "node": 0.4, "network": 1.0}
_OPTIMIZER_BYTES = 28  # per parameter: weight, gradient and two moments read, all but the gradient written; float32


def pass_flops(model: Architecture, tokens: float, seen: float, predicted: float) -> Flops:
    """Of a forward pass over `tokens`, each with `seen` before it on average, `predicted` of them asked for logits."""
    return model.layer_flops(seen) * tokens + Flops(head=model.head_flops * predicted)


def mean_seen(prompt: float, lengths: Lengths) -> float:
    """Tokens before a token, over all tokens of whole sequences: E[L^2] / 2 E[L]."""
    mean = prompt + lengths.mean
    square = prompt**2 + 2 * prompt * lengths.mean + lengths.mean_square
    return square / (2 * mean)


def step_flops(model: Architecture, training: Training, trainer: TrainerConfig) -> Flops:
    """Of one optimizer step: backward costs two forward passes (one with adapters, whose weights alone have gradients),
    recomputation a part of one."""
    tokens = training.sequences * (training.prompt + training.lengths.mean)
    seen = mean_seen(training.prompt, training.lengths)
    predicted = training.sequences * training.lengths.mean if training.with_head else 0
    layers = model.layer_flops(seen) * tokens
    if training.mtp:
        layers = layers + model.mtp_flops(seen) * tokens
    products = training.head_products - (trainer.lora is not None)
    passes = (2 if trainer.lora is not None else 3) + again(model, trainer)
    head = model.head_flops * predicted * (products + (3 if training.mtp else 0))
    return layers * passes + Flops(head=head)


def again(model: Architecture, trainer: TrainerConfig) -> float:
    """Share of a forward pass that is computed a second time (models.recompute)."""
    if trainer.recompute == "blocks":
        return 1.0
    if trainer.recompute == "norms_and_up_projections" and model.kv_latent:
        queries = model.q_latent * model.heads * model.qk_dim
        keys = model.kv_latent * model.heads * (model.qk_dim - model.rope_dim + model.v_dim)
        return 2 * model.layers * (queries + keys) / model.layer_flops(0).total
    return 0.0


def rows_per_rank(sequences: float, length: float, trainer: TrainerConfig) -> float:
    """Rows of one data rank, packed full, and no more than there are sequences."""
    of_rank = sequences / trainer.mesh.data
    return max(min(of_rank, of_rank * length / trainer.row_tokens), 1e-9)


class Speed(Protocol):
    """Seconds on some machine. Each method is about all processes of a role together."""

    def step_s(self, training: Training, trainer: TrainerConfig, optimizer: OptimizerConfig) -> float:
        """Of one optimizer step."""
        ...

    def reading_s(
        self,
        model: Architecture,
        sequences: float,
        prompt: float,
        lengths: Lengths,
        predicts: bool,
        trainer: TrainerConfig | None,
        devices: int,
    ) -> float:
        """Of a forward pass over whole sequences, by the ranks of `trainer`, or by `devices` of another process."""
        ...  # fmt: skip

    def prefill_s(self, model: Architecture, tokens: float, seen: float, generator: GeneratorConfig) -> float:
        """Of `tokens` of prompts in one replica."""
        ...

    def decode_s(
        self,
        model: Architecture,
        running: float,
        seen: float,
        generator: GeneratorConfig,
        in_trainer: bool,
    ) -> float:
        """Of one token for each of `running` completions of a replica."""
        ...

    def sync_s(self, model: Architecture, generator: GeneratorConfig) -> float:
        """Of one weight sync."""
        ...


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """Peak rates times achieved shares (planning.assumptions)."""

    cluster: Cluster
    assumed: Assumptions

    def _rate(self, trainer: TrainerConfig) -> float:
        """FLOP/s of one device in training. That of fp8 is told as a share of the bfloat16 peak, as its source does."""
        device = self.cluster.device
        if trainer.precision == "float32":
            return device.peak("float32") * self.assumed.float32_mfu
        return device.peak("bfloat16") * self.assumed.train_mfu

    def step_s(self, training: Training, trainer: TrainerConfig, optimizer: OptimizerConfig) -> float:
        mesh, model = trainer.mesh, training.model
        flops = step_flops(model, training, trainer).total
        rows = rows_per_rank(training.sequences, training.prompt + training.lengths.mean, trainer)
        computing = flops / (mesh.ranks * self._rate(trainer) * pipeline_efficiency(mesh, rows))
        held = model.parameters / mesh.ranks
        return computing + held * _OPTIMIZER_BYTES / self.cluster.device.bandwidth + self.assumed.step_overhead_s

    def reading_s(
        self, model: Architecture, sequences: float, prompt: float, lengths: Lengths, predicts: bool,
        trainer: TrainerConfig | None, devices: int,
    ) -> float:  # fmt: skip
        tokens, seen = sequences * (prompt + lengths.mean), mean_seen(prompt, lengths)
        flops = pass_flops(model, tokens, seen, sequences * lengths.mean if predicts else 0).total
        if trainer is None:
            return flops / (devices * self.cluster.device.peak("bfloat16") * self.assumed.prefill_mfu)
        rate = self._rate(trainer) / self.assumed.train_mfu * self.assumed.prefill_mfu
        if trainer.precision == "float32":
            rate = self._rate(trainer)
        waits = pipeline_efficiency(trainer.mesh, rows_per_rank(sequences, prompt + lengths.mean, trainer))
        return flops / (trainer.mesh.ranks * rate * waits)

    def prefill_s(self, model: Architecture, tokens: float, seen: float, generator: GeneratorConfig) -> float:
        precision: Precision = "bfloat16" if generator.dtype == "bfloat16" else "float32"
        rate = self.cluster.device.peak(precision) * self.assumed.prefill_mfu
        return model.layer_flops(seen).total * tokens / (generator.tensor_parallel * rate)

    def decode_s(
        self,
        model: Architecture,
        running: float,
        seen: float,
        generator: GeneratorConfig,
        in_trainer: bool,
    ) -> float:
        device, ways = self.cluster.device, generator.tensor_parallel
        reached = 1 - (1 - model.top_k / model.experts) ** running if model.experts else 0.0
        routed = model.moe_layers * model.experts * model.expert_parameters
        read = weight_bytes(generator) * (model.main_parameters - routed * (1 - reached)) / ways
        cache = cache_bytes_per_token(model, generator, in_trainer=in_trainer, split=self.assumed.split_latent_cache)
        read += running * seen * cache
        flops = running * (2 * model.active_parameters + _decode_attention_flops(model, seen, generator))
        precision: Precision = "bfloat16" if generator.dtype == "bfloat16" else "float32"
        computing = flops / (ways * device.peak(precision) * self.assumed.decode_mfu)
        near = "device" if ways == 1 else "node" if ways <= self.cluster.per_node else "network"
        waiting = model.layers * self.assumed.decode_latency_per_layer_s * _LATENCY_NEAR[near]
        reading = read / (device.bandwidth * self.assumed.bandwidth_share)
        return (max(reading, computing) + waiting) / self.assumed.draft_speedup

    def sync_s(self, model: Architecture, generator: GeneratorConfig) -> float:
        """All weights leave one rank, over its own link (rollouts.transport); receivers pass them on meanwhile."""
        devices = generator.replicas * generator.tensor_parallel
        link = self.cluster.slowest_link(devices) * self.assumed.link_share
        return model.main_parameters * _WIRE_BYTES[generator.sync.wire] / link


def _decode_attention_flops(model: Architecture, seen: float, generator: GeneratorConfig) -> float:
    """Of one new token. Engines multiply MLA's queries into the latent (V2, section 2.1.2); ours expands it."""
    if model.kv_latent and generator.engine == "vllm":
        return 2 * model.layers * model.heads * (2 * model.kv_latent + model.rope_dim) * seen
    return 2 * model.layers * model.heads * (model.qk_dim + model.v_dim) * seen


@dataclass(frozen=True, slots=True)
class LocalSpeed:
    """The constants of a calibration: CPUs, float32."""

    machine: Calibration

    def step_s(self, training: Training, trainer: TrainerConfig, optimizer: OptimizerConfig) -> float:
        model = training.model
        tokens = training.sequences * (training.prompt + training.lengths.mean)
        seen = mean_seen(training.prompt, training.lengths)
        predicted = training.sequences * training.lengths.mean if training.with_head else 0
        rows = max(1.0, tokens / trainer.row_tokens)
        seconds = self._pass_s(self.machine.training, model, tokens, seen, predicted, rows, training.mtp)
        seconds += again(model, trainer) * self._pass_s(self.machine.forward, model, tokens, seen, 0, rows)
        learning = model.parameters if training.mtp or not model.mtp_layers else model.main_parameters
        updating = 0.0 if trainer.lora is not None else learning * self.machine.optimizer_s
        return (seconds + updating) / self._gain(trainer.threads * trainer.mesh.ranks)

    def reading_s(
        self, model: Architecture, sequences: float, prompt: float, lengths: Lengths, predicts: bool,
        trainer: TrainerConfig | None, devices: int,
    ) -> float:  # fmt: skip
        tokens, seen = sequences * (prompt + lengths.mean), mean_seen(prompt, lengths)
        rows = max(1.0, tokens / (trainer.row_tokens if trainer else 4096))
        predicted = sequences * lengths.mean if predicts else 0
        threads = trainer.threads * trainer.mesh.ranks if trainer else devices
        return self._pass_s(self.machine.forward, model, tokens, seen, predicted, rows) / self._gain(threads)

    def prefill_s(self, model: Architecture, tokens: float, seen: float, generator: GeneratorConfig) -> float:
        return self._pass_s(self.machine.forward, model, tokens, seen, 0, 1) / self._share(generator)

    def decode_s(
        self,
        model: Architecture,
        running: float,
        seen: float,
        generator: GeneratorConfig,
        in_trainer: bool,
    ) -> float:
        costs, one = self.machine.decoding, model.layer_flops(0)
        # The embedded engine reads the cache up to its longest completion, for all that run (rollouts.kv_cache.Decode).
        seconds = running * (
            costs.dense_flop * (one.dense + model.head_flops)
            + costs.expert_flop * one.experts
            + costs.cached * seen * model.expanded_cache
            + costs.logit * model.vocab
            + costs.slot
        )
        seconds += costs.weight * model.active_parameters
        return (seconds + model.layers * costs.layer + model.moe_layers * costs.moe_layer) / self._share(generator)

    def sync_s(self, model: Architecture, generator: GeneratorConfig) -> float:
        """Written, moved and read by every replica, with checksums: some thirty passes over the bytes (a sync of
        SmolLM2-135M moves 1.6 GB/s where a copy makes 47; docs/results/weight_sync.json)."""
        passes = 30 * generator.replicas / self._gain(generator.replicas)
        return passes * 4 * model.main_parameters / self.machine.copy_bytes_per_s

    def _pass_s(
        self, costs: PassCosts, model: Architecture, tokens: float, seen: float, predicted: float, rows: float,
        mtp: bool = False,
    ) -> float:  # fmt: skip
        flops = pass_flops(model, tokens, seen, predicted)
        elements, layers, moe_layers = model.kept, model.layers, model.moe_layers
        if mtp:
            flops = flops + model.mtp_flops(seen) * tokens + Flops(head=model.head_flops * predicted)
            elements += model.kept_by_moe_layer + 4 * model.width
            layers, moe_layers, predicted = layers + 1, moe_layers + 1, 2 * predicted
        return pass_s(costs, flops, elements * tokens, model.vocab * predicted, layers * rows, moe_layers * rows)

    def _gain(self, threads: float) -> float:
        return self.machine.speed_up(int(threads))

    def _share(self, generator: GeneratorConfig) -> float:
        """Of a replica's speed against one thread, when all replicas share the cores."""
        whole = self.machine.speed_up(generator.replicas * generator.threads)
        return whole / generator.replicas


def pass_s(costs: PassCosts, flops: Flops, elements: float, logits: float, layers: float, moe_layers: float) -> float:
    """Seconds of passes that compute so much; `layers` counts every layer of every pass."""
    return (
        costs.dense_flop * (flops.dense + flops.head)
        + costs.expert_flop * flops.experts
        + costs.attention_flop * flops.attention
        + costs.element * elements
        + costs.logit * logits
        + costs.layer * layers
        + costs.moe_layer * moe_layers
    )

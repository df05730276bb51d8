"""What the ranks of tests/test_training_parallel.py do. Every rank draws the same data and takes its share."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from data.packing import deal
from fp8.config import Fp8Config
from models.recompute import set_recompute
from models.routing import routers
from rl.batch import MissingRoutes, TrainingSequence
from rl.objective import ObjectiveConfig
from rl.trainer import PolicyTrainer
from sft.batch import EMPTY, Example, Row, pack_examples
from sft.trainer import SupervisedTrainer
from training.config import LoRAConfig, OptimizerConfig
from training.mesh import MeshConfig
from training.parallel import whole
from training.passes import Balance, Found, Predict, total
from training.trainer import Trainer

OPTIMIZER = OptimizerConfig(lr=1e-3, weight_decay=0.1, clip_norm=0.5, ema_decay=0.5)


def share(items: list[Any], length, trainer: Trainer) -> list[Any]:
    """Those of this rank; ranks of one pipeline have the same."""
    data = trainer.ranks.data
    rank, size = (0, 1) if data is None else (data.get_local_rank(), data.size())
    return [items[i] for i in sorted(deal([length(item) for item in items], size)[rank])]


def rows(trainer: Trainer, seed: int, count: int = 5) -> list[Row]:
    """Rows of this rank: `count` in all, which no number of ranks divides."""
    rng = np.random.default_rng(seed)
    examples = [
        Example(token_ids=rng.integers(8, 300, length), loss_mask=rng.random(length) < 0.7)
        for length in rng.integers(2, 40, 3 * count)
    ]
    packed = [row for i in range(count) for row in pack_examples(examples[3 * i : 3 * i + 3], 256)]
    return share(packed, lambda row: len(row.input_ids), trainer)


def sequences(trainer: Trainer, seed: int, count: int = 7) -> list[TrainingSequence]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt, completion = rng.integers(8, 300, rng.integers(2, 9)), rng.integers(8, 300, rng.integers(1, 20))
        made.append(
            TrainingSequence(
                prompt_ids=prompt, completion_ids=completion, advantage=float(rng.choice([-1, 1])),
                sampling_logprobs=np.full(len(completion), -5.8, dtype=np.float32),
            )
        )  # fmt: skip
    return share(made, len, trainer)


def supervised(checkpoint: str, mesh: dict, precision: str = "float32", mtp: bool = True) -> SupervisedTrainer:
    torch.manual_seed(0)
    return SupervisedTrainer(
        checkpoint, OPTIMIZER, mtp=mtp, device="cpu", mesh=MeshConfig(**mesh), precision=precision
    )  # fmt: skip


def gradients(
    checkpoint: str, mesh: dict, precision: str = "float32", mtp: bool = True, recompute: str = "none"
) -> dict[str, Any]:
    """Losses and every gradient of one batch, in one piece; without MTP also without the balance loss."""
    trainer = supervised(checkpoint, mesh, precision, mtp)
    set_recompute(trainer.policy, recompute)

    def lesson(row: Row, predict: Predict) -> tuple[torch.Tensor, Found]:
        predictions = predict(None, mtp="joint" if trainer.train_mtp else "off")
        assert predictions.loss is not None
        if predictions.mtp_nll is None:
            return predictions.loss, {"nll": predictions.loss.item()}
        found = {"nll": predictions.loss.item(), "mtp": predictions.mtp_nll.item()}
        return predictions.loss + 0.3 * predictions.mtp_nll, found

    balance = Balance(0.1, 100) if trainer.router_names and mtp else None
    losses = trainer.ranks.add_up(total(trainer.learn(trainer.even(rows(trainer, 0), EMPTY), lesson, balance)))
    found = {n: whole(p.grad) for n, p in trainer.policy.named_parameters() if p.grad is not None}
    return {"losses": losses, "gradients": found}


def steps(
    checkpoint: str, mesh: dict, precision: str = "float32", mtp: bool = True, eps: float = 1e-8
) -> dict[str, Any]:
    """Metrics of three steps, and what the weights and their average are after them.

    eps: AdamW's. With its own, a gradient that is nothing but rounding moves a weight as far as any other does.
    """
    with mock.patch("torch.optim.AdamW", partial(torch.optim.AdamW, eps=eps)):
        trainer = supervised(checkpoint, mesh, precision, mtp)
    metrics = [trainer.step(rows(trainer, seed), 1e-3, 0.1, 0.01) for seed in range(3)]
    biases = {name: router.e_score_correction_bias for name, router in routers(trainer.model)}
    weights = {name: whole(tensor) for name, tensor in trainer.policy.state_dict().items()}
    assert trainer.optimizer.average is not None
    average = {name: whole(tensor) for name, tensor in trainer.optimizer.average.tensors().items()}
    return {"metrics": metrics, "biases": biases, "weights": weights, "average": average}


def muon_steps(checkpoint: str, mesh: dict, backwards: bool = False, folder: str = "") -> dict[str, Any]:
    """Losses of three steps with Muon, and the weights after them.

    backwards: rows in the other order, so that sums round otherwise. folder: where the state is saved after two steps.
    """
    muon = OptimizerConfig(lr=1e-3, algorithm="muon", weight_decay=0.1, clip_norm=0.5)
    trainer = SupervisedTrainer(checkpoint, muon, mtp=True, device="cpu", mesh=MeshConfig(**mesh))
    losses = []
    for seed in range(3):
        if seed == 2 and folder:
            trainer.begin_save(folder)
            trainer.finish_save()
        losses.append(trainer.step(rows(trainer, seed)[:: -1 if backwards else 1], 1e-3, 0.1, 0.01)["loss/nll"])
    return {"losses": losses, "weights": {n: whole(tensor) for n, tensor in trainer.policy.state_dict().items()}}


def muon_resume(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    """The third of these steps."""
    muon = OptimizerConfig(lr=1e-3, algorithm="muon", weight_decay=0.1, clip_norm=0.5)
    trainer = SupervisedTrainer(checkpoint, muon, mtp=True, device="cpu", mesh=MeshConfig(**mesh))
    trainer.load_state(folder)
    losses = [trainer.step(rows(trainer, 2), 1e-3, 0.1, 0.01)["loss/nll"]]
    return {"losses": losses, "weights": {n: whole(tensor) for n, tensor in trainer.policy.state_dict().items()}}


def indexer_steps(checkpoint: str, mesh: dict, stage: str) -> dict[str, Any]:
    """Metrics of two steps that teach indexers, and what the weights are after them."""
    trainer = SupervisedTrainer(checkpoint, OPTIMIZER, device="cpu", mesh=MeshConfig(**mesh), indexer=stage)
    metrics = [trainer.step(rows(trainer, seed), 1e-3, 0.0, 0.0) for seed in range(2)]
    return {"metrics": metrics, "weights": {n: whole(tensor) for n, tensor in trainer.policy.state_dict().items()}}


def fp8_loss(checkpoint: str, mesh: dict) -> float:
    """Of a batch whose experts, some of them without rows, multiply in FP8 where their rows arrive."""
    trainer = supervised(checkpoint, mesh, "fp8", mtp=False)

    def lesson(row: Row, predict: Predict) -> tuple[torch.Tensor, Found]:
        loss = predict(None).loss
        assert loss is not None
        return loss, {"nll": loss.item()}

    return trainer.ranks.add_up(total(trainer.learn(trainer.even(rows(trainer, 0), EMPTY), lesson)))["nll"]


def fp8_rounding(checkpoint: str, mesh: dict, every: int) -> list[dict[str, float]]:
    """Metrics of three steps in FP8."""
    fp8 = Fp8Config(log_rounding_every=every)
    trainer = SupervisedTrainer(
        checkpoint, OPTIMIZER, device="cpu", mesh=MeshConfig(**mesh), precision="fp8", fp8=fp8, mtp=True
    )
    return [trainer.step(rows(trainer, seed), 1e-3, 0.1, 0.0) for seed in range(3)]


def fp8_dispatch(checkpoint: str, mesh: dict, dispatch: bool) -> dict[str, Any]:
    """Loss and gradients of one batch, and the bytes that all-to-all moved."""
    trainer = SupervisedTrainer(
        checkpoint, OPTIMIZER, device="cpu", mesh=MeshConfig(**mesh), precision="fp8",
        fp8=Fp8Config(scales="power_of_two", dispatch=dispatch),
    )  # fmt: skip
    sent, original = [0], dist.all_to_all_single

    def counted(output, rows, *args, **kwargs):
        sent[0] += rows.nbytes
        return original(output, rows, *args, **kwargs)

    dist.all_to_all_single = counted
    try:
        losses = []
        for row in trainer.even(rows(trainer, 0), EMPTY):
            nll, _ = trainer.next_token_losses(row)
            nll.backward()
            losses.append(nll.item())
    finally:
        dist.all_to_all_single = original
    found = {n: whole(p.grad) for n, p in trainer.policy.named_parameters() if p.grad is not None}
    return {"losses": losses, "gradients": found, "bytes": sum(trainer.ranks.gather(sent[0]))}


def policy(checkpoint: str, mesh: dict, **objective: Any) -> PolicyTrainer:
    return PolicyTrainer(
        checkpoint, OPTIMIZER, objective=ObjectiveConfig(**objective).resolve(), temperature=0.8, row_tokens=48,
        device="cpu", mesh=MeshConfig(**mesh),
    )  # fmt: skip


def with_routes(trainer: PolicyTrainer, made: list[TrainingSequence]) -> list[TrainingSequence]:
    """Experts of every token, as a generator would have chosen them; the same ones on all ranks."""
    layers = sum(not name.startswith("mtp.") for name in trainer.router_names)
    experts, top_k = trainer.model.config.n_routed_experts, trainer.model.config.num_experts_per_tok
    routed = []
    for sequence in made:
        draws = np.random.default_rng(int(sequence.completion_ids.sum())).random((len(sequence) - 1, layers, experts))
        routed.append(replace(sequence, routed_experts=draws.argsort(-1)[..., :top_k].astype(np.uint8)))
    return routed


def policy_steps(checkpoint: str, mesh: dict, routing_replay: str) -> dict[str, Any]:
    """Metrics of two GRPO steps, and the logprobs before the second, by the tokens of each completion."""
    trainer = policy(checkpoint, mesh, routing_replay=routing_replay)
    batches = [sequences(trainer, seed) for seed in (1, 2)]
    if routing_replay == "rollout":
        batches = [with_routes(trainer, batch) for batch in batches]
    first = trainer.update(trainer.annotate(batches[0]), 1e-3, 20)
    annotated = trainer.annotate(batches[1])
    second = trainer.update(annotated, 1e-3, 20)
    logprobs = {tuple(s.completion_ids): (s.old_logprobs, s.ref_logprobs) for s in annotated}
    return {"metrics": [first, second], "logprobs": logprobs}


def held_bytes(trainer: PolicyTrainer) -> dict[str, int]:
    """Of what `optimizer.offload` is about, as this rank holds it."""
    assert trainer.reference is not None
    states = [trainer.optimizer.state_of(p) for p in trainer.optimizer.parameters.values()]
    of_steps = [state["exp_avg"] for state in states if state]
    kinds = {
        "weights": list(trainer.policy.parameters()),
        "moments": of_steps,
        "reference": list(trainer.reference.state_dict().values()),
    }
    local = {kind: [t.to_local() if isinstance(t, DTensor) else t for t in found] for kind, found in kinds.items()}
    return {kind: sum(tensor.untyped_storage().nbytes() for tensor in found) for kind, found in local.items()}


def offloaded_steps(checkpoint: str, mesh: dict, offload: str) -> dict[str, Any]:
    """Metrics of two GRPO steps before each of which engines had the device, and what the rank held meanwhile."""
    with mock.patch(f"{__name__}.OPTIMIZER", OPTIMIZER.model_copy(update={"offload": offload})):
        trainer = policy(checkpoint, mesh, kl_coef=0.01)
    metrics = [trainer.update(trainer.annotate(sequences(trainer, 1)), 1e-3, 20)]
    trainer.offload(weights=False)
    sent = trainer.weight_checksums()
    trainer.offload(weights=True)
    held = held_bytes(trainer)
    metrics.append(trainer.update(trainer.annotate(sequences(trainer, 2)), 1e-3, 20))
    return {"metrics": metrics, "sent": sent, "held": held}


def guessed_step(checkpoint: str, mesh: dict) -> dict[str, float]:
    """A step with an entropy bonus, whose sequence mask the old logprobs tell wrongly."""
    trainer = policy(checkpoint, mesh, preset="v3_2", routing_replay="off", sequence_mask_delta=0.2, entropy_coef=0.05)
    annotated = trainer.annotate(sequences(trainer, 4))
    moved = [replace(s, old_logprobs=s.old_logprobs + np.float32(0.5)) for s in annotated]
    return trainer.update(moved, 1e-3, 20)


def one_sequence(checkpoint: str, mesh: dict, recompute: str = "none") -> dict[str, float]:
    """A GRPO step on a single completion: all ranks but one have nothing."""
    trainer = policy(checkpoint, mesh, preset="dapo")
    set_recompute(trainer.policy, recompute)
    return trainer.update(trainer.annotate(sequences(trainer, 3, count=1)), 1e-3, 20)


def train_and_save(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    """Two steps, all that is saved in any form, and then a third step and the average of the weights after it."""
    trainer = supervised(checkpoint, mesh)
    for seed in range(2):
        trainer.step(rows(trainer, seed), 1e-3, 0.1, 0.01)
    trainer.begin_save(folder)
    trainer.save_checkpoint(f"{folder}/hub")
    third = trainer.step(rows(trainer, 2), 1e-3, 0.1, 0.01)  # while the state is being written
    trainer.finish_save()
    assert not trainer.is_saving()
    trainer.save_average(f"{folder}/average")
    return third


def resume(checkpoint: str, mesh: dict, folder: str, average: str) -> dict[str, Any]:
    """The third step and the average after it, from what `train_and_save` has left."""
    trainer = supervised(checkpoint, mesh)
    trainer.load_state(folder)
    third = trainer.step(rows(trainer, 2), 1e-3, 0.1, 0.01)
    trainer.save_average(average)
    return third


def policy_save(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    """A step, all that a resumed run needs, and then a second step and the average of the weights after it."""
    trainer = policy(checkpoint, mesh)
    trainer.update(trainer.annotate(sequences(trainer, 1)), 1e-3, 20)
    trainer.begin_save(folder)
    metrics = trainer.update(trainer.annotate(sequences(trainer, 2)), 1e-3, 20)
    trainer.finish_save()
    trainer.save_average(f"{folder}/average")
    return metrics


def policy_resume(checkpoint: str, mesh: dict, folder: str, average: str) -> dict[str, Any]:
    """The second step and the average after it, from what `policy_save` has left."""
    trainer = policy(checkpoint, mesh)
    trainer.load_state(folder)
    metrics = trainer.update(trainer.annotate(sequences(trainer, 2)), 1e-3, 20)
    trainer.save_average(average)
    return metrics


def sent_weights(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    """What generators are sent by each way, and the probe's scores."""
    trainer = policy(checkpoint, mesh)
    trainer.write_weights(folder, 1 << 16, "float32")
    trainer.open_buckets(1 << 16, "float32", True)  # a sync that ends before its second bucket
    trainer.next_parcel()
    trainer.close_parcels()
    trainer.open_buckets(1 << 16, "float32", True)
    buckets = [bucket for bucket, _ in iter(trainer.next_parcel, (None, False))]
    trainer.close_parcels()
    return {
        "shapes": trainer.weight_shapes(),
        "checksums": trainer.weight_checksums(),
        "sums_of_buckets": {entry.name: entry.checksum for bucket in buckets for entry in bucket.entries},
        "scores": trainer.score([[9, 10, 11, 12], [20, 21]]),
    }


def adapter_steps(checkpoint: str, mesh: dict, folder: str, precision: str = "float32") -> dict[str, Any]:
    """Two GRPO steps that train adapters, all that is saved and sent in between, and a third step."""
    trainer = adapted(checkpoint, mesh, precision)
    metrics = []
    for seed in (1, 2):
        annotated = trainer.annotate(sequences(trainer, seed))
        metrics.append(trainer.update(annotated, 1e-3, 20))
    trainer.begin_save(f"{folder}/state")
    trainer.save_checkpoint(f"{folder}/hub")
    trainer.save_average(f"{folder}/average")
    trainer.write_weights(f"{folder}/sent", 1 << 16, "float32")
    metrics.append(adapted_step(trainer))
    trainer.finish_save()
    moments = trainer.optimizer.state()
    trained = {name for name, _ in trainer.policy.named_parameters() if f"optimizer.{name}/exp_avg" in moments}
    return {"metrics": metrics, "trained": trained}


def adapted(checkpoint: str, mesh: dict, precision: str = "float32") -> PolicyTrainer:
    return PolicyTrainer(
        checkpoint, OPTIMIZER, objective=ObjectiveConfig().resolve(), temperature=0.8, row_tokens=48, device="cpu",
        mesh=MeshConfig(**mesh), precision=precision, lora=LoRAConfig(rank=4), seed=1,
    )  # fmt: skip


def adapted_step(trainer: PolicyTrainer) -> dict[str, Any]:
    return trainer.update(trainer.annotate(sequences(trainer, 3)), 1e-3, 20)


def adapted_resume(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    """The third step, from what `adapter_steps` has left."""
    trainer = adapted(checkpoint, mesh)
    trainer.load_state(f"{folder}/state")
    return adapted_step(trainer)


def missing_routes(checkpoint: str, mesh: dict) -> str:
    """What every rank is told when completions of one rank lack what routing replay needs."""
    trainer = policy(checkpoint, mesh, preset="v3_2")
    try:
        trainer.annotate(sequences(trainer, 1) if trainer.ranks.rank else [])
    except MissingRoutes as error:
        return str(error)
    return ""


def one_row(checkpoint: str, mesh: dict) -> str:
    """What a rank of a pipeline says when it is asked about a single row."""
    trainer = supervised(checkpoint, mesh)
    try:
        trainer.next_token_losses(rows(trainer, 0)[0])
    except ValueError as error:
        return str(error)
    return ""


def loading(checkpoint: str, mesh: dict) -> dict[str, int]:
    """Bytes of weights while the policy is sharded: the most that were here unsharded, and what they are made of."""
    import models.late_weights as late
    import training.parallel as parallel

    most, filled = 0, []
    read = late.read_into

    def counted(model: Any, part: Any) -> None:
        nonlocal most
        late.fill(model, part)
        here = [p for p in model.parameters() if not p.is_meta and not isinstance(p, DTensor)]
        most = max(most, sum(p.nbytes for p in here))

    def noted(views: dict[str, torch.Tensor], files: Any) -> None:
        filled.extend(views)
        read(views, files)

    with mock.patch.object(parallel, "fill", counted), mock.patch.object(late, "read_into", noted):
        trainer = supervised(checkpoint, mesh, mtp=False)
    whole_bytes = {name: 4 * weight.numel() for name, weight in trainer.outline.items()}
    by_layer: Counter[str] = Counter()
    for name, size in whole_bytes.items():
        by_layer[".".join(name.split(".")[:3]) if ".layers." in name else "outside"] += size
    outside = by_layer.pop("outside")
    return {
        "unsharded": most,
        "largest_layer": max(by_layer.values()),
        "outside_layers": outside,
        "whole": sum(whole_bytes.values()),
        "layers_read": len({name.split(".")[2] for name in filled if ".layers." in name}),
    }

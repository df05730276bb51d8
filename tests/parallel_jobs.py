"""What the ranks of tests/test_training_parallel.py do. Every rank draws the same data and takes its share."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data.packing import deal
from fp8.config import Fp8Config
from models.recompute import set_recompute
from models.routing import routers
from rl.batch import MissingRoutes, TrainingSequence
from rl.objective import ObjectiveConfig
from rl.trainer import PolicyTrainer
from sft.batch import EMPTY, Example, Row, pack_examples
from sft.trainer import SupervisedTrainer
from training.config import OptimizerConfig
from training.mesh import MeshConfig
from training.parallel import whole

OPTIMIZER = OptimizerConfig(lr=1e-3, weight_decay=0.1, clip_norm=0.5)


def place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(items: list[Any], length) -> list[Any]:
    rank, size = place()
    return [items[i] for i in sorted(deal([length(item) for item in items], size)[rank])]


def rows(seed: int, count: int = 5) -> list[Row]:
    """Rows of this rank: `count` in all, which no number of ranks divides."""
    rng = np.random.default_rng(seed)
    examples = [
        Example(token_ids=rng.integers(8, 300, length), loss_mask=rng.random(length) < 0.7)
        for length in rng.integers(2, 40, 3 * count)
    ]
    packed = [row for i in range(count) for row in pack_examples(examples[3 * i : 3 * i + 3], 256)]
    return share(packed, lambda row: len(row.input_ids))


def sequences(seed: int, count: int = 7) -> list[TrainingSequence]:
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
    return share(made, len)


def supervised(checkpoint: str, mesh: dict, precision: str = "float32", mtp: bool = True) -> SupervisedTrainer:
    torch.manual_seed(0)
    return SupervisedTrainer(
        checkpoint, OPTIMIZER, mtp=mtp, device="cpu", mesh=MeshConfig(**mesh), precision=precision
    )  # fmt: skip


def gradients(checkpoint: str, mesh: dict, precision: str = "float32", mtp: bool = True) -> dict[str, Any]:
    """Losses and every gradient of one batch, in one piece."""
    trainer = supervised(checkpoint, mesh, precision, mtp)
    total = torch.zeros(2, dtype=torch.float64)
    for row in trainer.even(rows(0), EMPTY):
        nll, deeper = trainer.next_token_losses(row)
        loss = nll if deeper is None else nll + 0.3 * deeper
        loss.backward()
        total += torch.tensor([nll.item(), 0.0 if deeper is None else deeper.item()])
    found = {n: whole(p.grad) for n, p in trainer.policy.named_parameters() if p.grad is not None}
    return {"losses": sum(trainer.ranks.gather(total)).tolist(), "gradients": found}


def steps(checkpoint: str, mesh: dict, precision: str = "float32") -> dict[str, Any]:
    """Metrics of three steps, and what the weights are after them."""
    trainer = supervised(checkpoint, mesh, precision)
    metrics = [trainer.step(rows(seed), 1e-3, 0.1, 0.01) for seed in range(3)]
    biases = {name: router.e_score_correction_bias for name, router in routers(trainer.model)}
    weights = {name: whole(tensor) for name, tensor in trainer.policy.state_dict().items()}
    return {"metrics": metrics, "biases": biases, "weights": weights}


def indexer_steps(checkpoint: str, mesh: dict, stage: str) -> dict[str, Any]:
    """Metrics of two steps that teach indexers, and what the weights are after them."""
    trainer = SupervisedTrainer(checkpoint, OPTIMIZER, device="cpu", mesh=MeshConfig(**mesh), indexer=stage)
    metrics = [trainer.step(rows(seed), 1e-3, 0.0, 0.0) for seed in range(2)]
    return {"metrics": metrics, "weights": {n: whole(tensor) for n, tensor in trainer.policy.state_dict().items()}}


def fp8_losses(checkpoint: str, mesh: dict) -> list[float]:
    """Of a batch whose experts, some of them without rows, multiply in FP8 where their rows arrive."""
    trainer = supervised(checkpoint, mesh, "fp8", mtp=False)
    losses = []
    for row in trainer.even(rows(0), EMPTY):
        nll, _ = trainer.next_token_losses(row)
        nll.backward()
        losses.append(nll.item())
    return [sum(share) for share in zip(*trainer.ranks.gather(losses), strict=True)]


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
        for row in trainer.even(rows(0), EMPTY):
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


def policy_steps(checkpoint: str, mesh: dict, routing_replay: str) -> dict[str, Any]:
    """Metrics of two GRPO steps, and the logprobs before the second, by the tokens of each completion."""
    trainer = policy(checkpoint, mesh, routing_replay=routing_replay)
    first = trainer.update(trainer.annotate(sequences(1)), 1e-3, 20)
    annotated = trainer.annotate(sequences(2))
    second = trainer.update(annotated, 1e-3, 20)
    logprobs = {tuple(s.completion_ids): (s.old_logprobs, s.ref_logprobs) for s in annotated}
    return {"metrics": [first, second], "logprobs": logprobs}


def one_sequence(checkpoint: str, mesh: dict, recompute: str = "none") -> dict[str, float]:
    """A GRPO step on a single completion: all ranks but one have nothing."""
    trainer = policy(checkpoint, mesh, preset="dapo")
    set_recompute(trainer.policy, recompute)
    return trainer.update(trainer.annotate(sequences(3, count=1)), 1e-3, 20)


def train_and_save(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    """Two steps, all that is saved in any form, and then a third step."""
    trainer = supervised(checkpoint, mesh)
    for seed in range(2):
        trainer.step(rows(seed), 1e-3, 0.1, 0.01)
    trainer.begin_save(folder)
    trainer.save_checkpoint(f"{folder}/hub")
    third = trainer.step(rows(2), 1e-3, 0.1, 0.01)  # while the state is being written
    trainer.finish_save()
    assert not trainer.is_saving()
    return third


def resume(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    """The third step, from what `train_and_save` has left."""
    trainer = supervised(checkpoint, mesh)
    trainer.load_state(folder)
    return trainer.step(rows(2), 1e-3, 0.1, 0.01)


def policy_save(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    trainer = policy(checkpoint, mesh)
    trainer.update(trainer.annotate(sequences(1)), 1e-3, 20)
    trainer.begin_save(folder)
    metrics = trainer.update(trainer.annotate(sequences(2)), 1e-3, 20)
    trainer.finish_save()
    return metrics


def policy_resume(checkpoint: str, mesh: dict, folder: str) -> dict[str, Any]:
    trainer = policy(checkpoint, mesh)
    trainer.load_state(folder)
    return trainer.update(trainer.annotate(sequences(2)), 1e-3, 20)


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


def missing_routes(checkpoint: str, mesh: dict) -> str:
    """What every rank is told when completions of one rank lack what routing replay needs."""
    trainer = policy(checkpoint, mesh, preset="v3_2")
    try:
        trainer.annotate(sequences(1) if place()[0] else [])
    except MissingRoutes as error:
        return str(error)
    return ""

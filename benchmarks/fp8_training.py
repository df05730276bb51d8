"""Training in FP8 beside FP32: the same weights and batches compared along a run, and separate runs with their noise.

    python benchmarks/fp8_training.py            # prints two tables, writes JSON

Matched: a tiny DeepSeek-V3 model trains in float32 on the corpus; every so often a copy with the same weights computes
loss and gradient of the same batch in FP8. This is what a bug would show in. Separate: whole runs from the same start,
in float32, in FP8, and in float32 from a start that is moved by 1e-3 of its size, which shows how far runs drift apart
without any FP8. DeepSeek-V3 (appendix B.1) reports a relative loss error below 0.25 % on 1.33T tokens.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from conditions import conditions
from rich.console import Console
from rich.table import Table

from data.corpus import documents
from fp8.config import Fp8Config
from fp8.convert import convert
from models.attention import PackedLayout
from models.checkpoint import load_model, load_tokenizer, save_model
from models.config import TinyModelConfig
from models.routing_replay import RoutingReplay
from models.tiny import build_model, build_tokenizer
from sft.batch import Row
from sft.config import PretrainConfig
from sft.pretrain import corpus_batch
from training.config import OptimizerConfig, TrainerConfig
from training.logprobs import token_logprobs
from training.optimizer import Optimizer

REPO = Path(__file__).parents[1]
HELD_OUT = 10**6  # step numbers from here on make batches that no run trains on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of every run")
    parser.add_argument("--probe-every", type=int, default=25, help="steps between matched comparisons")
    parser.add_argument("--seeds", type=int, default=3, help="starts of the separate runs")
    parser.add_argument("--documents", type=int, default=32, help="per step, about 40 tokens each")
    parser.add_argument("--scales", choices=("float32", "power_of_two"), default="float32")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "results" / "fp8_training.json")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    result = conditions("torch", "transformers", "numpy")
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "out"}
    bench = Bench(arguments)
    result["matched"] = bench.matched()
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    result["separate"] = bench.separate()
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)


class Bench:
    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.fp8 = Fp8Config(backend="reference", scales=arguments.scales)
        self.folder = Path(tempfile.mkdtemp())
        shape = TinyModelConfig(vocab_size=1280)
        self.tokenizer = build_tokenizer((d.text for d in islice(documents("0"), 2000)), shape)
        for seed in range(arguments.seeds):
            model, _ = build_model(shape, self.tokenizer, seed)
            save_model(self.folder / str(seed), model, self.tokenizer)
        self.tokenizer = load_tokenizer(self.folder / "0")
        self.config = PretrainConfig(
            documents_per_step=arguments.documents,
            trainer=TrainerConfig(row_tokens=2048),
            optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup_steps=20, weight_decay=0.1),
        )

    def model(self, seed: int, *, fp8: bool = False) -> Any:
        model = load_model(self.folder / str(seed)).train()
        if fp8:
            convert(model, self.fp8, keep_blocks=True)
        return model

    def rows(self, step: int) -> list[Row]:
        return corpus_batch(self.config, self.tokenizer, step)

    def run(self, model: Any, before_step=lambda step, rows: None) -> float:
        """Train on the corpus; the mean loss on held-out text afterwards."""
        optimizer = Optimizer(model.named_parameters(), self.config.optimizer)
        for step in range(self.arguments.steps):
            rows = self.rows(step)
            before_step(step, rows)
            for loss in losses(model, rows):
                loss.backward()
            optimizer.step(self.config.optimizer.lr_at(step, self.arguments.steps))
        before_step(self.arguments.steps, self.rows(self.arguments.steps))
        with torch.no_grad():
            held_out = [sum(loss.item() for loss in losses(model, self.rows(HELD_OUT + i))) for i in range(8)]
        return mean(held_out)

    def matched(self) -> list[dict[str, float]]:
        master, twin, lines = self.model(0), self.model(0, fp8=True), []

        def compare(step: int, rows: list[Row]) -> None:
            if step % self.arguments.probe_every:
                return
            twin.load_state_dict(master.state_dict())
            exact = loss_and_gradient(master, rows)
            lines.append({"step": step} | gap(exact, loss_and_gradient(twin, rows)))
            replayed = loss_and_gradient(twin, rows, routes=exact[2])
            lines[-1] |= {f"replayed_{key}": value for key, value in gap(exact, replayed).items()}
            print(json.dumps(lines[-1]), flush=True)

        self.run(master, compare)
        return lines

    def separate(self) -> list[dict[str, Any]]:
        kinds = {"float32": (False, 0.0), "float32 from a moved start": (False, 1e-3), "fp8": (True, 0.0)}
        seen: dict[str, list[float]] = {kind: [] for kind in kinds}
        for seed in range(self.arguments.seeds):
            for kind, (fp8, noise) in kinds.items():
                model = self.model(seed, fp8=fp8)
                move(model, noise, seed)
                seen[kind].append(self.run(model))
                print(f"seed {seed}, {kind}: {seen[kind][-1]:.4f}", flush=True)
        base = seen["float32"]
        return [
            {
                "kind": kind,
                "loss": values,
                "gap_percent": [100 * (one - other) / other for one, other in zip(values, base, strict=True)],
            }
            for kind, values in seen.items()
        ]


def losses(model: Any, rows: Iterable[Row]) -> Iterable[torch.Tensor]:
    """One part of the mean loss (nats per token) for every packed row."""
    rows = list(rows)
    tokens = sum(len(row.target_ids) for row in rows)
    for row in rows:
        hidden = model.model(
            input_ids=torch.from_numpy(row.input_ids)[None],
            position_ids=torch.from_numpy(row.position_ids)[None],
            use_cache=False,
            layout=PackedLayout.from_lengths(np.diff(row.cu_seqlens).tolist()),
        ).last_hidden_state
        predicting = hidden[0, torch.from_numpy(row.predicting_positions)]
        logprobs, _ = token_logprobs(predicting, model.lm_head.weight, torch.from_numpy(row.target_ids))
        yield -logprobs.sum() / tokens


def loss_and_gradient(model: Any, rows: list[Row], routes: list[torch.Tensor] | None = None):
    """(loss, gradient by name, experts of every row); the experts are forced when given. Gradients are taken away."""
    replay, total, experts = RoutingReplay(model), 0.0, []
    for index, row in enumerate(rows):
        with replay.watch(None if routes is None else routes[index], force=routes is not None) as seen:
            (loss,) = losses(model, [row])
            loss = loss * len(row.target_ids) / sum(len(row.target_ids) for row in rows)
            loss.backward()
        total += loss.item()
        experts.append(seen.experts())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return total, gradients, experts


def gap(exact, other) -> dict[str, float]:
    (loss, gradients, experts), (other_loss, other_gradients, other_experts) = exact, other
    names = list(gradients)
    one, two = (torch.cat([g[name].flatten() for name in names]).double() for g in (gradients, other_gradients))
    each = [float((gradients[n] - other_gradients[n]).norm() / gradients[n].norm()) for n in names]
    same = [
        (a.sort(dim=-1).values == b.sort(dim=-1).values).all(dim=-1)
        for a, b in zip(experts, other_experts, strict=True)
    ]
    return {
        "loss": loss,
        "loss_gap_percent": 100 * (other_loss - loss) / loss,
        "gradient_cosine": float(torch.dot(one, two) / (one.norm() * two.norm())),
        "gradient_error": float((one - two).norm() / one.norm()),
        "worst_parameter_error": max(each),
        "expert_flips_percent": 100 * (1 - float(torch.cat([s.flatten() for s in same]).float().mean())),
    }


@torch.no_grad()
def move(model: Any, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter += size * noise * parameter.norm() / parameter.numel() ** 0.5


def _print(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("step", "loss", "gap %", "cosine", "error", "worst parameter", "flips %", "cosine, replayed")
    keys = ("loss_gap_percent", "gradient_cosine", "gradient_error", "worst_parameter_error", "expert_flips_percent")
    for line in result["matched"]:
        table.add_row(
            str(line["step"]), f"{line['loss']:.4f}", *(f"{line[key]:.4f}" for key in keys),
            f"{line['replayed_gradient_cosine']:.4f}",
        )  # fmt: skip
    console.print(table)
    table = Table("run", "held-out loss", "gap to float32, %", "mean gap", "sd")
    for line in result["separate"]:
        gaps = line["gap_percent"]
        table.add_row(
            line["kind"], " ".join(f"{v:.4f}" for v in line["loss"]), " ".join(f"{v:+.2f}" for v in gaps),
            f"{mean(gaps):+.2f}", f"{stdev(gaps):.2f}" if len(gaps) > 1 else "",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()

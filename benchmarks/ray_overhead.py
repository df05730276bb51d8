"""What the processes cost: the same RL steps on Ray and in one process without it; and what a replica more costs.

    python benchmarks/ray_overhead.py --rounds 3 --json docs/results/ray_overhead.json

steps       `r1 run` of a tiny RL stage (driver, trainer that samples, reward workers) against its own code called in
            one process, alternating. Both train on the same tokens, which is checked. A step is a rollout batch, from
            one weight sync to the next; the first is left out. The share is what Ray, logs and records add.
replicas    a call for 64 groups to 1 to 8 replicas that answer at once with 8 completions of 100 tokens each: what it
            costs to hand out prompts and take groups back, without sampling.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conditions import conditions

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "recipes/tiny/zero.yaml"
SETTINGS = ("steps=24", "questions_per_step=16", "trainer.threads=2")
GROUPS, GROUP_SIZE, TOKENS = 64, 8, 100
_HERE = "--in-one-process"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    head = conditions("ray", "torch")
    steps: dict[str, list[float]] = {"on_ray": [], "in_one_process": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="r1-overhead-") as scratch:
            on_ray, lengths = run_on_ray(Path(scratch))
            command = [sys.executable, __file__, _HERE, scratch]
            said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=_environment())
            here = json.loads(said.stdout.splitlines()[-1])
        assert here["lengths"] == lengths, "the two did not train on the same tokens"
        steps["on_ray"] += on_ray
        steps["in_one_process"] += here["seconds"]
        print(json.dumps({"on_ray": on_ray, "in_one_process": here["seconds"]}), flush=True)
    medians = {name: round(statistics.median(found), 3) for name, found in steps.items()}
    share = 1 - medians["in_one_process"] / medians["on_ray"]
    result = head | {"settings": SETTINGS, "seconds_per_step": steps, "median_s": medians, "share": round(share, 4)}
    result["replicas"] = cost_of_replicas()
    print(json.dumps(result | {"seconds_per_step": "..."}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def run_on_ray(folder: Path) -> tuple[list[float], list[float]]:
    """(seconds of each step but the first, mean length of each batch)."""
    command = [sys.executable, "-m", "pipeline.cli", "run", RECIPE, f"output={folder}", *SETTINGS]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    stage = folder / "zero"
    spans = [json.loads(line) for line in (stage / "timeline.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    begins = [span["start"] for span in spans if span["phase"] == "sync"]
    end = spans[-1]["start"] + spans[-1]["seconds"]
    seconds = [later - start for start, later in zip(begins, [*begins[1:], end], strict=True)]
    return seconds[1:], [row["rollout/length_mean"] for row in rows if "rollout/length_mean" in row]


def run_here(folder: Path) -> dict[str, Any]:
    """The same steps by the same code, from the plan that the run has left."""
    import torch

    from data.problem_pool import ProblemPool
    from rewards.workers import RewardWorker
    from rl.batch import make_mini_batches
    from rl.config import GRPOConfig
    from rl.experience import rollout_metrics, training_sequences
    from rl.rollout_batches import RolloutBatches
    from rl.sampling_session import derived_seed
    from rl.trainer import PolicyTrainer

    plan = json.loads((folder / "zero" / "plan.json").read_text())
    config, seed = GRPOConfig.model_validate(plan["config"]), plan["seed"]
    torch.set_num_threads(config.trainer.threads)
    objective = config.objective.resolve()
    policy = str((folder / "zero" / plan["parents"]["policy"]["path"]).resolve())
    trainer = PolicyTrainer(
        policy, config.optimizer, objective=objective, temperature=config.rollout.temperature, seed=seed,
        row_tokens=config.trainer.row_tokens, max_slots=config.generator.max_slots, device="cpu",
    )  # fmt: skip
    batches = RolloutBatches(
        config,
        pool=InOrder(trainer),  # pyright: ignore[reportArgumentType]
        rewards=InProcess(RewardWorker(config.rewards)),  # pyright: ignore[reportArgumentType]
        problems=ProblemPool(config.problems, "train", seed, config.held_out_sources),
        render=lambda problems: trainer.render_prompts([p.messages for p in problems], config.rollout.template),
        seed=lambda purpose, step: derived_seed(seed, purpose, step),
    )
    seconds, lengths, step = [], [], 0
    for number in range(config.rollouts):
        started = time.monotonic()
        trainer.set_version(step)
        batch = batches.take(number)
        sequences, _ = training_sequences(batch.groups, objective, batch.longest)
        annotated, shuffle = trainer.annotate(sequences), derived_seed(seed, "mini-batches", step)
        for mini_batch in make_mini_batches(annotated, config.mini_batches, shuffle):
            trainer.update(mini_batch, config.optimizer.lr_at(step, config.steps), batch.longest)
            step += 1
        seconds.append(time.monotonic() - started)
        lengths.append(rollout_metrics(batch.groups)["rollout/length_mean"])
    return {"seconds": seconds[1:], "lengths": lengths}


class InOrder:
    """A pool of one generator, which gives it requests in the same order: the same tokens are computed together."""

    def __init__(self, generator: Any):
        self.generator, self.weights_move = generator, False

    def stream(self, requests: Sequence[Any], params: Any) -> Iterator[Any]:
        order = sorted(requests, key=lambda r: (-r.expected_tokens, -len(r.prompt_ids), r.key))
        yield from self.generator.stream(order, params)


class InProcess:
    """What RolloutBatches asks of rewards, by one worker here."""

    def __init__(self, worker: Any):
        self.worker, self.done = worker, {}

    def submit(self, key: str, problem: Any, completions: Sequence[str], progress: float = 1.0) -> None:
        self.done[key] = self.worker.score([problem] * len(completions), completions, progress)

    def collect(self) -> dict[str, Any]:
        done, self.done = self.done, {}
        return done

    def take_counts(self) -> dict[str, Any]:
        return self.worker.take_counts()


class Instant:
    """A generator that has its answers ready."""

    def __init__(self, checkpoint: str, **settings: Any):
        from rollouts.records import Completion

        said = Completion(
            token_ids=np.arange(TOKENS, dtype=np.int32), sampling_logprobs=np.zeros(TOKENS, np.float32),
            policy_versions=np.zeros(TOKENS, np.int32), finish_reason="length", text="x" * 4 * TOKENS,
        )  # fmt: skip
        self.completions = [said] * GROUP_SIZE

    def stream(self, requests: Sequence[Any], params: Any, version: int | None = None) -> Iterator[Any]:
        from rollouts.records import Group

        for request in requests:
            yield Group(key=request.key, prompt_ids=request.prompt_ids, completions=self.completions)


def cost_of_replicas() -> dict[str, Any]:
    """replicas -> milliseconds of a call, median of 20, and what one replica more costs on average."""
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    from cluster.actors import start_ray, stop_ray
    from rollouts import pool as pools
    from rollouts.config import GeneratorConfig
    from rollouts.records import Request, SamplingParams

    pools._ENGINES["transformers"] = "ray_overhead:Instant"
    start_ray()
    requests = [Request(key=str(place), prompt_ids=[1] * 20) for place in range(GROUPS)]
    params = SamplingParams(max_new_tokens=TOKENS, group_size=GROUP_SIZE)
    found: dict[int, float] = {}
    for replicas in (1, 2, 4, 8):
        pool = pools.GeneratorPool("none", GeneratorConfig(replicas=replicas))
        list(pool.stream(requests, params))  # starts the processes
        seconds = []
        for _ in range(20):
            started = time.monotonic()
            assert len(list(pool.stream(requests, params))) == GROUPS
            seconds.append(time.monotonic() - started)
        found[replicas] = round(1e3 * statistics.median(seconds), 2)
        pool.close()
    stop_ray()
    return {"milliseconds": found, "per_replica_ms": round((found[8] - found[1]) / 7, 2)}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == [_HERE]:
        print(json.dumps(run_here(Path(sys.argv[2]))))
    else:
        main()

"""Our half: the GRPO stage as `r1 run` runs it (rl.train.train), with a stopwatch around its verbs."""

from pathlib import Path

from grpo_workload import REWARDS, Stopwatch, UnitResult, Workload

from cluster.actors import start_ray, stop_ray
from rl.config import GRPOConfig
from rl.objective import ObjectiveConfig
from rl.train import Session, train
from rollouts.config import GeneratorConfig, RolloutConfig
from training.config import OptimizerConfig, TrainerConfig
from training.stage import StageContext


def run(workload: Workload, scratch: str) -> UnitResult:
    """Train on one untimed and `workload.steps` timed GRPO steps."""
    stopwatch = Stopwatch()
    config = _config(workload)
    context = StageContext(
        name="benchmark", inputs={"policy": Path(workload.checkpoint)}, output=Path(scratch), seed=workload.seed
    )
    start_ray()
    try:
        session = TimedSession(config, context, stopwatch)
        try:
            train(session)
        finally:
            session.close()
    finally:
        stop_ray()
    return stopwatch.result(
        {
            "attention": "packed (ours)",
            "experts": "grouped_mm",
            "dtype": config.generator.dtype,
            "threads": config.trainer.threads,
        },
        rest="other",
    )


def _config(workload: Workload) -> GRPOConfig:
    if workload.prompts % workload.updates:
        raise ValueError(f"{workload.prompts} prompts cannot be split over {workload.updates} optimizer steps")
    steps = workload.updates * (workload.steps + 1)
    return GRPOConfig(
        rewards=REWARDS,
        objective=ObjectiveConfig(kl_coef=workload.kl_coef, clip_low=workload.clip, clip_high=workload.clip),
        steps=steps,
        questions_per_step=workload.prompts // workload.updates,
        group_size=workload.group_size,
        mini_batches=workload.updates,
        reference_every=steps + 1,  # TRL's reference stays too
        rollout=RolloutConfig(
            template="plain", max_new_tokens=workload.max_new_tokens, temperature=workload.temperature
        ),
        sample_in_trainer=True,
        generator=GeneratorConfig(max_slots=128),  # 256 are a tenth faster and take 100 MiB more
        optimizer=OptimizerConfig(lr=workload.lr),
        trainer=TrainerConfig(threads=workload.threads, row_tokens=1024, checkpoint_every=steps + 1),
        log_samples=0,
    )


class TimedSession(Session):
    """The session of a GRPO stage; every override only calls its parent."""

    def __init__(self, config: GRPOConfig, context: StageContext, stopwatch: Stopwatch):
        super().__init__(config, context)
        self.stopwatch = stopwatch
        self._stream = self.pool.stream
        self.pool.stream = self._timed_stream

    def resume(self) -> int:
        first = super().resume()
        self.stopwatch.mark()
        return first

    def sync_weights(self, step: int) -> None:
        with self.stopwatch.timed("sync"):
            super().sync_weights(step)

    def _timed_stream(self, requests, params):
        with self.stopwatch.timed("generate"):
            yield from self._stream(requests, params)

    def sample_and_score(self, step: int):
        """Groups are scored while others are sampled: `reward` is what is left to wait for after the last group."""
        with self.stopwatch.timed("reward"):
            batch = super().sample_and_score(step)
        self.stopwatch.prompt_ids += [list(map(int, scored.group.prompt_ids)) for scored in batch.groups]
        return batch

    def compare(self, batch, step: int):
        sequences = super().compare(batch, step)
        self.stopwatch.facts(
            tokens=self.pending_metrics["rollout/length_mean"],
            truncated=self.pending_metrics["rollout/truncated"],
            reward=self.pending_metrics["reward/mean"],
        )
        return sequences

    def annotate(self, batch, sequences, step: int):
        with self.stopwatch.timed("logprobs"):
            return super().annotate(batch, sequences, step)

    def update(self, mini_batch, step: int) -> None:
        with self.stopwatch.timed("update"):
            super().update(mini_batch, step)

    def end_rollout(self, step: int) -> None:
        super().end_rollout(step)
        self.stopwatch.mark()

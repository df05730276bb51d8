"""Recorded steps of a GRPO stage, taken again: the trainer alone, on the batches that the stage kept in groups/.

The same code trains on the same tokens, so on the same machine and versions every number comes out as it was, bit for
bit. Where it does not, the numbers that differ say in which part to look.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import ProblemSource
from rl.batch import make_mini_batches
from rl.config import GRPOConfig
from rl.group_records import batch_file, read_groups
from rl.rollout_batches import SampledBatch
from rl.train import Session
from training.checkpoint import CheckpointStore
from training.run_log import METRICS, rows_by_step
from training.stage import StageContext, StageError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAgain:
    step: int
    recorded: dict[str, Any]  # its row in metrics.jsonl
    again: dict[str, Any]

    @property
    def differing(self) -> list[str]:
        """Names of metrics that are not equal, in the order of the log."""
        names = (name for name in self.again if name != "experience/prompts_too_long")  # those are not on record
        return [name for name in names if self.again[name] != self.recorded.get(name)]


def rerun(config: GRPOConfig, context: StageContext, recorded: Path, last: int) -> Iterator[StepAgain]:
    """Take the steps up to `last` again, from the newest checkpoint before it on. `context.output`: a scratch folder;
    `recorded`: the stage's own, which is only read.

    Raises StageError when a batch that is needed was not kept.
    """
    session = RecordedSession(config, context, recorded)
    rows = rows_by_step(recorded / METRICS)
    try:
        step = session.resume_before(last)
        for batch in session.needed_batches(step, last):  # all there, before anything is computed
            if not batch.exists():
                raise StageError(
                    f"{context.name}: step {last} follows from the checkpoint at step {step} and the batches since, "
                    f"and {batch} was not kept; let record_every be 1, or replay a step soon after a checkpoint"
                )
        yield from _take_again(session, rows, step, last)
    finally:
        session.close()


def _take_again(session: "RecordedSession", rows: dict[int, Any], step: int, last: int) -> Iterator[StepAgain]:
    for first in range(step, last, session.config.mini_batches):
        session.maybe_refresh_reference(first)
        batch = session.sample_and_score(first)
        sequences = session.annotate(batch, session.compare(batch, first), first)
        shuffle = session.seed("mini-batches", first)
        # Fewer than usual, or none, where few completions had a signal.
        for taken, mini_batch in enumerate(make_mini_batches(sequences, session.config.mini_batches, shuffle), first):
            session.update(mini_batch, taken)
            again = rows_by_step(session.context.output / METRICS)[taken + 1]
            yield StepAgain(step=taken + 1, recorded=rows.get(taken + 1, {}), again=again)
            if taken + 1 == last:
                return


class RecordedSession(Session):
    """A stage without generators and rewards: its rollout batches come from disk."""

    def __init__(self, config: GRPOConfig, context: StageContext, recorded: Path):
        self.recorded = recorded
        awake = config.generator.model_copy(update={"sleep": False})
        alone = {"sample_in_trainer": True, "max_staleness": 0, "record_every": 0}  # no generator, nothing to keep
        alone |= {"generator": awake, "optimizer": config.optimizer.model_copy(update={"offload": "none"})}
        super().__init__(config.model_copy(update=alone), context)

    def open_problems(self, held_out: Sequence[ProblemSource]) -> Any:
        """None, as of rewards: both are on record."""

    def start_rewards(self) -> None:
        pass

    def resume_before(self, step: int) -> int:
        """Load the newest whole checkpoint before `step`, or the stage's policy; the steps taken by then."""
        taken, folder = CheckpointStore(self.recorded / "checkpoints").newest_before(step) or (0, None)
        if folder is not None:
            self.wait(self.trainer.load_state.remote(str(folder)), "loading a checkpoint")
        return taken

    def needed_batches(self, step: int, last: int) -> list[Path]:
        return [batch_file(self.recorded, first + 1) for first in range(step, last, self.config.mini_batches)]

    def sample_and_score(self, step: int) -> SampledBatch:
        groups = read_groups(batch_file(self.recorded, step + 1))
        self.longest = self.config.max_new_tokens_at(step)
        return SampledBatch(groups=groups, too_long=0, longest=self.longest, judged={}, in_flight=0)

    def close(self) -> None:
        self.pool.close()
        self.trainer.stop()

    def _check_mismatch(self, difference: float, step: int) -> None:
        """The recorded stage has passed it."""

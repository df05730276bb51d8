"""What stages that train a policy on its own samples have in common: processes, weight sync, logs and checkpoints."""

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.actors import wait
from data.config import ProblemSource
from data.problem_pool import ProblemPool
from data.problems import Problem
from rl.config import OwnSamplesConfig
from rollouts.pool import GeneratorPool
from rollouts.probe import SyncFault, check_sync
from rollouts.transport import open_transport
from training.background_save import BackgroundSave
from training.checkpoint import AVERAGE, CheckpointStore
from training.checkpoint_config import check_settings_are_used, read_config
from training.group import spawn_trainer
from training.run_log import RunLog
from training.stage import StageContext, StageError

WEIGHTS = ".weights"  # of the last sync, where they travel as files; hidden files are no part of an artifact


class SamplingSession:
    """The trainer (a rl.sampling_trainer.SamplingTrainer), the generators and the problems of one stage."""

    takes_turns = True  # whether the trainer rests while generators sample

    def __init__(
        self,
        settings: OwnSamplesConfig,
        context: StageContext,
        trainer: str,
        policy: Path,
        held_out: Sequence[ProblemSource] = (),
        **of_trainer: Any,
    ):
        """`trainer`: the class by its import path; `of_trainer`: further arguments of it."""
        self.settings, self.context = settings, context
        check_settings_are_used(settings, policy, context.name)
        quantised = read_config(policy).get("quantization_config")
        if settings.generator.engine == "vllm" and not settings.sample_in_trainer and quantised:
            raise StageError(
                f"{context.name}: {policy.name} is stored in FP8, and vLLM would keep blocks that weight sync does not "
                f"fill; write it in bfloat16 (r1 export {policy} FOLDER) and start from there. engine_args: "
                "{quantization: fp8_per_block} has vLLM quantise what it is sent"
            )
        self.problems = self.open_problems((*settings.held_out_sources, *held_out))
        generator = settings.generator
        self.trainer = spawn_trainer(
            trainer,
            settings.trainer,
            str(policy),
            settings.optimizer,
            row_tokens=settings.trainer.row_tokens,
            max_slots=generator.max_slots,
            seed=context.seed,
            **of_trainer,
        )
        with ExitStack() as started:
            started.callback(self.trainer.stop)
            self._leave_device()  # an engine looks at what is free when it starts
            shared = self.trainer if settings.sample_in_trainer else None
            self.pool = GeneratorPool(str(policy), generator, shared=shared, make_room=self._leave_device)
            started.callback(self.pool.close)
            self.pool.sleep()
            started.pop_all()
        self.transport = open_transport(self.trainer, generator.sync, context.output / WEIGHTS)
        self.log = RunLog(context.output)
        self.store = CheckpointStore(context.output / "checkpoints", log=self.log)
        self.saving = BackgroundSave(self.trainer, self.store, self.wait)
        self.sync_metrics: dict[str, float] = {}
        self.seconds: dict[str, float] = {}  # of the rollout batch, by phase

    def open_problems(self, held_out: Sequence[ProblemSource]) -> ProblemPool:
        return ProblemPool(self.settings.problems, "train", self.context.seed, held_out)

    def seed(self, purpose: str, step: int) -> int:
        return derived_seed(self.context.seed, purpose, step)

    def resumed(self) -> tuple[int, Path | None]:
        """Load the last whole checkpoint, if any, and cut the logs back to it: the steps taken, and its folder."""
        step, folder = self.store.latest() or (0, None)
        if folder is not None:
            self.wait(self.trainer.load_state.remote(str(folder)), "loading a checkpoint")
        self.log.truncate_after(step)
        self.wait(self.trainer.write_audit.remote(str(self.context.output)), "saying what computes in what")
        return step, folder

    @contextmanager
    def phase(self, name: str, step: int, who: str = "driver") -> Iterator[None]:
        """Time what is done on the way to `step`, into `seconds` and the timeline."""
        began, started = time.time(), time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            key = f"time/{name}_s"
            self.seconds[key] = self.seconds.get(key, 0.0) + seconds
            self.log.log_span(step, name, who, began, seconds)

    def sync_weights(self, step: int) -> None:
        with self.phase("sync", step + 1):
            self._leave_device(weights=False)
            if self.settings.sample_in_trainer:
                self.wait(self.trainer.set_version.remote(step), "weight sync")
            else:
                self.pool.wake()
                self.pool.sync(self.transport, version=step)
                self._prove_sync(step)

    def _prove_sync(self, step: int) -> None:
        """Compare trainer and generators on the stage's first prompts, one after the other: they may share devices."""
        rendered = self.render(self.problems.draw(0, self.settings.generator.sync.probe_prompts, 0.0))
        prompts = [ids for ids in rendered if ids is not None and len(ids) > 1]
        expected = self.wait(self.trainer.score.remote(prompts), "scoring the probe") if prompts else []
        self._leave_device()
        self.pool.wake_cache()
        if prompts:
            report = self.context.output / ".weight_sync_failure.json"
            precision = self.settings.trainer.precision
            try:
                self.sync_metrics = check_sync(self.trainer, self.pool, step, prompts, expected, report, precision)
            except SyncFault as error:
                raise StageError(f"{self.context.name}: {error}") from None

    def _leave_device(self, weights: bool = True) -> None:
        """To the generators, where they and the trainer take turns on one."""
        if self.takes_turns and (self.settings.generator.sleep or self.settings.optimizer.offload != "none"):
            self.wait(self.trainer.offload.remote(weights=weights), "offloading the trainer")

    def render(self, problems: Sequence[Problem]) -> list[list[int] | None]:
        conversations = [problem.messages for problem in problems]
        rendered = self.trainer.render_prompts.remote(conversations, self.settings.rollout.template)
        prompts = self.wait(rendered, "rendering prompts")
        room = self.pool.context()  # the engine's may be smaller than the model's
        return [ids if ids is None or len(ids) < room else None for ids in prompts]

    def save_weights(self) -> None:
        """The policy as the stage leaves it, and the average of its weights where one is kept."""
        self.saving.finish()
        self.pool.sleep()
        self.wait(self.trainer.save_checkpoint.remote(str(self.context.output)), "saving the policy")
        average = str(self.context.output / AVERAGE)
        self.wait(self.trainer.save_average.remote(average), "saving the average of the weights")
        shutil.rmtree(self.context.output / WEIGHTS, ignore_errors=True)

    def close(self) -> None:
        self.pool.close()
        self.trainer.stop()

    def wait(self, ref: Any, phase: str) -> Any:
        return wait(ref, phase=f"{self.context.name}: {phase}", deadline_s=self.settings.trainer.deadline_s)

    def report(self, step: int, **event: Any) -> None:
        self.context.report({"step": step, "total_steps": self.settings.steps, **event})


def derived_seed(seed: int, purpose: str, step: int) -> int:
    """Depends on a stage's seed, the purpose and the step alone, so that a resumed run repeats it."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")

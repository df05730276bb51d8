"""The GRPO stage. `train` reads like the algorithm box of DeepSeek-R1, section 2.1:

repeat: draw questions; sample a group of completions for each with pi_old; score them; compare within groups;
        split the outputs at random into mini-batches; one optimizer step on each; pi_old <- pi_theta.
        Every `reference_every` steps: pi_ref <- pi_theta.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np

from cluster.actors import ActorDied, PhaseTimeout, kill, start_ray
from cluster.running import StageStopped
from data.config import ProblemSource
from data.packing import best_fit, fill_rate
from data.problem_pool import ProblemPool
from rewards.pool import RewardPool
from rewards.problem_checks import check_problems
from rewards.reward import Verdict
from rl.batch import MissingRoutes, NonFiniteLoss, TrainingSequence, make_mini_batches
from rl.config import GRPOConfig
from rl.experience import ScoredGroup, counts, rollout_metrics, sample_rows, staleness_metrics, training_sequences
from rl.group_records import batch_file, drop_after, write_groups
from rl.learned_rewards import start_scorers, with_models
from rl.rollout_batches import RolloutBatches, SampledBatch
from rl.sampling_session import SamplingSession
from rl.watcher import Watcher
from rollouts.judge import start_judges
from training.group import put_back
from training.run_log import METRICS, read_log, write_stats
from training.stage import StageContext, StageError

WATCH = "watch.json"  # in a checkpoint
logger = logging.getLogger(__name__)


def run(config: GRPOConfig, context: StageContext) -> None:
    start_ray()
    session = Session(config, context)
    try:
        train(session)
    except StageError:
        with suppress(ActorDied, PhaseTimeout, StageStopped):
            session.saving.poll()  # a checkpoint that is whole by now is one to go on from
        raise
    finally:
        session.close()


def train(session: "Session") -> None:
    config = session.config
    for rollout in range(session.resume(), config.rollouts):
        step = rollout * config.mini_batches
        session.maybe_refresh_reference(step)
        session.sync_weights(step)
        if session.watch_reward(rollout):
            return session.save_policy()
        batch = session.sample_and_score(step)
        sequences = session.annotate(batch, session.compare(batch, step), step)
        for mini_batch in make_mini_batches(sequences, config.mini_batches, session.seed("mini-batches", step)):
            session.update(mini_batch, step)
            step += 1
        session.end_rollout((rollout + 1) * config.mini_batches)
    session.watch_last()
    session.save_policy()


class Session(SamplingSession):
    """The processes of one GRPO stage, and the verbs of the loop."""

    def __init__(self, config: GRPOConfig, context: StageContext):
        self.config, self.objective = config, config.objective.resolve()
        self.takes_turns = not config.max_staleness
        super().__init__(
            config,
            context,
            "rl.trainer:PolicyTrainer",
            context.inputs["policy"],
            held_out=config.watch.sources if config.watch else (),
            objective=self.objective,
            temperature=config.rollout.temperature,
            bias_speed=config.bias_speed,
            balance_weight=config.balance_weight,
            mtp_weight=config.mtp_weight,
        )
        self.pending_metrics: dict[str, float] = {}  # of the rollout batch; logged with its first step
        self.watch_metrics: dict[str, float] = {}
        self.tokens = 0
        self.filled: list[float] = []  # share of the rows' room, of each step since the last rollout batch
        self.longest = config.rollout.max_new_tokens  # of this rollout batch's completions
        self._warn_of_staleness()
        self.start_rewards()

    def open_problems(self, held_out: Sequence[ProblemSource]) -> ProblemPool:
        problems = super().open_problems(held_out)
        check_problems(self.config.rewards, problems)
        return problems

    def _warn_of_staleness(self) -> None:
        if self.config.max_staleness and not self.objective.needs_sampling:
            sentence = "%s: max_staleness %d without objective.correction or a sequence mask: old tokens count as new"
            logger.warning(sentence, self.context.name, self.config.max_staleness)

    def start_rewards(self) -> None:
        config, context = self.config, self.context
        specs = with_models(config.rewards, context.inputs)
        self.served = start_judges(context.inputs, config.judges) | start_scorers(specs)
        self.rewards = RewardPool(specs, config.reward_workers, self.served)
        self.watcher = Watcher(config.watch, specs, config, context, self.served) if config.watch else None
        self.batches = RolloutBatches(
            config, pool=self.pool, rewards=self.rewards, problems=self.problems, render=self.render, seed=self.seed
        )

    def resume(self) -> int:
        """The first rollout to do: 0, or the one after the last whole checkpoint."""
        step, folder = self.resumed()
        drop_after(self.context.output, step)
        if folder is not None:
            self.batches.load(folder)
            if self.watcher:
                self.watcher.watch.load(folder / WATCH)
        return step // self.config.mini_batches

    def maybe_refresh_reference(self, step: int) -> None:
        """The reference is replaced at the first rollout boundary at or after every `reference_every` steps."""
        every, previous = self.config.reference_every, step - self.config.mini_batches
        if step and step // every > previous // every:
            self.wait(self.trainer.refresh_reference.remote(), "refreshing the reference")

    def watch_reward(self, rollout: int) -> bool:
        """Look for reward hacking, where the recipe asks for it. Whether the stage ends here."""
        if self.watcher is None or not self.watcher.is_due(rollout):
            return False
        step = rollout * self.config.mini_batches
        self.report(step, phase="watching the reward")
        found = self.watcher.check(self.pool, self.render)
        for sentence in filter(None, (found.alert, found.blind)):
            logger.warning("%s: step %d: %s", self.context.name, step, sentence)
        stops = bool(found.alert) and self.watcher.config.on_alert == "stop"
        if not stops and rollout < self.config.rollouts:
            self.watch_metrics = found.metrics  # logged with the rollout batch that follows
        elif read_log(self.context.output / METRICS)[-1:] != [{"step": step, **found.metrics}]:
            self.log.log(step, found.metrics)  # once, also when the stage is killed now and looks again
        return stops

    def watch_last(self) -> None:
        """Look at the policy that the stage leaves."""
        if self.watcher is not None:
            self.sync_weights(self.config.steps)
            self.watch_reward(self.config.rollouts)

    def sync_weights(self, step: int) -> None:
        if self.config.max_staleness:
            self.report(step, phase="sampling")
            with self.phase("sample", step + 1):
                self.batches.settle()
        super().sync_weights(step)

    def sample_and_score(self, step: int) -> SampledBatch:
        self.report(step, phase="sampling")
        with self.phase("sample", step + 1):
            batch = self.batches.take(step // self.config.mini_batches)
        if self.takes_turns:
            self.pool.sleep()
        self.saving.poll()
        self.longest = batch.longest
        self.tokens = sum(len(c.token_ids) for scored in batch.groups for c in scored.group.completions)
        self.log.samples(sample_rows(batch.groups, step + 1, self.config.log_samples))
        return batch

    def compare(self, batch: SampledBatch, step: int) -> list[TrainingSequence]:
        groups, judged = batch.groups, batch.judged
        if not groups:
            sentence = f"{self.context.name}: all {batch.too_long} prompts fill the policy's context; use shorter ones"
            raise StageError(sentence)
        sequences, counters = training_sequences(groups, self.objective, self.longest)
        failures = {
            f"reward/{name}_{kind}s": counts[kind] for name, counts in judged.items() for kind in ("error", "timeout")
        }
        failures |= {f"reward/{name}_unreadable": n for name, counts in judged.items() if (n := counts["unreadable"])}
        counters["experience/prompts_too_long"] = batch.too_long
        if self.config.max_staleness:
            counters |= staleness_metrics(groups, step, self.config.mini_batches)
            counters["experience/in_flight"] = batch.in_flight
        self.pending_metrics = rollout_metrics(groups) | counters | failures | self.sync_metrics | self.watch_metrics
        self.watch_metrics = {}
        self._check_unscorable(groups, counters["experience/unscorable"], counters["experience/sampled"])
        self._check_readable(groups, judged)
        self._check_supports(sequences)
        return sequences

    def _check_unscorable(self, groups: Sequence[ScoredGroup], unscorable: float, sampled: float) -> None:
        def too_many(count: float) -> bool:
            return count > self.config.unscorable_limit * sampled or count == sampled

        if not too_many(unscorable):
            return
        failed = [score for scored in groups for score in scored.scores if score.value is None]
        commonest = "; ".join(reason for reason, _ in Counter(score.detail for score in failed).most_common(3))
        retry = not too_many(sum(not score.retry for score in failed))  # services and processes may be back
        raise StageError(
            f"{self.context.name}: {unscorable:.0f} of {sampled:.0f} completions cannot be scored, more than "
            f"unscorable_limit {self.config.unscorable_limit}: {commonest}"
            + ("" if retry else "; the same command resumes once the reward is mended"),
            retry=retry,
        )

    def _check_readable(self, groups: Sequence[ScoredGroup], judged: Mapping[str, Counter[str]]) -> None:
        """All completions earned the same for the same reason: there is nothing in them to learn from."""
        for name, verdicts in judged.items():
            total = sum(verdicts[verdict] for verdict in Verdict)
            if total and verdicts["unreadable"] == total:
                reasons = Counter(score.detail for scored in groups for score in scored.scores if score.unreadable)
                commonest = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
                raise StageError(
                    f"{self.context.name}: the reward {name} could read none of {total} completions: {commonest}; "
                    "teach the policy to write what it reads first (a cold start), or let completions be longer"
                )

    def _check_supports(self, sequences: Sequence[TrainingSequence]) -> None:
        missing = sum(sequence.support is None for sequence in sequences)
        if missing and self.objective.keep_sampling_mask and self.config.rollout.truncates:
            raise StageError(
                f"{self.context.name}: {missing} of {len(sequences)} completions came without their sampling mask: "
                "this generator cannot return what top_p, top_k and min_p left; use another one, or sample with top_p "
                "1, top_k 0 and min_p 0"
            )

    def annotate(self, batch: SampledBatch, sequences: Sequence[TrainingSequence], step: int) -> list[TrainingSequence]:
        self.saving.poll()
        with self.phase("logprobs", step + 1):
            try:
                dealt = self.trainer.dealt(sequences, len)
                parts = self.wait(self.trainer.annotate.each(dealt), "old and reference logprobs")
            except MissingRoutes as error:
                raise StageError(f"{self.context.name}: {error}") from None
        annotated = put_back(self.trainer.shares(sequences, len), parts)
        every = self.config.record_every
        if every and step // self.config.mini_batches % every == 0:
            with self.phase("record", step + 1):
                write_groups(batch_file(self.context.output, step + 1), step + 1, batch.groups, annotated)
        return annotated

    def update(self, mini_batch: Sequence[TrainingSequence], step: int) -> None:
        lr = self.config.optimizer.lr_at(step, self.config.steps)
        with self.phase("update", step + 1):
            try:
                shares = self.trainer.dealt(mini_batch, len)
                self.filled.append(_filled(shares.values, self.config.trainer.row_tokens))
                metrics = self.wait(self.trainer.update.remote(shares, lr, self.longest), f"step {step + 1}")
                self.saving.poll()
            except NonFiniteLoss as error:
                dump = self._dump(mini_batch, step)
                sentence = f"{self.context.name}: step {step + 1}: {error}; the batch is in {dump}"
                raise StageError(sentence) from None
        self.log.log(step + 1, self.pending_metrics | metrics | {"optimizer/lr": lr})
        self.report(
            step + 1,
            phase="training",
            loss=metrics["loss/policy"],
            reward=self.pending_metrics.get("reward/mean"),
            accuracy=self.pending_metrics.get("reward/pass_rate"),
        )
        self.pending_metrics = {}
        self._check_mismatch(metrics["mismatch/abs_mean"], step)

    def _check_mismatch(self, difference: float, step: int) -> None:
        stale = self.config.max_staleness > 0  # older weights differ too, so only the probe of every sync can tell
        if difference > self.config.mismatch_limit and not stale:
            raise StageError(
                f"{self.context.name}: step {step + 1}: generator and trainer differ by {difference:.3g} nats per "
                f"token, more than mismatch_limit {self.config.mismatch_limit}: the policy that samples is not the one "
                "that trains",
            )

    def end_rollout(self, step: int) -> None:
        """Log and save. `step` counts a whole rollout batch, also when its completions fill fewer mini-batches."""
        every, last = self.config.trainer.checkpoint_every, step - self.config.mini_batches
        saves = step // every > last // every and step < self.config.steps
        if saves and self.config.max_staleness:
            with self.phase("sample", step):  # what is in flight is part of the checkpoint
                self.batches.settle()
        seconds = sum(self.seconds.values())
        if self.pending_metrics:  # no completion had a signal, so no step was taken
            self.log.log(step, self.pending_metrics)
        self.log.log_timing(step, self.seconds | {"throughput/tokens_per_s": self.tokens / seconds} | self._packing())
        self.seconds = {}
        self.report(step, tokens_per_s=self.tokens / seconds)
        if saves:
            self.saving.begin(step, beside=self._save_beside)

    def _packing(self) -> dict[str, float]:
        filled, self.filled = self.filled, []
        return {"packing/fill": sum(filled) / len(filled)} if filled else {}

    def _save_beside(self, folder: Path) -> None:
        self.batches.save(folder)
        if self.watcher:
            self.watcher.watch.save(folder / WATCH)

    def save_policy(self) -> None:
        self.save_weights()
        stats = counts(read_log(self.context.output / METRICS)) | {"problems_held_out": self.problems.contaminated}
        write_stats(self.context.output, stats)

    def close(self) -> None:
        super().close()
        self.rewards.close()
        self.batches.close()
        if self.watcher:
            self.watcher.close()
        for handle in self.served.values():
            kill(handle)

    def _dump(self, mini_batch: Sequence[TrainingSequence], step: int):
        """The batch behind a non-finite step: one .npz with every array, to be read with numpy alone."""
        file = self.context.output / "checkpoints" / f"nonfinite_step_{step + 1}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        names = [field.name for field in fields(TrainingSequence) if field.name != "support"]
        arrays = {f"{i}/{n}": getattr(s, n) for i, s in enumerate(mini_batch) for n in names}
        for i, support in enumerate(s.support for s in mini_batch):
            if support is not None:
                arrays |= {f"{i}/support_ids": support.ids, f"{i}/support_sizes": support.sizes}
        np.savez_compressed(file, **{key: value for key, value in arrays.items() if value is not None})
        return file


def _filled(shares: Sequence[Sequence[TrainingSequence]], capacity: int) -> float:
    lengths = [[len(sequence) for sequence in share] for share in shares]
    return fill_rate([[sum(own[i] for i in row) for row in best_fit(own, capacity)] for own in lengths], capacity)

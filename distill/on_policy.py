"""On-policy distillation: the student samples, its teachers say what they would have said at every token, and the
student moves towards them. DeepSeek-V4 (arXiv:2606.19348, section 5.1, Eq. 29):

    loss = sum_i w_i KL(student || teacher_i),  over the whole vocabulary, at the student's own tokens

The states that the student visits are taken as given; the gradient is that of the KL at each of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.actors import start_ray
from data.config import ProblemSource
from data.packing import fill_rate
from data.problem_pool import ProblemPool
from data.problems import Problem
from distill.config import OnPolicyDistillConfig
from distill.taught import Taught, TaughtRow, pack_taught
from distill.teachers import Teachers
from rl.sampling_session import SamplingSession
from rollouts.records import Completion, Group, Request
from sft.batch import Example
from training.run_log import METRICS, read_log, write_stats
from training.stage import StageContext, StageError

Sample = tuple[Problem, Group, Completion]


def run(config: OnPolicyDistillConfig, context: StageContext) -> None:
    start_ray()
    session = Session(config, context)
    try:
        train(session)
    finally:
        session.close()


def train(session: "Session") -> None:
    first, _ = session.resumed()
    for step in range(first, session.config.steps):
        session.sync_weights(step)
        with session.phase("sample", step + 1):
            samples = session.sample(step)
        with session.phase("teachers", step + 1):
            taught = session.ask_teachers(samples)
        with session.phase("update", step + 1):
            session.update(taught, step)
        session.end_step(step + 1)
    session.save_student()


class Session(SamplingSession):
    """The processes of one stage, and the verbs of the loop."""

    def __init__(self, config: OnPolicyDistillConfig, context: StageContext):
        self.config = config
        student = context.inputs["student"]
        folders = {
            role.partition(".")[2]: path for role, path in context.inputs.items() if role.startswith("teachers.")
        }
        self._check_weights(context.name, tuple(folders))
        super().__init__(
            config,
            context,
            "distill.trainer:DistillTrainer",
            student,
            kl=config.kl,
            teachers={name: str(folder) for name, folder in folders.items()},
        )
        self.teachers = Teachers(folders, config.teacher, config.kl, context.name, inputs="teachers.")
        try:
            self.teachers.check_tokenizers(student)
            self.context_of_teachers = self.teachers.context()
        except BaseException:
            self.close()
            raise
        self.metrics: dict[str, float] = {}  # of the samples, logged with the step that they are for
        self.filled = 0.0  # share of the rows' room in the last step

    def _check_weights(self, stage: str, teachers: tuple[str, ...]) -> None:
        for domain, weights in self.config.weights.items():
            if unknown := sorted(weights.keys() - set(teachers)):
                raise StageError(
                    f"{stage}: weights.{domain} names {unknown[0]}, and the input teachers has {', '.join(teachers)}"
                )

    def open_problems(self, held_out: Sequence[ProblemSource]) -> ProblemPool:
        problems = super().open_problems(held_out)
        domains = problems.listed_domains()
        if domains is not None and (unknown := sorted(self.config.weights.keys() - domains)):
            raise StageError(
                f"{self.context.name}: weights names the domain {unknown[0]}, and the problems have "
                f"{', '.join(sorted(domains))}; a source's `domain` says which one its problems have"
            )
        return problems

    def sample(self, step: int) -> list[Sample]:
        self.report(step, phase="sampling")
        count = self.config.questions_per_step
        problems = self.problems.draw(step * count, count)
        prompts = zip(problems, self.render(problems), strict=True)
        asked = {
            f"{place}:{problem.id}": (problem, ids) for place, (problem, ids) in enumerate(prompts) if ids is not None
        }
        if not asked:
            raise StageError(f"{self.context.name}: all {count} prompts fill the student's context; use shorter ones")
        requests = [Request(key=key, prompt_ids=ids) for key, (_, ids) in asked.items()]
        params = self.config.rollout.params(self.config.samples_per_question, self.seed("sampling", step))
        groups = self.pool.sample(requests, params)
        self.pool.sleep()
        samples = [(asked[group.key][0], group, said) for group in groups for said in group.completions]
        self.metrics = _rollout_metrics(samples) | self.sync_metrics
        self.metrics["experience/prompts_too_long"] = count - len(asked)
        readable = [sample for sample in samples if _length(sample) <= self.context_of_teachers]
        self.metrics["experience/too_long_for_teachers"] = len(samples) - len(readable)
        self.log.samples(self._log_rows(samples, step + 1))
        if not readable:
            raise StageError(
                f"{self.context.name}: all samples are longer than the {self.context_of_teachers:.0f} tokens that a "
                "teacher can read; lower rollout.max_new_tokens"
            )
        return readable

    def ask_teachers(self, samples: Sequence[Sample]) -> list[Taught]:
        """Each sample with what its teachers say. A teacher is not shown those of a domain where it has no weight."""
        names = tuple(self.teachers.handles)
        examples = [_example(group, completion) for _, group, completion in samples]
        weights = [self.config.weights_of(problem.domain, names) for problem, *_ in samples]
        shown = {name: [place for place, given in enumerate(weights) if name in given] for name in names}
        begun = self.teachers.begin({name: [examples[place] for place in places] for name, places in shown.items()})
        said = {
            (name, place): told
            for name, answers in self.teachers.end(begun).items()
            for place, told in zip(shown[name], answers, strict=True)
        }
        return [
            Taught(example=example, told={name: (said[name, place], weight) for name, weight in given.items()})
            for place, (example, given) in enumerate(zip(examples, weights, strict=True))
        ]

    def update(self, taught: Sequence[Taught], step: int) -> None:
        lr = self.config.optimizer.lr_at(step, self.config.steps)
        rows: list[TaughtRow] = pack_taught(taught, self.config.trainer.row_tokens)
        dealt = self.trainer.dealt(rows, lambda row: len(row.input_ids))
        metrics = self.wait(self.trainer.step.remote(dealt, lr), f"step {step + 1}")
        lengths = [[len(row.input_ids) for row in share] for share in dealt.values]
        self.filled = fill_rate(lengths, self.config.trainer.row_tokens)
        self.saving.poll()
        self.log.log(step + 1, self.metrics | metrics)
        self.report(step + 1, phase="training", loss=metrics["loss/kl"])

    def end_step(self, step: int) -> None:
        tokens, seconds = self.metrics["experience/tokens"], sum(self.seconds.values())
        speed = {"throughput/tokens_per_s": tokens / seconds, "packing/fill": self.filled}
        self.log.log_timing(step, self.seconds | speed)
        self.seconds = {}
        self.report(step, tokens_per_s=tokens / seconds)
        if step % self.config.trainer.checkpoint_every == 0 and step < self.config.steps:
            self.saving.begin(step)

    def save_student(self) -> None:
        self.save_weights()
        rows = [row for row in read_log(self.context.output / METRICS) if "experience/tokens" in row]
        tokens = sum(row["experience/tokens"] for row in rows)
        stats = {"samples": sum(row["experience/sampled"] for row in rows), "tokens": tokens, "tokens_trained": tokens}
        write_stats(self.context.output, stats | {"steps": len(rows), "problems_held_out": self.problems.contaminated})

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.teachers.close()

    def _log_rows(self, samples: Sequence[Sample], step: int) -> list[dict[str, Any]]:
        count = self.config.log_samples
        chosen = samples[:: max(1, len(samples) // count)][:count] if count else []
        return [
            {
                "step": step,
                "problem_id": problem.id,
                "domain": problem.domain,
                "language": problem.language,
                "question": problem.question,
                "completion": said.text,
            }
            for problem, _, said in chosen
        ]


def _length(sample: Sample) -> int:
    _, group, said = sample
    return len(group.prompt_ids) + len(said.token_ids)


def _example(group: Group, completion: Completion) -> Example:
    ids = np.concatenate([np.array(group.prompt_ids, np.int64), completion.token_ids.astype(np.int64)])
    return Example(token_ids=ids, loss_mask=np.arange(len(ids)) >= len(group.prompt_ids))


def _rollout_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    lengths = [len(said.token_ids) for *_, said in samples]
    return {
        "experience/sampled": len(samples),
        "experience/tokens": sum(lengths),
        "rollout/length_mean": float(np.mean(lengths)),
        "rollout/truncated": float(np.mean([said.finish_reason == "length" for *_, said in samples])),
    }

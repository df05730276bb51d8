"""Prompts put to a teacher, chunk by chunk: no more of them is held than one chunk."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.actors import start_ray
from data.chat import render_prompt
from data.problem_pool import ProblemPool
from data.problems import Problem
from distill.endpoint_sampler import TeacherSampler
from distill.solutions import SolutionSampler
from distill.suites import suite_sources
from distill.trace_rows import SampledBatch, TraceRow
from distill.traces_config import TracesConfig
from models.checkpoint import context_length, load_tokenizer
from rewards.endpoint import ChatEndpoint
from rewards.pool import RewardPool
from rewards.problem_checks import check_problems
from rollouts.judge import start_judges
from sft.sampling import Chunk, Prompt, Sampled, Sampler, open_policy, scored_chunks
from training.stage import StageContext, StageError

Render = Callable[[Problem], list[int]]


class Asked:
    """The prompts of a stage, as `scored_chunks` takes them. `too_long` counts those it has left out so far."""

    def __init__(self, config: TracesConfig, seed: int, source: str, render: Render, room: float) -> None:
        held_out = [*config.held_out_sources, *suite_sources(config.suites)]
        self.config, self.source, self.render, self.room = config, source, render, room
        self.pool = ProblemPool(config.problems, "train", seed, held_out)
        check_problems(config.rewards, self.pool)
        self.too_long = 0

    def chunks(self) -> Iterator[tuple[int, list[Prompt]]]:
        for start in range(0, self.config.prompts, self.config.chunk_prompts):
            problems = self.pool.draw(start, min(self.config.chunk_prompts, self.config.prompts - start))
            prompts = [
                Prompt(key=f"{number}:{p.id}", problem=p, prompt_ids=self.render(p), source=self.source)
                for number, p in enumerate(problems, start=start)
            ]
            fitting = [prompt for prompt in prompts if len(prompt.prompt_ids) < self.room]
            self.too_long += len(prompts) - len(fitting)
            yield start, fitting


def ask_policy(config: TracesConfig, context: StageContext) -> tuple[Asked, Iterator[SampledBatch]]:
    """The prompts put to the checkpoint that is the stage's input `policy`, and its answers."""
    policy = context.inputs["policy"]
    tokenizer = load_tokenizer(policy)

    def render(problem: Problem) -> list[int]:
        return render_prompt(tokenizer, problem.messages, config.rollout.template)

    def open_sampler() -> Sampler:
        params = config.rollout.params(config.samples_per_prompt, context.seed)
        settings = config.generator, config.rewards, config.reward_workers
        return open_policy(policy, params, *settings, context.inputs, config.judges)

    asked = Asked(config, context.seed, "policy", render, context_length(policy))
    return asked, _batches(asked, open_sampler, config, context)


def ask_endpoint(config: TracesConfig, context: StageContext) -> tuple[Asked, Iterator[SampledBatch]]:
    """The same for a server. Raises StageError when its key is not set."""
    teacher = config.endpoint
    if teacher is None:
        raise StageError(f"{context.name}: there is no endpoint")
    endpoint = ChatEndpoint(teacher, "endpoint")

    def open_sampler() -> Sampler:
        start_ray()
        judges = start_judges(context.inputs, config.judges)
        rewards = RewardPool(config.rewards, config.reward_workers, judges)
        params = config.rollout.params(config.samples_per_prompt, context.seed)
        return TeacherSampler(endpoint, teacher, params, rewards, judges, _work(context) / "answers.journal.jsonl")

    asked = Asked(config, context.seed, teacher.model, lambda problem: [], float("inf"))
    return asked, _batches(asked, open_sampler, config, context)


def ask_nobody(config: TracesConfig, context: StageContext) -> tuple[Asked, Iterator[SampledBatch]]:
    """The problems and their own written solutions."""

    def open_sampler() -> Sampler:
        start_ray()
        judges = start_judges(context.inputs, config.judges)
        return SolutionSampler(RewardPool(config.rewards, config.reward_workers, judges), judges)

    asked = Asked(config, context.seed, "solutions", lambda problem: [], float("inf"))
    return asked, _batches(asked, open_sampler, config, context)


def _batches(
    asked: Asked, open_sampler: Callable[[], Sampler], config: TracesConfig, context: StageContext
) -> Iterator[SampledBatch]:
    def report(done: int) -> None:
        context.report({"step": done, "total_steps": config.prompts, "phase": "sampling"})

    chunks = scored_chunks(asked.chunks(), open_sampler, rewards=config.rewards, work=_work(context), on_group=report)
    for number, chunk in enumerate(chunks):
        yield SampledBatch(number=number, rows=_rows(chunk))


def _rows(chunk: Chunk) -> list[TraceRow]:
    return [_row(prompt, number, sampled) for prompt, group in chunk for number, sampled in enumerate(group, start=1)]


def _row(prompt: Prompt, number: int, sampled: Sampled) -> TraceRow:
    problem = prompt.problem
    place = prompt.key.partition(":")[0]
    row = {
        "id": f"{problem.id}-{place}-{number}",
        "messages": [*map(dict, problem.messages), {"role": "assistant", "content": sampled.text}],
        "domain": problem.domain,
        "language": problem.language,
        "source": prompt.source,
    }
    return TraceRow(row=row, n_tokens=sampled.n_tokens, verdict=sampled.verdict, truncated=sampled.truncated)


def _work(context: StageContext) -> Path:
    return context.output / ".work"

"""What both halves of the GRPO benchmark do: the same checkpoint, prompts, lengths, rewards and number of updates."""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data.chat import PLAIN_PROMPT
from data.problem_pool import ProblemPool, ProblemsConfig
from data.problems import Problem
from rewards.config import RewardSpec

COMMITTED = Path(__file__).parents[1] / "recipes" / "tiny" / "base"
REWARDS = (RewardSpec(use="rewards.accuracy:Accuracy"), RewardSpec(use="rewards.format:Format"))
PHASES = ("sync", "generate", "reward", "logprobs", "update", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    checkpoint: str
    prompts: int = 64  # per GRPO step
    group_size: int = 8  # completions per prompt
    max_new_tokens: int = 64
    updates: int = 16  # optimizer steps per GRPO step
    steps: int = 3  # timed GRPO steps, after one that is not timed
    threads: int = 2  # compute threads in all
    temperature: float = 1.0
    kl_coef: float = 0.001
    clip: float = 10.0  # both sides, as in R1
    lr: float = 1e-5  # small: completion lengths stay those of the checkpoint
    trl_experts: str = "grouped_mm"  # transformers' expert kernel, the fastest for TRL here; ours is fixed
    seed: int = 0

    @property
    def samples(self) -> int:
        """Completions per GRPO step."""
        return self.prompts * self.group_size

    @property
    def mini_batch(self) -> int:
        """Completions per optimizer step. Raises ValueError when the updates do not divide the samples."""
        if self.samples % self.updates:
            raise ValueError(f"{self.samples} samples cannot be split into {self.updates} equal mini-batches")
        return self.samples // self.updates

    def problems(self) -> list[Problem]:
        """The problems of all steps, the untimed one first."""
        return ProblemPool(ProblemsConfig(), "train", self.seed).draw(0, self.prompts * (self.steps + 1))


@dataclass(slots=True, kw_only=True)
class UnitResult:
    """What one fresh process reports. Lists have one entry per timed GRPO step."""

    seconds: list[float]
    phases: list[dict[str, float]]  # seconds by name, see PHASES; they sum to `seconds`
    mean_completion_tokens: list[float]
    truncated_share: list[float]
    mean_reward: list[float]
    prompts_hash: str  # of the token ids of all prompts that were sampled from, in order
    timed_from: float  # seconds since the epoch
    timed_to: float
    notes: dict[str, Any]  # what is worth knowing about how it ran


def prompt_texts(problems: list[Problem]) -> list[str]:
    return [PLAIN_PROMPT.format(question=problem.question) for problem in problems]


class Stopwatch:
    """Seconds by phase, and facts about the completions, of every GRPO step."""

    def __init__(self):
        self.prompt_ids: list[list[int]] = []
        self._ends: list[float] = []
        self._wall: list[float] = []
        self._phases: list[dict[str, float]] = [defaultdict(float)]
        self._facts: list[dict[str, float]] = [{}]
        self._inside: list[float] = []  # one entry per open `timed` block: seconds of the blocks nested in it

    def mark(self) -> None:
        """Training starts, or a GRPO step has ended."""
        self._ends.append(time.perf_counter())
        self._wall.append(time.time())
        if len(self._ends) > 1:
            self._phases.append(defaultdict(float))
            self._facts.append({})

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to `phase`, less what nested calls give to theirs."""
        self._inside.append(0.0)
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self._phases[-1][phase] += spent - self._inside.pop()
        if self._inside:
            self._inside[-1] += spent

    def facts(self, *, tokens: float, truncated: float, reward: float) -> None:
        """Means over the completions of this step."""
        self._facts[-1] = {"tokens": tokens, "truncated": truncated, "reward": reward}

    def result(self, notes: dict[str, Any], rest: str) -> UnitResult:
        """Everything after the first step, which is the warm-up of the process. `rest` is the phase of untimed code."""
        timed = range(1, len(self._ends) - 1)
        seconds = [self._ends[i + 1] - self._ends[i] for i in timed]
        phases = [{name: self._phases[i].get(name, 0.0) for name in PHASES} for i in timed]
        for row, total in zip(phases, seconds, strict=True):
            row[rest] += total - sum(row.values())
        return UnitResult(
            seconds=seconds,
            phases=phases,
            mean_completion_tokens=[self._facts[i]["tokens"] for i in timed],
            truncated_share=[self._facts[i]["truncated"] for i in timed],
            mean_reward=[self._facts[i]["reward"] for i in timed],
            prompts_hash=hashlib.sha256(json.dumps(self.prompt_ids).encode()).hexdigest()[:16],
            timed_from=self._wall[1],
            timed_to=self._wall[-1],
            notes=notes,
        )


def choose_checkpoint(folder: Path) -> str:
    """The committed tiny base model when there is one, else a random one of the same shape, made in `folder`."""
    return str(COMMITTED) if (COMMITTED / "config.json").exists() else _random_checkpoint(folder)


def _random_checkpoint(folder: Path) -> str:
    from data.corpus import documents
    from models.checkpoint import save_model
    from models.config import TinyModelConfig
    from models.tiny import build_model, build_tokenizer

    shape = TinyModelConfig(vocab_size=1280)
    tokenizer = build_tokenizer((d.text for d in islice(documents("benchmark"), 2000)), shape)
    model, mtp = build_model(shape, tokenizer, seed=0)
    save_model(folder, model, tokenizer, mtp)
    return str(folder)

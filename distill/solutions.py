"""Problems' own written solutions as traces: GSM8K's, MATH's, and those of our word problems.

They are scored as a teacher's samples are: a solution whose answer the grader does not accept is no trace.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.chat import THINK_CLOSE, THINK_OPEN
from data.schemas import last_boxed
from distill.trace_filter import proxy_tokens
from rewards.pool import RewardPool
from rewards.reward import Verdict
from rollouts.judge import stop_judges
from sft.sampling import Prompt, Sampled

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's notes for a calculator: "3*4=<<3*4=12>>12"
_FINAL = "####"  # GSM8K's mark of the final answer


class SolutionSampler:
    """See `sft.sampling.Sampler`: one completion per prompt, the solution in `Problem.metadata`."""

    def __init__(self, rewards: RewardPool, judges: Mapping[str, Any]) -> None:
        """`rewards` and the judges that they ask end with the sampler."""
        self.rewards, self.judges = rewards, judges

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        written = {prompt.key: trace_of(str(prompt.problem.metadata.get("solution", ""))) for prompt in prompts}
        for prompt in prompts:
            if text := written[prompt.key]:
                self.rewards.submit(prompt.key, prompt.problem, [text])
        scores = self.rewards.collect()
        for key, text in written.items():
            verdict, detail = Verdict.ERROR, "the problem has no written solution with a final answer"
            if text:
                verdict, detail = scores[key][0].verdict, scores[key][0].detail
            trace = Sampled(text=text, n_tokens=proxy_tokens(text), truncated=False, verdict=verdict, detail=detail)
            yield key, [trace]

    def close(self) -> None:
        self.rewards.close()
        stop_judges(self.judges)


def trace_of(solution: str) -> str:
    """The work as reasoning, then its own final answer in a box; "" where the solution does not name one."""
    work, mark, answer = solution.rpartition(_FINAL)
    if not mark:
        work, answer = solution, last_boxed(solution) or ""
    work = _CALCULATOR.sub("", work).strip()
    if not work or not answer.strip():
        return ""
    return f"{THINK_OPEN}\n{work}\n{THINK_CLOSE}\n\nThe answer is \\boxed{{{answer.strip()}}}."

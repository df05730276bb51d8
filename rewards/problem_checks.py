"""Whether a stage's rewards fit its problems: looked at when the problems are open, before anything is sampled."""

from collections.abc import Sequence
from difflib import get_close_matches

from data.errors import StageError
from data.problem_pool import ProblemPool
from rewards.checkers import KNOWN_CHECKERS
from rewards.combine import nearest
from rewards.config import RewardSpec

ACCURACY = "rewards.accuracy:Accuracy"
_ALIKE = 0.75  # two names, one of which is taken for a slip of the other


def check_problems(specs: Sequence[RewardSpec], problems: ProblemPool) -> None:
    """Raises StageError for a domain that no problem has, and for a problem whose checker no grader knows."""
    domains = sorted(problems.domains())
    for number, spec in enumerate(specs):
        for domain in spec.domains or ():
            if domain not in domains:
                raise StageError(_no_domain(f"rewards[{number}].domains", domain, domains))
        for domain in spec.except_domains:  # without a like name it may be meant for other files
            if domain not in domains and get_close_matches(domain, domains, n=1, cutoff=_ALIKE):
                raise StageError(_no_domain(f"rewards[{number}].except_domains", domain, domains))
    for problem in problems.listed():
        if problem.checker not in KNOWN_CHECKERS and any(asks_checker(spec, problem.domain) for spec in specs):
            hint = nearest(problem.checker, KNOWN_CHECKERS)
            raise StageError(f"problem {problem.id}: there is no checker '{problem.checker}'.{hint}")


def asks_checker(spec: RewardSpec, domain: str | None) -> bool:
    """Whether a reward goes by the checker of problems of a domain. None: it may be any."""
    if spec.use != ACCURACY:  # others may know checkers of their own
        return False
    if domain is None:
        return spec.domains is None and not spec.except_domains
    return (spec.domains is None or domain in spec.domains) and domain not in spec.except_domains


def _no_domain(key: str, domain: str, domains: Sequence[str]) -> str:
    return f"{key}: no problem has domain '{domain}'.{nearest(domain, domains)}"

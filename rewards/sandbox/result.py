"""What a run was: verdicts and results."""

from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """The usual verdicts of judges. IE is never the program's doing and never becomes a reward."""

    AC = "AC"  # accepted
    WA = "WA"  # wrong answer
    TLE = "TLE"  # time limit exceeded
    MLE = "MLE"  # memory limit exceeded
    OLE = "OLE"  # output limit exceeded
    RE = "RE"  # runtime error: exit code, signal, result that cannot be read
    CE = "CE"  # compile error
    IE = "IE"  # internal error: the judge failed


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run. `failure` is None when the program ended by itself with exit code 0, within all limits."""

    failure: Verdict | None
    detail: str = ""  # one sentence for people
    stdout: bytes = b""
    stderr: bytes = b""  # its end
    exit_code: int | None = None
    signal: int | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_mb: float = 0.0  # resident, with the interpreter


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """One test of one program."""

    __test__ = False  # pytest: not a test case

    verdict: Verdict
    detail: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All tests of one program, in their order; fewer than `total` when the judge stopped at the first failure."""

    tests: tuple[TestResult, ...]
    total: int
    compile_detail: str = field(default="")

    @property
    def verdict(self) -> Verdict:
        """AC when every test is; IE when any is, for then the others prove nothing; else that of the first failure."""
        verdicts = [test.verdict for test in self.tests]
        if Verdict.IE in verdicts:
            return Verdict.IE
        failed = [verdict for verdict in verdicts if verdict is not Verdict.AC]
        if failed:
            return failed[0]
        return Verdict.AC if self.tests and len(self.tests) == self.total else Verdict.IE

    @property
    def passed(self) -> int:
        return sum(test.verdict is Verdict.AC for test in self.tests)

    def value(self, all_or_nothing: bool = True) -> float | None:
        """Share of tests passed, or 1.0 and 0.0; None on an internal error, which is no number."""
        if self.verdict is Verdict.IE:
            return None
        return float(self.verdict is Verdict.AC) if all_or_nothing else self.passed / self.total

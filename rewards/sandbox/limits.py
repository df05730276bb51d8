"""What a program may use. Every limit is enforced, or the sandbox refuses to run the program."""

from dataclasses import dataclass

MAX_CPU_S = 1e6
MAX_MEMORY_MB = 1 << 24  # with more the numbers of the kernel overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Per run. Sizes in MiB or KiB, times in seconds."""

    cpu_s: float = 5.0  # judges: over it is TLE
    wall_s: float | None = None  # backstop; None is max(3 x cpu_s, cpu_s + 5)
    memory_mb: int = 512  # beyond what the interpreter and its warm imports take
    threads: int = 64
    file_mb: int = 16  # one file
    space_mb: int = 64  # all files together
    files: int = 1024  # all files and folders; 64 in tier landlock
    open_files: int = 64
    stdout_kb: int = 1024  # over it is OLE
    stderr_kb: int = 16  # the end is kept
    stack_mb: int = 64
    source_kb: int = 256  # longer programs are CE
    stdin_mb: int = 32

    def __post_init__(self) -> None:
        if not (0 < self.cpu_s <= MAX_CPU_S and 16 <= self.memory_mb <= MAX_MEMORY_MB and self.threads >= 1):
            raise ValueError(
                f"Limits: cpu_s must be over 0 and at most {MAX_CPU_S:g}, memory_mb from 16 to {MAX_MEMORY_MB} and "
                f"threads at least 1, got cpu_s={self.cpu_s}, memory_mb={self.memory_mb}, threads={self.threads}."
            )

    @property
    def wall(self) -> float:
        return max(3 * self.cpu_s, self.cpu_s + 5) if self.wall_s is None else self.wall_s


COMPILE_LIMITS = Limits(
    cpu_s=30.0, wall_s=90.0, memory_mb=1024, threads=16, file_mb=64, space_mb=256, files=256, stdout_kb=64
)

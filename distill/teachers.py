"""All teachers of a stage, each a process of its own, asked at the same time. Free of torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.actors import kill, spawn, wait
from distill.config import KLConfig, TeacherProcessConfig
from distill.taught import Told
from sft.batch import Example
from training.stage import StageError

TEACHER = "teacher"  # the name of the only one, where there is one
_CLASSES = {"transformers": "distill.teacher_process:Teacher", "vllm": "distill.teacher_process:ServedTeacher"}


class Teachers:
    def __init__(
        self, folders: Mapping[str, Path], config: TeacherProcessConfig, kl: KLConfig, stage: str, inputs: str = ""
    ):
        """folders: name -> checkpoint. inputs: what stands before a name among the inputs of the stage. Nothing is
        waited for."""
        self.config, self.stage = config, stage
        self.handles: dict[str, Any] = {
            name: spawn(
                _CLASSES[config.engine],
                str(folder),
                config,
                kl,
                threads=config.threads,
                role=f"{inputs}{name}",
                shared_gpus=0 if config.device == "cpu" else config.tensor_parallel,
            )
            for name, folder in folders.items()
        }

    def check_tokenizers(self, student: Path) -> None:
        """Raises StageError when a teacher speaks of other tokens than the student."""
        asked = {name: handle.differs_from.remote(str(student)) for name, handle in self.handles.items()}
        for name, answer in asked.items():
            if fault := self._wait(answer, f"starting the teacher {name}"):
                raise StageError(f"{self.stage}: {fault}")

    def context(self) -> float:
        """Tokens of a sample that all of them can read."""
        asked = {name: handle.context.remote() for name, handle in self.handles.items()}
        return min(self._wait(answer, f"starting the teacher {name}") for name, answer in asked.items())

    def begin(self, asked: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
        """Ask each teacher about its examples; `end` has the answers."""
        return {name: self.handles[name].tell.remote(examples) for name, examples in asked.items() if examples}

    def end(self, begun: Mapping[str, Any]) -> dict[str, list[Told]]:
        return {name: self._wait(answer, f"the teacher {name}") for name, answer in begun.items()}

    def close(self) -> None:
        for handle in self.handles.values():
            kill(handle)

    def _wait(self, answer: Any, phase: str) -> Any:
        return wait(answer, phase=f"{self.stage}: {phase}", deadline_s=self.config.deadline_s)

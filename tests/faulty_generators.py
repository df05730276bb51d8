"""Generators with one fault or one limit each, for tests of what must notice it."""

from rollouts.transformers_generator import TransformersGenerator


class LosesATensor(TransformersGenerator):
    """From the second update on, one tensor stays as it was."""

    updates = 0

    def _start_update(self):
        self.updates += 1

    def _copy(self, tensors):
        lost = "model.layers.0.self_attn.o_proj.weight" if self.updates > 1 else ""
        super()._copy((name, tensor) for name, tensor in tensors if name != lost)


class ShortContext(TransformersGenerator):
    """Takes 48 tokens, whatever the model does."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.max_length = 48


class Sleepy(TransformersGenerator):
    """Says whether it was put to sleep."""

    asleep = False

    def sleep(self) -> None:
        self.asleep = True

    def wake(self) -> None:
        pass

    def wake_cache(self) -> None:
        self.asleep = False

    def is_asleep(self) -> bool:
        return self.asleep

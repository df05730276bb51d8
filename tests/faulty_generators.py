"""Generators with one fault each, for tests of what must notice it."""

from rollouts.transformers_generator import TransformersGenerator


class LosesATensor(TransformersGenerator):
    """From the second update on, one tensor stays as it was."""

    updates = 0

    def _start_update(self):
        self.updates += 1

    def _copy(self, tensors):
        lost = "model.layers.0.self_attn.o_proj.weight" if self.updates > 1 else ""
        super()._copy((name, tensor) for name, tensor in tensors if name != lost)

"""How long sampling takes: a batch of completions of different lengths, drained by replicas with so many slots."""

from planning.lengths import Lengths
from planning.speed import Speed
from planning.workload import Sampling
from rollouts.config import GeneratorConfig


def round_s(sampling: Sampling, speed: Speed, slots: float, completions: float) -> tuple[float, float]:
    """(prefill, decode) seconds of one round in one replica with `completions` of its own and `slots` at a time.

    All slots are busy until the last completions have begun; these then run out, longest last. Long ones are begun
    first where lengths can be told (rl.lengths), so the last ones are taken as a fresh sample.
    """
    slots = max(1.0, min(slots, completions))
    generator, prompts = sampling.generator, completions / sampling.group
    prefill = speed.prefill_s(sampling.model, prompts * sampling.prompt, sampling.prompt / 2, generator)
    lengths, waiting = sampling.lengths, completions - slots
    seen = sampling.prompt + lengths.mean_square / (2 * lengths.mean)
    busy = 0.0
    if waiting > 0:
        each = speed.decode_s(sampling.model, slots, seen, generator, sampling.in_trainer)
        busy = waiting * lengths.mean / slots * each
    return prefill, busy + drain_s(sampling, speed, slots)


def drain_s(sampling: Sampling, speed: Speed, slots: float) -> float:
    """Seconds until `slots` completions that began together have all ended."""
    ends = _ends(sampling.lengths, slots)
    seconds, previous = 0.0, 0.0
    for index, end in enumerate(ends):
        if end > previous:
            running = slots * (1 - index / len(ends))
            seen = sampling.prompt + (previous + end) / 2
            generator: GeneratorConfig = sampling.generator
            each = speed.decode_s(sampling.model, running, seen, generator, sampling.in_trainer)
            seconds += (end - previous) * each
            previous = end
    return seconds


def _ends(lengths: Lengths, count: float) -> list[float]:
    """Lengths at which completions end, rising; the last is that of the longest of `count`."""
    ends = lengths.sample()
    return [*(min(end, lengths.longest_of(count)) for end in ends[:-1]), lengths.longest_of(count)]

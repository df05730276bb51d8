"""The distill stage: a dense student learns from the curated set (DeepSeek-R1, section 4; B.4.3).

By SFT on its text, as the paper; or by the teacher's probabilities at every token of it, where the recipe has `kl`:
asked of the input `teacher` batch by batch, or read from a dataset of the stage teacher_logprobs.
"""

from collections.abc import Sequence
from pathlib import Path

from cluster.actors import start_ray
from distill.config import DistillConfig, KLConfig
from distill.stored import StoredTold, has_logprobs, read_stored
from distill.taught import Taught, TaughtRow, pack_taught
from distill.teachers import TEACHER, Teachers
from sft.config import SFTConfig
from sft.loop import train_by
from sft.train import Epochs, Sample, fine_tune, load_samples, target_tokens, write_sample_stats
from training.group import spawn_trainer
from training.stage import StageContext, StageError


def run(config: DistillConfig, context: StageContext) -> None:
    student, dataset = context.inputs["student"], context.inputs["dataset"]
    if config.kl is not None:
        learn_probabilities(config, config.kl, context, student, dataset)
        return
    if TEACHER in context.inputs:
        raise StageError(
            f"{context.name}: the input teacher is not asked while kl is not set; set kl: {{}}, or drop it"
        )
    if has_logprobs(dataset):
        raise StageError(
            f"{context.name}: {dataset} has a row for every example of a conversation, with a teacher's logprobs; set "
            "kl to learn them, or give the dataset that it was made of"
        )
    # The students are dense: no MTP module to train, no experts to balance.
    shared = DistillConfig.model_fields.keys() & SFTConfig.model_fields.keys()
    supervised = SFTConfig(**{name: getattr(config, name) for name in shared}, mtp_weight=0.0)
    fine_tune(supervised, context, checkpoint=student, dataset=dataset, token_budget=config.token_budget)


def learn_probabilities(
    config: DistillConfig, kl: KLConfig, context: StageContext, student: Path, dataset: Path
) -> None:
    stored = has_logprobs(dataset)
    if stored == (TEACHER in context.inputs):
        says = "has a teacher's logprobs already; drop the input teacher" if stored else (
            "has no logprobs of a teacher: give the input teacher, or a dataset of the stage teacher_logprobs"
        )  # fmt: skip
        raise StageError(f"{context.name}: kl is set, and {dataset} {says}")
    start_ray()
    if stored:
        samples, told, dropped = read_stored(config.template, kl, student, dataset, context.name)
        learn(config, kl, context, student, samples, dropped, told)
        return
    teachers = Teachers({TEACHER: context.inputs[TEACHER]}, config.teacher, kl, context.name)
    try:
        teachers.check_tokenizers(student)
        samples, dropped = load_samples(config.template, student, dataset, teachers.context())
        learn(config, kl, context, student, samples, dropped, teachers)
    finally:
        teachers.close()


def learn(
    config: DistillConfig,
    kl: KLConfig,
    context: StageContext,
    student: Path,
    samples: Sequence[Sample],
    dropped: int,
    source: Teachers | StoredTold,
) -> None:
    """source: who is asked about each batch, or what was said about the examples of each sample."""
    epochs = Epochs([target_tokens(sample) for sample in samples], config.batch_size, config.epochs, context.seed)
    steps = epochs.steps_within(config.token_budget)
    write_sample_stats(context.output, samples, dropped, epochs, steps)

    def batches(step: int) -> list[TaughtRow]:
        chosen = epochs.samples(step)
        examples = [example for index in chosen for example in samples[index]]
        if isinstance(source, Teachers):
            said = source.end(source.begin({TEACHER: examples}))[TEACHER]
        else:
            said = [told for index in chosen for told in source[index]]
        taught = [Taught(example=e, told={TEACHER: (told, 1.0)}) for e, told in zip(examples, said, strict=True)]
        return pack_taught(taught, config.trainer.row_tokens)

    folder = str(context.inputs.get(TEACHER, ""))  # its head is asked for only where it is an input
    trainer = spawn_trainer(
        "distill.trainer:DistillTrainer", config.trainer, str(student), config.optimizer,
        row_tokens=config.trainer.row_tokens, seed=context.seed, kl=kl, teachers={TEACHER: folder},
    )  # fmt: skip
    train_by(trainer, trainer.step.remote, batches, steps, config, context, loss="loss/kl")

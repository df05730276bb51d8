"""The workload of each kind of stage, from its config, its models and what is assumed of text that is not there yet."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from data.config import JUDGE_ROLES
from planning.architecture import Architecture
from planning.assumptions import Assumptions
from planning.lengths import Lengths
from planning.memory import engine_share, generator_weights, weight_bytes
from planning.workload import DatasetSize, Loaded, Part, Reading, Request, Sampling, Training, Workload
from rewards.combine import check_rewards

_LONGEST_ROW = 32_768  # tokens of the longest row of a data set that is not here: R1's context in SFT (B.4.2)
_TINY_DOCUMENT = 40  # tokens (sft.config: documents_per_step)


def workload(request: Request, assumed: Assumptions) -> Workload:
    """What the stage computes. Stages that use no model have no parts."""
    make = _KINDS.get(request.kind)
    return make(request, assumed) if make else Workload()


# --- lengths and rows ---


def prompt_tokens(model: Architecture, assumed: Assumptions) -> float:
    """As many as `--assume` says, up to half of the context; where it says nothing, a sixteenth of it at most, since
    tiny models have tiny prompts."""
    if not model.context:
        return assumed.prompt_tokens
    told = "prompt_tokens" in assumed.model_fields_set
    return min(assumed.prompt_tokens, model.context / (2 if told else 16))


def completion_lengths(request: Request, model: Architecture, longest: int, assumed: Assumptions) -> Lengths:
    if model.context:
        longest = max(1, min(longest, int(model.context - prompt_tokens(model, assumed))))
    mean = request.measured_length or assumed.completion_share * longest
    return Lengths(min(mean, longest), longest, assumed.length_sigma)


def _dataset(request: Request, model: Architecture, assumed: Assumptions) -> DatasetSize:
    if request.dataset is not None and request.dataset.tokens:
        return request.dataset
    rows = request.dataset.rows if request.dataset is not None else assumed.dataset_rows
    tokens = min(assumed.row_tokens_mean, model.context / 4) if model.context else assumed.row_tokens_mean
    longest = max(tokens, min(model.context or _LONGEST_ROW, _LONGEST_ROW))
    return DatasetSize(rows=rows, tokens=tokens, longest=longest, known=False)


def _rows(size: DatasetSize, model: Architecture, assumed: Assumptions) -> tuple[float, Lengths]:
    """(prompt tokens, lengths of what is learnt) of a data set's rows."""
    prompt = min(prompt_tokens(model, assumed), size.tokens / 2)
    learnt = size.tokens - prompt
    longest = min(size.longest, model.context or size.longest)
    return prompt, Lengths(learnt, max(longest - prompt, learnt), assumed.length_sigma)


def _length_assumptions(request: Request) -> tuple[str, ...]:
    return ("length_sigma", "prompt_tokens") + (() if request.measured_length else ("completion_share",))


# --- kinds ---


def _grpo(request: Request, assumed: Assumptions) -> Workload:
    config, model = request.config, request.models["policy"]
    objective, prompt = config.objective.resolve(), prompt_tokens(model, assumed)
    questions = config.questions_per_step * config.mini_batches
    completions = questions * config.group_size
    parts: list[Part] = []
    for steps, longest in _length_segments(config):
        lengths = completion_lengths(request, model, longest, assumed)
        rounds = steps / config.mini_batches
        common = {"prompt": prompt, "lengths": lengths}
        parts.append(_sampled("policy", model, config, rounds, completions, config.group_size, prompt, lengths))
        # In the first rollout batch after a refresh old and reference logprobs are the same pass.
        shared = min(1.0, config.mini_batches / config.reference_every) if objective.needs_reference else 0
        read = {"model": model, "by_trainer": True, "sequences": completions, **common}
        parts.append(Reading(role="old logprobs", rounds=rounds, **read))
        if objective.needs_reference:
            parts.append(Reading(role="reference", rounds=rounds * (1 - shared), **read))
        parts += _learned_rewards(request, rounds, completions, common)
        parts += _judges(request, rounds, completions, lengths, assumed)
        parts.append(
            Training(
                model=model,
                steps=steps,
                sequences=completions / config.mini_batches,
                head_products=3 if objective.made_in_chunks else 4,
                entropy=True,
                mtp=config.mtp_weight > 0 and model.mtp_layers > 0,
                **common,
            )
        )
    return Workload(
        parts=parts,
        trainer=config.trainer,
        optimizer=config.optimizer,
        reference=objective.needs_reference,
        syncs=config.rollouts,
        in_trainer=config.sample_in_trainer,
        generator=config.generator,
        loaded=_loaded(request),
        taken_for_granted=_length_assumptions(request),
    )


def _length_segments(config: Any) -> list[tuple[int, int]]:
    """(optimizer steps, longest completion), as max_new_tokens_from says; changes count from whole rollout batches."""
    every, starts = config.mini_batches, [0]
    starts += [-(-start // every) * every for start in sorted(config.max_new_tokens_from) if start > 0]
    ends = [*starts[1:], config.steps]
    return [
        (end - start, config.max_new_tokens_at(start)) for start, end in zip(starts, ends, strict=True) if end > start
    ]


def _sampled(role, model, config, rounds, completions, group, prompt, lengths) -> Sampling:
    return Sampling(
        role=role,
        model=model,
        generator=config.generator,
        in_trainer=getattr(config, "sample_in_trainer", False),
        rounds=rounds,
        completions=completions,
        group=group,
        prompt=prompt,
        lengths=lengths,
    )


def _learned_rewards(request: Request, rounds: float, completions: float, common: dict[str, Any]) -> list[Reading]:
    """Reward models read general completions alone, once these are drawn."""
    config = request.config
    general = config.problems.instruction_share * (1 - config.general_from_share)
    return [
        Reading(
            role=role,
            model=request.models[role],
            by_trainer=False,
            rounds=rounds,
            sequences=completions * general / 2 if general else completions,
            predicts=False,
            **common,
        )
        for role in ("helpful_rm", "safety_rm")
        if role in request.models
    ]


def _loaded(request: Request) -> tuple[Loaded, ...]:
    """The models that judge or score for the rewards of a stage."""
    found: dict[str, Loaded] = {}
    judges, specs = getattr(request.config, "judges", None), getattr(request.config, "rewards", ())
    for role, model in request.models.items():
        if role in JUDGE_ROLES and judges is not None:
            devices = judges.generator.replicas * judges.generator.tensor_parallel
            held = generator_weights(model, judges.generator)
            found[role] = Loaded(role=role, weights=held, devices=devices, share=engine_share(judges.generator))
    options: Any
    for reward, options in check_rewards(specs) if specs else ():
        role: Any = getattr(reward, "input_role", None)
        if role in request.models and role not in found:
            held = weight_bytes(options) * request.models[role].main_parameters / options.tensor_parallel
            ways = options.tensor_parallel
            found[role] = Loaded(role=role, weights=held, devices=ways, share=engine_share(options))
    return tuple(found.values())


def _judges(request: Request, rounds: float, completions: float, read: Lengths, assumed: Assumptions) -> list[Sampling]:
    """One judgement per completion that a judge of the stage is asked about, which it reads as its prompt."""
    judges = getattr(request.config, "judges", None)
    specs = getattr(request.config, "rewards", ())
    completions *= assumed.judged_share if any(spec.domains for spec in specs) else 1
    return [
        Sampling(
            role=role,
            model=model,
            generator=judges.generator,
            in_trainer=False,
            rounds=rounds,
            completions=completions,
            group=1,
            prompt=prompt_tokens(model, assumed) + read.mean,
            lengths=Lengths(
                min(assumed.answer_tokens, judges.rollout.max_new_tokens / 2), judges.rollout.max_new_tokens, 0.5
            ),
        )
        for role, model in request.models.items()
        if role in JUDGE_ROLES and judges is not None
    ]


def _fine_tuning(request: Request, assumed: Assumptions) -> Workload:
    """sft, distill and reward_model."""
    config, model = request.config, request.models.get("student") or request.models["policy"]
    size = _dataset(request, model, assumed)
    is_reward = request.kind == "reward_model"
    if is_reward:
        size = replace(size, longest=min(size.longest, config.max_length))
    prompt, lengths = _rows(size, model, assumed)
    rows = size.rows * (1 - config.held_out_share if is_reward else 1)
    pairs = 2 if is_reward and config.objective == "helpful" else 1
    steps = max(1.0, rows / config.batch_size) * config.epochs
    if budget := getattr(config, "token_budget", None):
        steps = min(steps, budget / (config.batch_size * lengths.mean))
    common = {"prompt": prompt, "lengths": lengths}
    parts: list[Part] = [
        Training(
            model=model,
            steps=steps,
            sequences=config.batch_size * pairs,
            mtp=getattr(config, "mtp_weight", 0) > 0 and model.mtp_layers > 0,
            with_head=not is_reward,
            **common,
        )
    ]
    if teacher := request.models.get("teacher"):
        parts.append(
            Reading(
                role="teacher", model=teacher, by_trainer=False, rounds=steps, sequences=config.batch_size, **common
            )
        )
    return Workload(
        parts=parts,
        trainer=config.trainer,
        optimizer=config.optimizer,
        taken_for_granted=() if size.known else _dataset_assumptions(request),
    )


def _dataset_assumptions(request: Request) -> tuple[str, ...]:
    if request.dataset is None:
        return ("dataset_rows", "row_tokens_mean")
    return () if request.dataset.tokens else ("row_tokens_mean",)


def _pretrain(request: Request, assumed: Assumptions) -> Workload:
    config, model = request.config, request.models["policy"]
    part = Training(
        model=model, steps=config.steps, sequences=config.documents_per_step, prompt=1,
        lengths=Lengths(_TINY_DOCUMENT - 1, model.context, 0.5), mtp=config.mtp_weight > 0 and model.mtp_layers > 0,
    )  # fmt: skip
    return Workload(parts=[part], trainer=config.trainer, optimizer=config.optimizer)


def _on_policy(request: Request, assumed: Assumptions) -> Workload:
    config, model = request.config, request.models["student"]
    prompt = prompt_tokens(model, assumed)
    lengths = completion_lengths(request, model, config.rollout.max_new_tokens, assumed)
    completions = config.questions_per_step * config.samples_per_question
    common = {"prompt": prompt, "lengths": lengths}
    steps = config.steps
    parts: list[Part] = [
        _sampled("student", model, config, steps, completions, config.samples_per_question, prompt, lengths)
    ]
    parts += [
        Reading(role=role, model=teacher, by_trainer=False, rounds=steps, sequences=completions, **common)
        for role, teacher in request.models.items()
        if role.startswith("teachers.")
    ]
    parts.append(Training(model=model, steps=steps, sequences=completions, **common))
    return Workload(
        parts=parts,
        trainer=config.trainer,
        optimizer=config.optimizer,
        syncs=steps,
        in_trainer=config.sample_in_trainer,
        generator=config.generator,
        taken_for_granted=_length_assumptions(request),
    )


def _teacher_logprobs(request: Request, assumed: Assumptions) -> Workload:
    model = request.models["teacher"]
    size = _dataset(request, model, assumed)
    prompt, lengths = _rows(size, model, assumed)
    part = Reading(
        role="teacher", model=model, by_trainer=False, rounds=1, sequences=size.rows, prompt=prompt, lengths=lengths
    )
    return Workload(parts=[part], leaves=size, taken_for_granted=() if size.known else _dataset_assumptions(request))


def _curation(request: Request, assumed: Assumptions) -> Workload:
    """cold_start_data, rejection_sampling, traces and GRM data: sample chunk by chunk, keep what passes."""
    config = request.config
    items = getattr(config, "prompts", 0) or config.items
    samples = getattr(config, "samples_per_prompt", 0) or config.samples_per_item
    model = request.models.get("policy")
    if model is None:  # rows of one's own, solutions, or a server that is not ours
        written = getattr(config, "solutions", False)
        return Workload(leaves=DatasetSize(rows=items, tokens=0, longest=0, known=False) if written else None)
    prompt = prompt_tokens(model, assumed)
    lengths = completion_lengths(request, model, config.rollout.max_new_tokens, assumed)
    chunk = min(config.chunk_prompts, items)
    part = _sampled("policy", model, config, items / chunk, chunk * samples, samples, prompt, lengths)
    return Workload(
        parts=[part, *_judges(request, items / chunk, chunk * samples, lengths, assumed)],
        generator=config.generator,
        loaded=_loaded(request),
        leaves=_kept(request, items, samples, prompt, lengths, assumed),
        taken_for_granted=(*_length_assumptions(request), *(() if config.max_rows else ("kept_share",))),
    )


def _kept(
    request: Request, items: int, samples: int, prompt: float, lengths: Lengths, assumed: Assumptions
) -> DatasetSize:
    config = request.config
    most = getattr(getattr(config, "filters", None), "max_per_problem", None) or samples
    rows = items * min(most, samples * assumed.kept_share)
    rows /= 1 - getattr(config, "general_share", 0)
    rows = min(rows, config.max_rows or rows)
    return DatasetSize(rows=rows, tokens=prompt + lengths.mean, longest=prompt + lengths.longest, known=False)


def _preferences(request: Request, assumed: Assumptions) -> Workload:
    config = request.config
    policies = {role: model for role, model in request.models.items() if role.startswith("policies")}
    if not policies:
        return Workload()
    responses, parts = config.responses_per_prompt, list[Part]()
    tokens, longest, per_prompt = 0.0, 0.0, responses * len(policies)
    for role, model in policies.items():
        lengths = completion_lengths(request, model, config.rollout.max_new_tokens, assumed)
        if request.measured_length is None:
            lengths = Lengths(min(assumed.answer_tokens, lengths.mean), lengths.longest, assumed.length_sigma)
        chunk = min(config.chunk_prompts, config.prompts)
        prompt = prompt_tokens(model, assumed)
        parts.append(
            _sampled(role, model, config, config.prompts / chunk, chunk * responses, responses, prompt, lengths)
        )
        tokens, longest = prompt + lengths.mean, prompt + lengths.longest
    units = config.pairs_per_prompt if config.objective == "helpful" else per_prompt
    if judge := request.models.get("judge"):
        most = config.judge.rollout.max_new_tokens
        parts.append(
            Sampling(
                role="judge", model=judge, generator=config.judge.generator, in_trainer=False, rounds=1,
                completions=config.prompts * units * config.queries, group=1,
                prompt=prompt_tokens(judge, assumed) + tokens * (2 if config.objective == "helpful" else 1),
                lengths=Lengths(min(assumed.answer_tokens, most / 2), most, 0.5),
            )
        )  # fmt: skip
    rows = config.prompts * units * (assumed.kept_share if config.objective == "helpful" else 1)
    return Workload(
        parts=parts,
        generator=config.generator,
        leaves=DatasetSize(rows=rows, tokens=tokens, longest=longest, known=False),
        taken_for_granted=("answer_tokens", "kept_share", "prompt_tokens"),
    )


def _evaluation(request: Request, assumed: Assumptions) -> Workload:
    config, parts = request.config, list[Part]()
    for role, model in request.models.items():
        label = role.partition(".")[2]
        counts = ((config.num_problems, config.samples_of(label)),
                  (config.general_problems, config.general_samples_of(label)))  # fmt: skip
        lengths = completion_lengths(request, model, config.rollout.max_new_tokens, assumed)
        prompt = prompt_tokens(model, assumed)
        for problems, samples in counts:
            if problems:
                parts.append(_sampled(role, model, config, 1, problems * samples, samples, prompt, lengths))
    return Workload(parts=parts, generator=config.generator, taken_for_granted=_length_assumptions(request))


_KINDS: dict[str, Callable[[Request, Assumptions], Workload]] = {
    "grpo": _grpo,
    "sft": _fine_tuning,
    "distill": _fine_tuning,
    "reward_model": _fine_tuning,
    "pretrain": _pretrain,
    "on_policy_distill": _on_policy,
    "teacher_logprobs": _teacher_logprobs,
    "cold_start_data": _curation,
    "rejection_sampling": _curation,
    "traces": _curation,
    "grm_rft_data": _curation,
    "grm_meta_data": _curation,
    "preference_data": _preferences,
    "evaluate": _evaluation,
}

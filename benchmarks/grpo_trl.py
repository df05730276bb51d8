"""TRL's half: GRPOTrainer with transformers generation, in its best reasonable CPU settings.

One generation batch of prompts x group_size completions per GRPO step, then `updates` optimizer steps on it, each on
one micro-batch (no gradient accumulation): per_device_train_batch_size = mini-batch, steps_per_generation = updates.
TRL then computes old logprobs too, because the weights move between generation and the last update.
"""

import os
import warnings
from typing import Any

from grpo_workload import REWARDS, Stopwatch, UnitResult, Workload, prompt_texts


def run(workload: Workload, scratch: str) -> UnitResult:
    """Train on one untimed and `workload.steps` timed GRPO steps."""
    import torch

    torch.set_num_threads(workload.threads)
    warnings.filterwarnings("ignore")
    import datasets
    import transformers
    from transformers import AutoTokenizer

    from rewards.combine import build_reward

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(workload.checkpoint, padding_side="left")
    problems = workload.problems()
    reward = build_reward(REWARDS)
    stopwatch = Stopwatch()

    def score(prompts, completions, row, **_):
        scores = reward.score_batch([problems[r] for r in row], completions)
        return [score.value for score in scores]  # None, for a failed grader, is what TRL expects too

    trainer = _timed_trainer(stopwatch, workload)(
        model=workload.checkpoint,
        reward_funcs=score,
        args=_config(workload, scratch),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompt_texts(problems), "row": range(len(problems))}),
        processing_class=tokenizer,
    )
    trainer.add_callback(_marks(stopwatch, workload.updates))
    try:
        trainer.train()
    finally:
        reward.close()
    model: Any = trainer.model
    return stopwatch.result(
        {
            "attention": model.config._attn_implementation,
            "experts": model.config._experts_implementation,
            "dtype": str(model.dtype).removeprefix("torch."),
            "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
            "threads": torch.get_num_threads(),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        },
        rest="update",  # forward, backward, optimizer, and the trainer's own loop
    )


def _config(workload: Workload, scratch: str):
    from trl.trainer.grpo_config import GRPOConfig

    return GRPOConfig(
        output_dir=scratch,
        per_device_train_batch_size=workload.mini_batch,
        gradient_accumulation_steps=1,
        steps_per_generation=workload.updates,
        num_iterations=1,
        num_generations=workload.group_size,
        max_steps=workload.updates * (workload.steps + 1),
        max_completion_length=workload.max_new_tokens,
        temperature=workload.temperature,
        beta=workload.kl_coef,
        epsilon=workload.clip,
        epsilon_high=workload.clip,
        loss_type="grpo",  # mean over sequences of token means, as ours
        learning_rate=workload.lr,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        gradient_checkpointing=False,  # TRL's default recomputes activations, to save memory that is not short here
        bf16=False,  # float32, as ours
        use_vllm=False,
        use_cpu=True,
        seed=workload.seed,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32", "experts_implementation": workload.trl_experts},
    )


def _timed_trainer(stopwatch: Stopwatch, workload: Workload):
    """GRPOTrainer with a stopwatch around its phases; every override only calls its parent."""
    import torch
    from trl.trainer.grpo_trainer import GRPOTrainer

    class TimedTrainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            with stopwatch.timed("other"):  # padding, advantages and bookkeeping around the phases below
                output = super()._generate_and_score_completions(inputs)
            metrics = self._metrics["train"]
            stopwatch.facts(
                tokens=metrics["completions/mean_length"][-1],
                truncated=metrics["completions/clipped_ratio"][-1],
                reward=metrics["reward"][-1],
            )
            return output

        def _generate(self, prompts):
            with stopwatch.timed("generate"):
                generated = super()._generate(prompts)
            stopwatch.prompt_ids += generated[0][:: workload.group_size]
            return generated

        def _calculate_rewards(self, *args, **kwargs):
            with stopwatch.timed("reward"):
                return super()._calculate_rewards(*args, **kwargs)

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            if torch.is_grad_enabled():  # the update's own forward pass
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)
            with stopwatch.timed("logprobs"):
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    return TimedTrainer


def _marks(stopwatch: Stopwatch, updates: int):
    from transformers import TrainerCallback

    class Marks(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            stopwatch.mark()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % updates == 0:
                stopwatch.mark()

    return Marks()

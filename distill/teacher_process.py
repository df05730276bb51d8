"""A teacher in a process of its own: it reads samples and says what it would have said at every place."""

from collections.abc import Sequence

import numpy as np
import torch

from data.packing import best_fit
from distill.config import KLConfig, TeacherProcessConfig
from distill.taught import Told, target_places
from models.attention import PackedLayout
from models.checkpoint import context_length, load_model, load_tokenizer, resolve_device
from rollouts.vllm_generator import VLLMGenerator
from sft.batch import Example
from training.head_chunks import CHUNK_ELEMENTS


class Teacher:
    """With transformers' model: final hidden states, or the most likely tokens."""

    def __init__(self, folder: str, config: TeacherProcessConfig, kl: KLConfig):
        self.folder, self.row_tokens, self.kl = folder, config.row_tokens, kl
        self.device = resolve_device(config.device)
        self.model = load_model(folder, dtype=getattr(torch, config.dtype), device=self.device).eval()
        tokens = shared_tokens(folder, len(self.model.lm_head.weight))
        self.head_VD = self.model.lm_head.weight[:tokens].detach().float() if kl.top_k is not None else None

    def differs_from(self, student: str) -> str | None:
        return tokenizers_differ(self.folder, student)

    def context(self) -> float:
        """Tokens of a sample that it can read."""
        return context_length(self.folder)

    @torch.no_grad()
    def tell(self, examples: Sequence[Example]) -> list[Told]:
        """About the targets of each example (distill.taught.target_places)."""
        said: list[Told] = [Told()] * len(examples)
        for members in best_fit([len(example.token_ids) for example in examples], self.row_tokens):
            for member, told in zip(members, self._row([examples[m] for m in members]), strict=True):
                said[member] = told
        return said

    def _row(self, examples: Sequence[Example]) -> list[Told]:
        lengths = [len(example.token_ids) for example in examples]
        positions = np.concatenate([np.arange(length) for length in lengths])
        ids = np.concatenate([example.token_ids for example in examples]).astype(np.int64)
        output = self.model.model(
            input_ids=torch.from_numpy(ids)[None].to(self.device),
            position_ids=torch.from_numpy(positions)[None].to(self.device),
            use_cache=False,
            layout=PackedLayout.from_lengths(lengths, self.device),
        )
        hidden_TD, start, said = output.last_hidden_state[0], 0, []
        for example, length in zip(examples, lengths, strict=True):
            said.append(
                self._told(hidden_TD[start + target_places(example) - 1])
            )  # each is predicted one place earlier
            start += length
        return said

    def _told(self, hidden_CD: torch.Tensor) -> Told:
        if self.head_VD is None:
            return Told(hidden=hidden_CD.float().cpu().numpy())
        rows = max(1, CHUNK_ELEMENTS.get(self.device.type, CHUNK_ELEMENTS["cpu"]) // len(self.head_VD))
        tops = [self._top(part_CD.float() @ self.head_VD.t()) for part_CD in hidden_CD.split(rows)]
        ids, logprobs = (torch.cat(part).cpu().numpy() for part in zip(*tops, strict=True))
        return Told(ids=ids, logprobs=logprobs)

    def _top(self, logits_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.kl.top_k is not None
        logprobs_CV = torch.log_softmax(logits_CV / self.kl.temperature, dim=-1)
        top = logprobs_CV.topk(min(self.kl.top_k, logprobs_CV.shape[1]))
        return top.indices.int(), top.values


class ServedTeacher:
    """With vLLM, which computes prompts' logprobs: the most likely tokens, at temperature 1."""

    def __init__(self, folder: str, config: TeacherProcessConfig, kl: KLConfig):
        assert kl.top_k is not None  # see distill.config.check_teacher
        self.folder, self.top_k = folder, kl.top_k
        arguments = {"max_logprobs": kl.top_k} | config.engine_args
        self.generator = VLLMGenerator(
            folder,
            dtype=config.dtype,
            device=config.device,
            tensor_parallel=config.tensor_parallel,
            engine_args=arguments,
        )

    def differs_from(self, student: str) -> str | None:
        return tokenizers_differ(self.folder, student)

    def context(self) -> float:
        return self.generator.context()

    def tell(self, examples: Sequence[Example]) -> list[Told]:
        found = self.generator.top_logprobs([example.token_ids.tolist() for example in examples], self.top_k)
        places = [target_places(example) - 1 for example in examples]
        return [Told(ids=ids[at], logprobs=logprobs[at]) for (ids, logprobs), at in zip(found, places, strict=True)]


def shared_tokens(folder: str, rows: int) -> int:
    """Of the `rows` of a head those that are tokens: heads of one family are padded to different sizes, and what is
    compared must be the same tokens."""
    return min(rows, 1 + max(load_tokenizer(folder).get_vocab().values()))


def tokenizers_differ(teacher: str, student: str) -> str | None:
    """One sentence that says how to go on, where probabilities over one vocabulary mean nothing in the other."""
    ours, theirs = load_tokenizer(student), load_tokenizer(teacher)
    vocabulary, other = ours.get_vocab(), theirs.get_vocab()
    if vocabulary == other and ours.eos_token_id == theirs.eos_token_id:
        return None
    unlike = sum(other.get(token) != place for token, place in vocabulary.items()) or abs(len(vocabulary) - len(other))
    what = f"{unlike} of {len(vocabulary)} tokens" if unlike else "the end-of-sequence token"
    return (
        f"the tokenizers of {student} and of its teacher {teacher} differ in {what}, so their probabilities cannot be "
        "compared; distil the teacher's text instead: stage distill on a dataset of its traces, without teacher and kl"
    )

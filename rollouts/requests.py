"""What every engine asks of the requests it is given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rollouts.records import Completion, Group, Request, SamplingParams, Support


def check_requests(requests: Sequence[Request], max_length: int) -> None:
    """Raises ValueError for a prompt that is empty or leaves no room to answer within `max_length` tokens, and for two
    requests with one key."""
    for request in requests:
        if not 0 < len(request.prompt_ids) < max_length:
            raise ValueError(
                f"prompt '{request.key}' has {len(request.prompt_ids)} tokens; this model takes 1 to "
                f"{max_length - 1} and then answers within {max_length} in all"
            )
    if len({request.key for request in requests}) < len(requests):
        raise ValueError("two requests share a key: their random numbers would be the same")


def wants_experts(request: Request, params: SamplingParams) -> bool:
    """Whether the experts of this request's completions are to be returned."""
    return params.return_routed_experts or request.return_routed_experts


def seed_for(request: Request, params: SamplingParams) -> int:
    return params.seed if request.seed is None else request.seed


def begun_part(request: Request, sample: int) -> Completion | None:
    """What an earlier call has sampled of a completion; None when there is nothing to continue."""
    begun = request.begun[sample] if request.begun else None
    return begun if begun is not None and len(begun.token_ids) else None


def continued(begun: Completion | None, rest: Completion) -> Completion:
    """A completion from its first part and what was sampled since. `rest` has the text of both, and the experts of all
    tokens read by its call; those of the first part are kept as they were when its tokens were sampled."""
    if begun is None:
        return rest
    experts = rest.routed_experts
    if experts is not None and begun.routed_experts is not None:
        experts = np.concatenate([begun.routed_experts, experts[len(begun.routed_experts) :]])
    return replace(
        rest,
        token_ids=np.concatenate([begun.token_ids, rest.token_ids]),
        sampling_logprobs=np.concatenate([begun.sampling_logprobs, rest.sampling_logprobs]),
        policy_versions=np.concatenate([begun.policy_versions, rest.policy_versions]),
        routed_experts=experts,
        support=_joined(begun.support, rest.support),
    )


def _joined(first: Support | None, second: Support | None) -> Support | None:
    if first is None or second is None:
        return first or second
    return Support(
        ids=np.concatenate([first.ids, second.ids]), sizes=np.concatenate([first.sizes, second.sizes])
    )  # fmt: skip


_NOT_BEGUN = Completion(
    token_ids=np.zeros(0, np.int32),
    sampling_logprobs=np.zeros(0, np.float32),
    policy_versions=np.zeros(0, np.int32),
    finish_reason="interrupted",
    text="",
)


class OpenGroups:
    """The groups of one `stream` call, until they are whole."""

    def __init__(self, requests: Sequence[Request], group_size: int):
        self.requests, self.group_size = requests, group_size
        self._ended: list[dict[int, Completion]] = [
            {sample: said for sample, said in enumerate(request.begun) if said.finish_reason != "interrupted"}
            for request in requests
        ]
        self.to_sample = [
            (index, sample)
            for index, ended in enumerate(self._ended)
            for sample in range(group_size)
            if sample not in ended
        ]
        self.open = {index for index, _ in self.to_sample}
        self._needed = {index for index in self.open if not requests[index].optional}

    @property
    def must_go_on(self) -> bool:
        """Whether the group of a request that is not optional lacks completions."""
        return bool(self._needed)

    def add(self, index: int, sample: int, completion: Completion) -> Group | None:
        """A completion of request `index` has ended: the group, when it is whole by that."""
        self._ended[index][sample] = completion
        if len(self._ended[index]) < self.group_size:
            return None
        self.open.discard(index)
        self._needed.discard(index)
        return self._group(index, {})

    def interrupted(self, running: Mapping[tuple[int, int], Completion]) -> Iterator[Group]:
        """The groups that are not whole, with what there is of each completion. `running`: by (request, sample)."""
        for index in sorted(self.open):
            yield self._group(index, running)

    def _group(self, index: int, running: Mapping[tuple[int, int], Completion]) -> Group:
        request, ended = self.requests[index], self._ended[index]
        completions = []
        for sample in range(self.group_size):
            before = request.begun[sample] if request.begun else _NOT_BEGUN
            completions.append(ended.get(sample) or running.get((index, sample)) or before)
        return Group(key=request.key, prompt_ids=request.prompt_ids, completions=completions)

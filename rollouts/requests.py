"""What every engine asks of the requests it is given."""

from collections.abc import Sequence

from rollouts.records import Request, SamplingParams


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

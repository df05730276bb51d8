from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.batch import TrainingSequence, make_mini_batches, pack
from rollouts.records import Support


def support_of(completion_ids) -> Support:
    """Token t was drawn from t, t + 1000 and, where t is odd, t + 2000."""
    sets = [[t, t + 1000, *([t + 2000] * (t % 2))] for t in completion_ids.tolist()]
    return Support(ids=np.concatenate(sets).astype(np.int32), sizes=np.array([len(kept) for kept in sets], np.int32))


@st.composite
def sequences(draw, min_size=0):
    """Sequences in which every token of the batch is different, so that a misplaced one is seen."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 12)), min_size=min_size, max_size=20))
    made, start = [], 0
    for prompt, completion in sizes:
        ids = np.arange(start, start + prompt + completion)
        start += prompt + completion
        made.append(
            TrainingSequence(
                prompt_ids=ids[:prompt],
                completion_ids=ids[prompt:],
                advantage=float(ids[0]),
                sampling_logprobs=ids[prompt:] + 0.25,
                old_logprobs=ids[prompt:] + 0.5,
                routed_experts=np.stack([ids[:-1] % 256, ids[:-1] // 256], -1).astype(np.uint8)[:, None],
                support=support_of(ids[prompt:]),
            )
        )
    return made


def test_documented_example():
    batch = [
        TrainingSequence(prompt_ids=np.array([7]), completion_ids=np.array([1, 2]), advantage=1.0),
        TrainingSequence(prompt_ids=np.array([8, 9]), completion_ids=np.array([3]), advantage=-1.0),
    ]
    (row,) = pack(batch, capacity=6)
    assert row.input_ids.tolist() == [7, 1, 2, 8, 9, 3]
    assert row.position_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert row.cu_seqlens.tolist() == [0, 3, 6]
    assert row.predicting_positions.tolist() == [0, 1, 4]
    assert row.target_ids.tolist() == [1, 2, 3]
    assert row.sequence_of_token.tolist() == [0, 0, 1]
    assert row.advantages.tolist() == [1.0, -1.0]
    assert row.old_logprobs is row.routed_experts is None
    assert row.old_logprobs is row.support_ids is row.support_sizes is None
    kinds = {"input_ids": "int64", "position_ids": "int64", "cu_seqlens": "int32", "advantages": "float32"}
    assert {name: str(getattr(row, name).dtype) for name in kinds} == kinds


@given(sequences(), st.integers(20, 60))
def test_every_completion_token_sits_behind_the_position_that_predicts_it(batch, capacity):
    rows = pack(batch, capacity)
    assert sorted(i for row in rows for i in row.sequence_indices) == list(range(len(batch)))
    for row in rows:
        assert len(row.input_ids) == row.cu_seqlens[-1] <= capacity
        # logits at position p predict input p + 1: that must be the target
        assert (row.input_ids[row.predicting_positions + 1] == row.target_ids).all()
        assert row.old_logprobs is not None and row.sampling_logprobs is not None
        assert row.old_logprobs.tolist() == (row.target_ids + 0.5).tolist()
        assert row.sampling_logprobs.tolist() == (row.target_ids + 0.25).tolist()
        support = support_of(row.target_ids)
        assert row.support_ids.tolist() == support.ids.tolist() and row.support_ids.dtype == np.int64
        assert row.support_sizes.tolist() == support.sizes.tolist() and row.support_sizes.dtype == np.int64
        for slot, index in enumerate(row.sequence_indices):
            original = batch[index]
            begin, end = row.cu_seqlens[slot], row.cu_seqlens[slot + 1]
            whole = np.concatenate([original.prompt_ids, original.completion_ids])
            assert row.input_ids[begin:end].tolist() == whole.tolist()
            assert row.position_ids[begin:end].tolist() == list(range(len(whole)))
            mine = row.sequence_of_token == slot
            assert row.target_ids[mine].tolist() == original.completion_ids.tolist()
            # never predicted from another sequence
            assert (row.predicting_positions[mine] >= begin).all()
            assert row.advantages[slot] == original.advantage
            assert row.split(row.target_ids)[slot].tolist() == original.completion_ids.tolist()
            # the experts of every token that is read, and none for the last
            low, high = row.routed_experts[begin : end - 1, 0].T
            assert (low + 256 * high).tolist() == whole[:-1].tolist()
            assert (row.routed_experts[end - 1] == -1).all()
            assert (row.split_routes(row.routed_experts)[slot] == original.routed_experts).all()


@given(sequences(), st.integers(1, 6), st.integers(0, 2**31))
def test_mini_batches_partition_all_outputs_evenly_and_by_seed(batch, count, seed):
    parts = make_mini_batches(batch, count, seed)
    seen = sorted(s.advantage for part in parts for s in part)
    assert seen == sorted(s.advantage for s in batch)
    assert len(parts) == min(count, len(batch))
    sizes = [len(part) for part in parts]
    assert not sizes or max(sizes) - min(sizes) <= 1
    again = make_mini_batches(batch, count, seed)
    assert [[s.advantage for s in part] for part in again] == [[s.advantage for s in part] for part in parts]


def test_mini_batches_tear_groups_apart_at_random():
    batch = [
        TrainingSequence(prompt_ids=np.array([1]), completion_ids=np.array([2]), advantage=float(i)) for i in range(64)
    ]
    first, second = make_mini_batches(batch, 4, seed=0), make_mini_batches(batch, 4, seed=1)
    order = [s.advantage for part in first for s in part]
    assert order != sorted(order)
    assert order != [s.advantage for part in second for s in part]
    with pytest.raises(ValueError, match="count"):
        make_mini_batches(batch, 0, seed=0)


def test_sequences_without_routes_route_themselves():
    """Where only some completions came with their experts."""
    experts = np.array([[[3, 1]], [[0, 2]]], np.uint8)
    plain = TrainingSequence(prompt_ids=np.array([1]), completion_ids=np.array([2, 3]), advantage=0.0)
    (row,) = pack([plain, replace(plain, routed_experts=experts), plain], 10)
    place = row.sequence_indices.tolist().index(1)
    (routes,) = (row.routed_experts[3 * i : 3 * i + 3] for i in range(3) if i == place)
    assert routes.tolist() == [[[3, 1]], [[0, 2]], [[-1, -1]]]
    assert (np.delete(row.routed_experts, range(3 * place, 3 * place + 3), axis=0) == -1).all()


def test_bad_sequences_are_named():
    fine = TrainingSequence(prompt_ids=np.array([1]), completion_ids=np.array([2, 3]), advantage=0.0)
    with pytest.raises(ValueError, match="completion_ids is empty"):
        TrainingSequence(prompt_ids=np.array([1]), completion_ids=np.array([]), advantage=0.0)
    with pytest.raises(ValueError, match="old_logprobs has 1 values for 2"):
        replace(fine, old_logprobs=np.zeros(1))
    with pytest.raises(ValueError, match="1 of 2 sequences of a row lack ref_logprobs"):
        pack([fine, replace(fine, ref_logprobs=np.zeros(2))], 10)
    with pytest.raises(ValueError, match="routed_experts has 3 tokens; a sequence of 3 needs 2"):
        replace(fine, routed_experts=np.zeros((3, 1, 2), np.uint8))
    support = support_of(fine.completion_ids)
    with pytest.raises(ValueError, match="1 of 2 sequences of a row lack support"):
        pack([fine, replace(fine, support=support)], 10)
    for broken in (replace(support, sizes=support.sizes[:1]), replace(support, ids=support.ids[:4])):
        with pytest.raises(ValueError, match=r"support has . sets for 2 tokens, and . ids where its sizes say ."):
            replace(fine, support=broken)
    (row,) = pack([fine], 10)
    assert row.routed_experts is None
    with pytest.raises(ValueError, match="3 values for 2"):
        row.split(np.zeros(3))

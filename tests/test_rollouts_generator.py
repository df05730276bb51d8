"""What every generator must do, whatever engine is inside. A new engine is one more factory in FACTORIES."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from models.checkpoint import hub_state_dict, load_model, load_tokenizer
from rollouts.records import Request, SamplingParams
from rollouts.sampling import draw, truncate, uniforms
from rollouts.transformers_generator import StopStrings, TransformersGenerator
from tests.vllm_engines import vllm_engine

MAX_LENGTH = 128  # of the test models


def transformers_generator(checkpoint, max_slots=256):
    return TransformersGenerator(str(checkpoint), max_slots=max_slots, device="cpu")


def vllm_generator(checkpoint, max_slots=256):
    """One engine per checkpoint and size, with the checkpoint's weights: starting one takes ten seconds."""
    engine = vllm_engine(checkpoint, max_slots=max_slots)
    engine.load_files(str(checkpoint), version=0)
    return engine


# name: (checkpoint, max_slots) -> Generator
FACTORIES = {"transformers": transformers_generator, "vllm": vllm_generator}


# DeepSeek-V4 has caches of its own in the embedded engine; the others differ in their attention's shapes alone, and are
# compared in tests/test_rollouts_architectures.py.
HOSTED = {"transformers": ("tiny", "llama", "v4"), "vllm": ("tiny", "llama")}
SLOW = {("transformers", "v4"), ("vllm", "tiny"), ("vllm", "llama")}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (engine, model), id=f"{engine}-{model}", marks=[pytest.mark.slow] if (engine, model) in SLOW else []
        )
        for engine, models in HOSTED.items()
        for model in models
    ],
)
def hosted(request):
    return request.param


@pytest.fixture(scope="module")
def factory(hosted):
    return FACTORIES[hosted[0]]


@pytest.fixture(scope="module")
def checkpoint(hosted, request):
    return request.getfixturevalue(f"{hosted[1]}_checkpoint")


@pytest.fixture(scope="module")
def generator(factory, checkpoint):
    return factory(checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint):
    """transformers' own model with its own attention, float32."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()


def prompts(count, seed=0, longest=30) -> list[Request]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest + 1, count)
    return [Request(key=f"p{i}", prompt_ids=rng.integers(8, 300, n).tolist()) for i, n in enumerate(sizes)]


def params(**kwargs) -> SamplingParams:
    return SamplingParams(**({"max_new_tokens": 20, "seed": 1} | kwargs))


def tokens_of(groups):
    return {group.key: [c.token_ids.tolist() for c in group.completions] for group in groups}


@torch.no_grad()
def logits_after(model, prompt_ids, completion_ids) -> torch.Tensor:
    """float64 [C, V]: the logits from which each completion token was drawn."""
    ids = torch.tensor([*prompt_ids, *completion_ids])[None]
    return model(ids).logits[0, len(prompt_ids) - 1 : -1].double()


def naive_truncate(logits: np.ndarray, top_k: int, top_p: float, min_p: float = 0.0) -> set[int]:
    """Indices kept, by the definitions: near enough to the first; the k most probable; the fewest that reach p."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = [i for i in order if np.exp(logits[i] - logits.max()) >= min(min_p, 1)]
    if top_k:
        order = order[:top_k]
    weights = np.exp(logits[order] - logits.max())
    weights /= weights.sum()
    kept, mass = set(), 0.0
    for index, weight in zip(order, weights, strict=True):
        if mass >= top_p:
            break
        kept.add(index)
        mass += weight
    return kept


# --- logprobs ---


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"temperature": 0.6}, {"temperature": 1.7}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1},
        {"temperature": 1.3, "top_k": 9, "top_p": 0.8}, {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)  # fmt: skip
def test_logprobs_are_those_of_the_distribution_drawn_from(generator, reference, settings):
    used = params(group_size=2, **settings)
    for group in generator.sample(prompts(6), used):
        for completion in group.completions:
            logits = logits_after(reference, group.prompt_ids, completion.token_ids) / used.temperature
            expected = []
            sampled = zip(logits.numpy(), completion.token_ids, completion.sampling_logprobs, strict=True)
            for row, token, logprob in sampled:
                low, high = (naive_truncate(row, used.top_k, used.top_p, used.min_p * (1 + e)) for e in (-5e-5, 5e-5))
                if low != high:  # a token is so near to min_p that rounding decides
                    expected.append(logprob)
                    continue
                kept = sorted(low)
                assert token in kept
                expected.append(row[token] - np.log(np.exp(row[kept] - row.max()).sum()) - row.max())
            # The temperature divides the logits, and with them their rounding.
            np.testing.assert_allclose(completion.sampling_logprobs, expected, atol=2e-5 / min(1, used.temperature))


def test_greedy_takes_the_most_probable_token(generator, reference):
    for group in generator.sample(prompts(8), params(temperature=0.0)):
        (completion,) = group.completions
        logits = logits_after(reference, group.prompt_ids, completion.token_ids)
        assert completion.token_ids.tolist() == logits.argmax(-1).tolist()
        assert (completion.sampling_logprobs == 0).all()


def test_greedy_equals_transformers_generate(generator, reference):
    for group in generator.sample(prompts(4), params(temperature=0.0)):
        ids = torch.tensor(group.prompt_ids)[None]
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, use_cache=False
        )
        assert group.completions[0].token_ids.tolist() == out[0, ids.shape[1] :].tolist()


def test_first_tokens_follow_the_softmax(generator, reference):
    """Chi-square of 3,000 draws over the tokens expected at least 5 times; its 99.9 % point by Wilson-Hilferty."""
    request, draws = prompts(1, seed=4)[0], 3000
    (group,) = generator.sample([request], params(max_new_tokens=1, group_size=draws, seed=3))
    seen = np.bincount([c.token_ids[0] for c in group.completions], minlength=340)
    probabilities = torch.softmax(logits_after(reference, request.prompt_ids, [0])[0], -1).numpy()
    common = probabilities * draws >= 5
    observed = np.append(seen[common], seen[~common].sum())
    expected = np.append(probabilities[common], probabilities[~common].sum())[: len(observed)] * draws
    assert common.sum() > 5
    statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(observed) - 1
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3


# --- what the tokens were drawn from ---

TRUNCATED = [{"top_p": 0.8}, {"top_k": 1}, {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.02}]


def sets_of(completion) -> list[np.ndarray]:
    return np.split(completion.support.ids, np.cumsum(completion.support.sizes)[:-1])


@pytest.mark.parametrize("settings", TRUNCATED, ids=str)
def test_support_is_what_truncation_left(generator, reference, settings):
    used = params(group_size=2, return_support=True, **settings)
    for group in generator.sample(prompts(6), used):
        for completion in group.completions:
            ids, sizes = completion.support.ids, completion.support.sizes
            assert ids.dtype == sizes.dtype == np.int32
            assert len(sizes) == len(completion.token_ids) and sizes.min() >= 1 and sizes.sum() == len(ids)
            logits = logits_after(reference, group.prompt_ids, completion.token_ids).numpy() / used.temperature
            expected = []
            for row, token, kept in zip(logits, completion.token_ids, sets_of(completion), strict=True):
                # Rounding may move what lies on the border.
                least = naive_truncate(row, used.top_k, used.top_p - 1e-5, used.min_p * (1 + 1e-5))
                most = naive_truncate(row, used.top_k, used.top_p + 1e-5, used.min_p * (1 - 1e-5))
                assert least <= set(kept.tolist()) <= most
                assert len(set(kept.tolist())) == len(kept)
                assert token in kept
                expected.append(row[token] - np.log(np.exp(row[kept] - row.max()).sum()) - row.max())
            np.testing.assert_allclose(completion.sampling_logprobs, expected, atol=2e-5)


def test_support_is_given_only_when_asked_for_and_something_was_cut(generator):
    for asked in ({"top_p": 0.8}, {"return_support": True}, {"return_support": True, "temperature": 0, "top_k": 4}):
        groups = generator.sample(prompts(2), params(**asked))
        assert all(completion.support is None for group in groups for completion in group.completions)


def test_support_changes_no_token_and_does_not_depend_on_what_else_is_sampled(factory, checkpoint, generator):
    used = params(group_size=3, top_p=0.8, max_new_tokens=9)
    requests = prompts(5)
    groups = generator.sample(requests, replace(used, return_support=True))
    assert tokens_of(groups) == tokens_of(generator.sample(requests, used))
    few_slots = factory(checkpoint, max_slots=4).sample(requests, replace(used, return_support=True))
    for one, other in zip(groups, few_slots, strict=True):
        for a, b in zip(one.completions, other.completions, strict=True):
            assert [set(kept) for kept in sets_of(a)] == [set(kept) for kept in sets_of(b)]


# --- seeds and independence ---


def test_same_seed_same_tokens_other_seed_others(generator):
    first, again = (tokens_of(generator.sample(prompts(5), params(group_size=3))) for _ in range(2))
    other = tokens_of(generator.sample(prompts(5), params(group_size=3, seed=2)))
    assert first == again
    assert all(first[key] != other[key] for key in first)


def test_completions_of_a_group_differ(generator):
    (group,) = generator.sample(prompts(1), params(group_size=8))
    assert len({tuple(c.token_ids.tolist()) for c in group.completions}) == 8


def test_tokens_do_not_depend_on_what_else_is_sampled(factory, checkpoint, generator):
    """Alone, in another order, with few slots (waiting, taking over slots), as part of a smaller group."""
    requests, used = prompts(9), params(group_size=3)
    expected = tokens_of(generator.sample(requests, used))
    assert tokens_of(generator.sample(requests[::-1], used)) == expected
    assert tokens_of(generator.sample(requests[4:5], used)) == {"p4": expected["p4"]}
    smaller = tokens_of(generator.sample(requests, params(group_size=2)))
    assert smaller == {key: tokens[:2] for key, tokens in expected.items()}
    for slots in (4,) if factory is vllm_generator else (1, 4, 7):
        assert tokens_of(factory(checkpoint, max_slots=slots).sample(requests, used)) == expected


def test_groups_come_in_the_order_of_the_requests(generator):
    requests = prompts(7)[::-1]
    assert [group.key for group in generator.sample(requests, params())] == [r.key for r in requests]


def test_a_call_leaves_nothing_behind(generator):
    before = tokens_of(generator.sample(prompts(3), params()))
    generator.sample(prompts(5, seed=9, longest=60), params(max_new_tokens=40))
    assert tokens_of(generator.sample(prompts(3), params())) == before


def test_abandoned_stream_leaves_nothing_behind(generator):
    before = tokens_of(generator.sample(prompts(3), params()))
    next(iter(generator.stream(prompts(8), params(group_size=2))))
    assert tokens_of(generator.sample(prompts(3), params())) == before


# --- how completions end ---


def test_eos_ends_a_completion_and_is_its_last_token(generator, checkpoint):
    eos = load_tokenizer(checkpoint).eos_token_id
    weights = hub_state_dict(load_model(checkpoint))
    pushed = {name: tensor.clone() for name, tensor in weights.items()}
    # EOS likely but not certain: its output row becomes a mean of others, scaled up.
    head_VD = next(tensor for name, tensor in pushed.items() if name.endswith("head.weight"))  # V4: head.weight
    head_VD[eos] = 1.5 * head_VD[20:23].mean(0)
    try:
        generator.load_weights({name: t.numpy() for name, t in pushed.items()}, version=1)
        groups = generator.sample(prompts(30), params(group_size=4, max_new_tokens=60))
    finally:
        generator.load_weights({name: t.numpy() for name, t in weights.items()}, version=0)
    completions = [completion for group in groups for completion in group.completions]
    reasons = [completion.finish_reason for completion in completions]
    assert "stop" in reasons
    for completion in completions:
        ids = completion.token_ids.tolist()
        assert (ids[-1] == eos) == (completion.finish_reason == "stop")
        assert eos not in ids[:-1]
        assert completion.finish_reason == "stop" or len(ids) == 60
        assert len(completion.sampling_logprobs) == len(ids)
        assert "end▁of▁sentence" not in completion.text


def readable(texts, longest: int) -> str:
    """A string of up to `longest` characters from the middle of one of `texts` that reads alike wherever it is cut."""
    for text in texts:
        for start in range(len(text) // 3, len(text) - longest):
            if text[start : start + longest].isascii():
                return text[start : start + longest]
    raise AssertionError("no readable text")


def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(generator, checkpoint):
    """Tokens are those without stop strings, up to the first whose text holds one."""
    tokenizer = load_tokenizer(checkpoint)
    free = generator.sample(prompts(6), params(group_size=3, max_new_tokens=30))
    texts = [c.text for group in free for c in group.completions]
    stops = (readable(texts, 2), readable(texts[5:], 5), "never said")
    stopped = generator.sample(prompts(6), params(group_size=3, max_new_tokens=30, stop=stops))
    ended = 0
    for free_group, group in zip(free, stopped, strict=True):
        for whole, completion in zip(free_group.completions, group.completions, strict=True):
            lengths = range(1, len(whole.token_ids) + 1)
            said = [tokenizer.decode(whole.token_ids[:n], skip_special_tokens=True) for n in lengths]
            first = next((n for n, text in zip(lengths, said, strict=True) if any(s in text for s in stops)), None)
            assert completion.token_ids.tolist() == whole.token_ids[:first].tolist()
            assert completion.text == said[(first or len(said)) - 1]
            assert completion.finish_reason == ("stop" if first else whole.finish_reason)
            assert len(completion.sampling_logprobs) == len(completion.token_ids)
            ended += first is not None
    assert ended >= 2


def test_the_models_length_is_a_limit_too(generator):
    request = Request(key="long", prompt_ids=[9] * (MAX_LENGTH - 3))
    (group,) = generator.sample([request], params(max_new_tokens=50, group_size=4))
    for completion in group.completions:
        assert len(completion.token_ids) <= 3
        assert completion.finish_reason == "length" or len(completion.token_ids) < 4


@pytest.mark.parametrize("length", [0, MAX_LENGTH, MAX_LENGTH + 5])
def test_a_prompt_without_room_is_named(generator, length):
    requests = [*prompts(2), Request(key="culprit", prompt_ids=[9] * length)]
    with pytest.raises(ValueError, match=f"'culprit' has {length} tokens"):
        generator.sample(requests, params())


def test_thousands_of_queued_prompts(generator):
    """Far more than slots, and more prompt tokens than one step of an engine takes."""
    groups = generator.sample(prompts(2000, longest=12), params(max_new_tokens=1))
    assert [group.key for group in groups] == [f"p{i}" for i in range(2000)]
    again = {g.key: g for g in generator.sample(prompts(2000, longest=12)[1500:1501], params(max_new_tokens=1))}
    assert tokens_of([groups[1500]]) == tokens_of(again.values())


def test_two_requests_with_one_key_are_refused(generator):
    request = prompts(1)[0]
    with pytest.raises(ValueError, match="share a key"):
        generator.sample([request, request], params())


def test_no_requests_no_groups(generator):
    assert generator.sample([], params()) == []


def test_unicode_prompts_and_text(generator, checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    prompt = tokenizer("计算 3+8 — naïve 🙂")["input_ids"]
    (group,) = generator.sample([Request(key="u", prompt_ids=prompt)], params(group_size=4))
    for completion in group.completions:
        assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        completion.text.encode("utf-8")


@pytest.mark.parametrize("opening", ["<think>\n", "<think>"])
def test_reasoning_that_the_prompt_opens_is_part_of_the_text(generator, checkpoint, opening):
    """Some chat templates end in <think>; the format reward must not miss the tag for it."""
    tokenizer = load_tokenizer(checkpoint)
    prompt = tokenizer(f"1+1?{opening}")["input_ids"]
    [group] = generator.sample([Request(key="a", prompt_ids=prompt)], params(max_new_tokens=6))
    [completion] = group.completions
    assert completion.text == opening + tokenizer.decode(completion.token_ids, skip_special_tokens=True)


def test_record_types(generator):
    (group,) = generator.sample(prompts(1), params())
    (completion,) = group.completions
    assert completion.token_ids.dtype == np.int32
    assert completion.sampling_logprobs.dtype == np.float32
    assert group.prompt_ids == prompts(1)[0].prompt_ids


# --- routed experts ---


def ending_apart(count=6) -> list[Request]:
    """Prompts whose completions end at different steps: some near the model's length, so that slots change hands."""
    rng = np.random.default_rng(3)
    near = [Request(key=f"n{i}", prompt_ids=rng.integers(8, 300, MAX_LENGTH - 1 - 3 * i).tolist()) for i in range(4)]
    return [request for pair in zip(near, prompts(4), strict=True) for request in pair] + prompts(count)[4:]


def clearly_chosen(gate, logits, config) -> torch.Tensor:
    """[T]: two engines may disagree where the last kept and the first dropped almost tie."""
    if hasattr(gate, "tid2eid"):  # V4's table
        return torch.ones(len(logits), dtype=torch.bool)
    if not hasattr(config, "n_group"):  # V4's other layers
        best = (gate.score_fn(logits) + gate.e_score_correction_bias).topk(config.num_experts_per_tok + 1).values
        return best[:, -2] - best[:, -1] > 1e-4
    grouped = (logits.sigmoid() + gate.e_score_correction_bias).view(len(logits), config.n_group, -1)
    groups = grouped.topk(2).values.sum(-1).topk(config.topk_group + 1)
    kept = grouped.gather(1, groups.indices[:, :-1, None].expand(-1, -1, grouped.shape[-1])).flatten(1)
    best = kept.topk(config.num_experts_per_tok + 1).values
    gaps = [values[:, -2] - values[:, -1] for values in (groups.values, best)]
    return torch.minimum(*gaps) > 1e-4


@torch.no_grad()
def chosen_experts(model, ids) -> tuple[np.ndarray, np.ndarray]:
    """[T, L, K] sorted experts of a plain forward of transformers, and [T, L] whether each was clearly chosen."""
    seen, config = [], model.config
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    hooks = [gate.register_forward_hook(lambda gate, _, out: seen.append((gate, out[0], out[2]))) for gate in gates]
    model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    clear = [clearly_chosen(gate, logits, config) for gate, logits, _ in seen]
    experts = [experts.sort(-1).values for _, _, experts in seen]
    return (torch.stack(experts, 1).numpy(), torch.stack(clear, 1).numpy()) if seen else (np.zeros(0), np.zeros(0))


def test_routed_experts_are_those_of_the_model(generator, reference):
    """Of the prompt and every token that was read: all but the last. A dense model has none."""
    groups = generator.sample(ending_apart(), params(group_size=3, return_routed_experts=True))
    for group in groups:
        for completion in group.completions:
            expected, clear = chosen_experts(reference, [*group.prompt_ids, *completion.token_ids[:-1]])
            if not len(expected):
                assert completion.routed_experts is None
                continue
            assert completion.routed_experts.dtype == np.uint8
            assert completion.routed_experts.shape == expected.shape
            assert clear.mean() > 0.9
            np.testing.assert_array_equal(np.sort(completion.routed_experts)[clear], expected[clear])
    assert len({len(c.token_ids) for group in groups for c in group.completions}) > 3


def test_routed_experts_do_not_depend_on_slots_and_change_no_token(factory, checkpoint, generator):
    requests, used = ending_apart(), params(group_size=3, return_routed_experts=True)
    plain = generator.sample(requests, params(group_size=3))
    assert all(completion.routed_experts is None for group in plain for completion in group.completions)
    expected = generator.sample(requests, used)
    assert tokens_of(expected) == tokens_of(plain)
    for group, other in zip(expected, factory(checkpoint, max_slots=5).sample(requests, used), strict=True):
        for completion, again in zip(group.completions, other.completions, strict=True):
            if completion.routed_experts is not None:
                same = (np.sort(completion.routed_experts) == np.sort(again.routed_experts)).all(-1)
                assert same.mean() > 0.99  # a batch of another shape may round a close call the other way


# --- weights ---


def test_load_weights_changes_what_is_sampled_and_stamps_the_version(factory, checkpoint):
    generator, model = (
        factory(checkpoint),
        AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager"),
    )
    assert generator.policy_version == 0
    before = tokens_of(generator.sample(prompts(4), params()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * parameter.abs().mean() * torch.sign(parameter).roll(1)
        model.lm_head.weight.copy_(model.lm_head.weight.roll(1, 0))
    generator.load_weights({name: t.numpy() for name, t in hub_state_dict(model).items()}, version=7)
    groups = generator.sample(prompts(4), params())
    assert tokens_of(groups) != before
    assert generator.policy_version == 7
    for group in groups:
        (completion,) = group.completions
        assert completion.policy_versions.tolist() == [7] * len(completion.token_ids)
        expected = torch.log_softmax(logits_after(model.eval(), group.prompt_ids, completion.token_ids), -1)
        chosen = expected[range(len(completion.token_ids)), completion.token_ids]
        np.testing.assert_allclose(completion.sampling_logprobs, chosen, atol=2e-5)


def test_incomplete_weights_change_nothing(factory, checkpoint):
    generator = factory(checkpoint)
    before = tokens_of(generator.sample(prompts(3), params()))
    weights = {name: 2 * t.numpy() for name, t in hub_state_dict(load_model(checkpoint)).items()}
    del weights["norm.weight" if "norm.weight" in weights else "model.norm.weight"]
    with pytest.raises(KeyError):
        generator.load_weights(weights, version=3)
    assert generator.policy_version == 0
    assert tokens_of(generator.sample(prompts(3), params())) == before


# --- interruption ---


def interrupted(generator, requests, used):
    """Groups of `requests`, of which the first had 8 tokens before and alone is needed, and of those that followed the
    interrupted ones again, by their keys."""
    first, *others = requests
    (begun,) = generator.sample([first], replace(used, max_new_tokens=8))
    cut = tuple(replace(said, finish_reason="interrupted") for said in begun.completions)
    requests = [replace(first, begun=cut), *(replace(request, optional=True) for request in others)]
    return {group.key: group for group in generator.stream(requests, used)}


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0, "return_routed_experts": True}, {"top_k": 9, "return_support": True}], ids=str
)
def test_interrupted_completions_go_on_as_if_nothing_had_happened(generator, reference, checkpoint, settings):
    requests, used = prompts(5), params(group_size=2, **settings)
    generator.load_files(str(checkpoint), version=0)
    whole = {group.key: group for group in generator.sample(requests, used)}
    parts = interrupted(generator, requests, used)
    assert parts.keys() == whole.keys()
    assert all(said.finish_reason != "interrupted" for said in parts["p0"].completions)
    left = [r for r in requests if any(said.finish_reason == "interrupted" for said in parts[r.key].completions)]
    assert left
    generator.load_files(str(checkpoint), version=3)  # the same weights under another number
    try:
        again = generator.sample([replace(r, begun=tuple(parts[r.key].completions)) for r in left], used)
    finally:
        generator.load_files(str(checkpoint), version=0)
    exactly = used.temperature == 0 or isinstance(generator, TransformersGenerator)  # vLLM draws anew from there on
    for group in again:
        for before, said, unbroken in zip(
            parts[group.key].completions, group.completions, whole[group.key].completions, strict=True
        ):
            begun = len(before.token_ids)
            assert said.finish_reason in ("stop", "length")
            assert said.token_ids[:begun].tolist() == before.token_ids.tolist()
            continued = len(said.token_ids) - begun
            assert said.policy_versions.tolist() == [0] * begun + [3] * continued
            assert (continued > 0) == (before.finish_reason == "interrupted")
            if exactly:
                assert said.token_ids.tolist() == unbroken.token_ids.tolist() and said.text == unbroken.text
            if unbroken.routed_experts is not None:
                np.testing.assert_array_equal(said.routed_experts, unbroken.routed_experts)
            if used.temperature > 0:
                assert said.support is not None and len(said.support.sizes) == len(said.token_ids)
                sets = np.split(said.support.ids, np.cumsum(said.support.sizes)[:-1])
                logits = logits_after(reference, group.prompt_ids, said.token_ids)
                for row, kept, token, logprob in zip(logits, sets, said.token_ids, said.sampling_logprobs, strict=True):
                    kept = torch.tensor(kept.astype(np.int64))
                    assert token in kept
                    np.testing.assert_allclose(logprob, row[token] - row[kept].logsumexp(0), atol=2e-5)


def test_a_call_ends_when_no_needed_group_is_open(generator):
    requests = [replace(request, optional=True) for request in prompts(3)]
    groups = generator.sample(requests, params(group_size=2))
    assert [[len(said.token_ids) for said in group.completions] for group in groups] == [[0, 0]] * 3
    assert {said.finish_reason for group in groups for said in group.completions} == {"interrupted"}


# --- the drawing itself ---

few_logits = st.lists(st.floats(-8, 8).map(lambda x: round(x, 3)), min_size=1, max_size=12, unique=True)


@given(few_logits, st.integers(0, 14), st.floats(0.01, 1.0), st.one_of(st.just(0.0), st.floats(0.0, 1.0)))
def test_truncate_against_the_definition(logits, top_k, top_p, min_p):
    values = np.array(logits)
    out = truncate(torch.tensor(logits, dtype=torch.float64)[None], top_k, top_p, min_p)[0].numpy()
    kept = set(np.flatnonzero(out > -np.inf).tolist())
    # Where the mass lands on top_p, or a token on min_p, within rounding, either choice is right.
    borders = [(top_p + p, min_p * (1 + m)) for p in (-1e-9, 1e-9) for m in (-1e-9, 1e-9)]
    assert kept in [naive_truncate(values, top_k, p, m) for p, m in borders]
    assert (out[sorted(kept)] == values[sorted(kept)]).all()
    assert int(values.argmax()) in kept


@given(few_logits, st.floats(0, 1, exclude_max=True, width=32))
def test_a_draw_is_the_inverse_of_the_distribution_function(logits, uniform):
    """And is on a token that could be drawn; float64 sums say where the borders are, up to rounding."""
    values = torch.tensor([logits])
    cut = truncate(values, 0, 0.9)
    params = SamplingParams(max_new_tokens=1, top_p=0.9)
    (token,), (logprob,), kept = draw(values, torch.tensor([uniform]), params)
    probabilities = torch.softmax(cut.double(), -1)[0]
    below = probabilities[:token].sum().item()
    assert kept[0, token] and below - 1e-6 <= uniform <= below + probabilities[token].item() + 1e-6
    assert logprob.item() == pytest.approx(probabilities[token].log().item(), abs=1e-5)


def test_drawing_uses_nothing_that_is_not_deterministic_on_cuda():
    """Which a trainer that samples would refuse there: cumulative sums of floats."""

    class NoFloatSums(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function is not torch.ops.aten.cumsum.default or not args[0].is_floating_point()
            return function(*args, **(kwargs or {}))

    with NoFloatSums():
        draw(torch.randn(4, 30), torch.rand(4), SamplingParams(max_new_tokens=1, top_p=0.7, top_k=9, min_p=0.01))


def test_min_p_counts_before_top_k_and_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = [
        truncate(logits, *cut).exp()[0].tolist() for cut in ((0, 0.75, 0.2), (0, 0.75), (3, 1.0, 0.2), (0, 1.0, 1.0))
    ]
    expected = [[0.5, 0.3, 0, 0], [0.5, 0.3, 0, 0], [0.5, 0.3, 0.15, 0], [0.5, 0, 0, 0]]
    np.testing.assert_allclose(kept, expected, rtol=1e-6)
    # 0.5 of the 0.8 that min-p leaves reaches 0.6; of the whole it would not
    assert (truncate(logits, 0, 0.6, 0.4) > -torch.inf).sum() == 1
    assert (truncate(logits, 0, 0.6) > -torch.inf).sum() == 2


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from(["a", "计算", "🙂b"]))
def test_stop_strings_are_found_where_the_whole_text_has_them(tiny_checkpoint, seed, pieces, needle):
    """Special tokens in between, characters of several tokens: the bounded tail ends where the whole text does."""
    tokenizer, rng = load_tokenizer(tiny_checkpoint), np.random.default_rng(seed)
    ids = rng.integers(0, len(tokenizer), 12).tolist()
    for token in tokenizer(needle, add_special_tokens=False)["input_ids"]:
        ids += [token, *rng.integers(0, 4, rng.integers(0, 9)).tolist()]  # the first ids are special
    ids += rng.integers(0, len(tokenizer), pieces).tolist()
    stops = StopStrings(("xyz", needle), tokenizer)
    whole = [tokenizer.decode(ids[:n], skip_special_tokens=True) for n in range(1, len(ids) + 1)]
    expected = next(n for n, text in enumerate(whole, 1) if needle in text)
    assert next(n for n in range(1, len(ids) + 1) if stops.ended(ids[:n])) == expected


def test_uniforms_depend_on_seed_key_and_sample_alone():
    base = uniforms(1, "a", 0, 50)
    assert (uniforms(1, "a", 0, 20) == base[:20]).all()  # not on how many are asked for
    for other in (uniforms(2, "a", 0, 50), uniforms(1, "b", 0, 50), uniforms(1, "a", 1, 50)):
        assert not (other == base).any()
    assert ((base >= 0) & (base < 1)).all()


def test_uniforms_of_neighbours_are_uncorrelated():
    rows = np.stack([uniforms(0, f"k{i // 8}", i % 8, 400) for i in range(64)])
    correlation = np.corrcoef(rows) - np.eye(64)
    assert abs(correlation).max() < 5 / np.sqrt(400)
    counts, _ = np.histogram(rows, bins=16, range=(0, 1))
    assert abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())

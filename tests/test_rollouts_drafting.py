"""Whether vLLM's drafts leave the distribution of the policy alone on CPU: the evidence for what generators refuse.

Each method samples the same prompt in a process of its own, with the same seeds. Tokens are compared by a chi-square
test of homogeneity at each place.
"""

import functools
import json
import subprocess
import sys
from collections import Counter

import pytest
import torch

pytestmark = pytest.mark.slow
pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def sampled(tiny_checkpoint):
    @functools.cache
    def sample(method: str) -> dict:
        command = [sys.executable, "-m", "tests.drafting", method, str(tiny_checkpoint)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return sample


def p_value(one: list[int], other: list[int], least: int = 20) -> float:
    """Of the hypothesis that two samples of tokens have one distribution; tokens rarer than `least` are one class."""
    counts = Counter(one), Counter(other)
    common = [token for token, count in (counts[0] + counts[1]).items() if count >= least]
    table = torch.tensor([[c[token] for token in common] for c in counts], dtype=torch.float64)
    rest = torch.tensor([[len(one)], [len(other)]], dtype=torch.float64) - table.sum(1, keepdim=True)
    table = torch.cat([table, rest], dim=1) if rest.sum() else table
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    chi_square = ((table - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((table.shape[1] - 1) / 2, dtype=torch.float64), chi_square / 2))


def p_values(sampled, method: str) -> list[float]:
    """At the first, second and third token."""
    plain, drafted = (sampled(name)["sampled"] for name in ("none", method))
    return [p_value(*([tokens[i] for tokens in c if len(tokens) > i] for c in (plain, drafted))) for i in range(3)]


def test_the_statistic_tells_equal_from_biased():
    rng = torch.Generator().manual_seed(0)
    even = torch.full((50,), 1 / 50)
    tilted = even.clone()
    tilted[:5] *= 2
    one, same, other = (torch.multinomial(p, 3000, True, generator=rng).tolist() for p in (even, even, tilted))
    assert p_value(one, same) > 0.01
    assert p_value(one, other) < 1e-4


@pytest.mark.parametrize("method", ["mtp", "ngram", "ours"])
def test_greedy_decoding_is_the_same(sampled, method):
    assert sampled(method)["drafted"] > 0
    assert sampled(method)["greedy"] == sampled("none")["greedy"]


def test_mtp_drafts_still_change_the_distribution(sampled):
    """Fails once they do not: then the refusal (rollouts.vllm_cpu, 5.) can go."""
    first, second, _ = p_values(sampled, "mtp")
    assert first > 1e-3  # nothing was drafted before it
    assert second < 1e-12


@pytest.mark.parametrize("method", ["ngram", "ours"])
def test_ngram_drafts_leave_the_distribution_alone(sampled, method):
    assert min(p_values(sampled, method)) > 1e-3


def test_with_drafts_our_generator_keeps_its_contract(sampled):
    """Logprobs of the distribution drawn from, experts of every token, and no setting that drafts would ignore."""
    said = sampled("ours")
    assert said["gap"] <= 2e-5
    assert said["routed"] == 1
    assert 0 < said["accepted"] < said["drafted"]
    assert said["refusal"] == "generator.drafting goes without min_p: vLLM does not apply it to drafted tokens"

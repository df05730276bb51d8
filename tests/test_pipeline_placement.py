"""Which bundles a stage asks for, on clusters with and without GPUs."""

import pytest

from cluster.config import ClusterConfig
from distill.config import OnPolicyDistillConfig
from pipeline.errors import RecipeError
from pipeline.placement import bundles, check_nodes, check_turns
from rl.config import GRPOConfig
from sft.config import SFTConfig
from sft.preference_config import PreferenceDataConfig


def asked(config, gpus: bool, inputs=(), **settings) -> dict[str, tuple]:
    found = bundles(config, ClusterConfig(**{"placement": "disaggregated"} | settings), gpus, inputs)
    return {role.role: (role.count, dict(role.bundle), role.strategy) for role in found}


def grpo(**settings) -> GRPOConfig:
    return GRPOConfig.model_validate({"rewards": [{"use": "rewards.accuracy:Accuracy"}]} | settings)


def test_roles_of_grpo_on_gpus():
    config = grpo(
        trainer={"mesh": {"data": 32, "expert": 8, "pipeline": 2}},
        generator={"engine": "vllm", "replicas": 8, "tensor_parallel": 8},
        reward_workers={"workers": 16},
    )
    assert asked(config, gpus=True, cpus_per_trainer=12, cpus_per_reward_worker=4) == {
        "trainer": (64, {"CPU": 12.0, "GPU": 1.0}, "PACK"),
        "generator": (8, {"CPU": 1.0, "GPU": 8.0}, "PACK"),
        "reward": (16, {"CPU": 4.0}, "SPREAD"),
    }


def test_without_gpus_cores_are_reserved():
    assert asked(grpo(generator={"replicas": 3}), gpus=False) == {
        "trainer": (1, {"CPU": 1.0}, "PACK"),
        "generator": (3, {"CPU": 1.0}, "PACK"),
        "reward": (1, {"CPU": 1.0}, "SPREAD"),
    }


def test_a_device_that_is_cpu_takes_no_gpu():
    roles = asked(grpo(trainer={"device": "cpu"}, generator={"device": "cpu"}), gpus=True)
    assert "GPU" not in roles["trainer"][1] and "GPU" not in roles["generator"][1]


def test_a_trainer_that_samples_is_the_only_one_with_a_device():
    assert set(asked(grpo(sample_in_trainer=True), gpus=True)) == {"trainer", "reward"}


def test_a_stage_that_only_trains_has_one_role():
    assert set(asked(SFTConfig(), gpus=True)) == {"trainer"}


@pytest.mark.parametrize("cores", [0, 0.5])
def test_bundles_are_never_empty(cores):
    roles = asked(grpo(), gpus=False, cpus_per_trainer=cores, cpus_per_generator=cores, cpus_per_reward_worker=cores)
    assert all(sum(bundle.values()) > 0 for _, bundle, _ in roles.values())


def test_where_roles_share_devices_each_gpu_holds_one_rank_and_generators_are_spread():
    config = grpo(trainer={"mesh": {"data": 16}}, generator={"engine": "vllm", "replicas": 2, "tensor_parallel": 8})
    roles = asked(config, gpus=True, placement="colocated")
    assert roles["trainer"] == (16, {"CPU": 0.01, "GPU": 0.9}, "PACK")
    assert roles["generator"] == (2, {"CPU": 0.01, "GPU": 0.01}, "SPREAD")
    (generator,) = [r for r in bundles(config, ClusterConfig(), True) if r.role == "generator"]
    assert generator.shown_all_gpus


def test_rollouts_that_run_ahead_do_not_share_a_gpu_with_the_trainer():
    ahead = grpo(max_staleness=1)
    with pytest.raises(RecipeError, match=r"same GPUs; set cluster\.placement: disaggregated"):
        check_turns(ahead, ClusterConfig(), gpus=True)
    check_turns(ahead, ClusterConfig(), gpus=False)
    check_turns(ahead, ClusterConfig(placement="disaggregated"), gpus=True)
    check_turns(grpo(), ClusterConfig(), gpus=True)


def test_an_engine_over_nodes_has_a_bundle_on_each():
    config = grpo(generator={"engine": "vllm", "replicas": 4, "tensor_parallel": 16, "nodes": 2})
    assert asked(config, gpus=True)["generator"] == (8, {"CPU": 1.0, "GPU": 8.0}, "PACK")
    assert asked(config, gpus=True, placement="colocated")["generator"] == (8, {"CPU": 0.01, "GPU": 0.01}, "SPREAD")


@pytest.mark.parametrize(
    ("there", "nodes", "fits"),
    [([8, 8], 2, True), ([], 2, True), ([16], 2, True), ([8], 2, False), ([4, 4, 4], 2, False), ([4] * 4, 4, True)],
)
def test_parts_of_an_engine_do_not_meet_on_a_gpu(monkeypatch, there, nodes, fits):
    """A cluster without GPUs has processes alone, which may meet."""
    monkeypatch.setattr("cluster.actors.start_ray", lambda: None)
    monkeypatch.setattr("cluster.actors.gpus_of_nodes", lambda: there)
    engine = {"engine": "vllm", "tensor_parallel": 16, "nodes": nodes}
    for config, inputs, key in (
        (grpo(generator=engine), (), "generator"),
        (grpo(judges={"generator": engine}), ("grm",), "judges.generator"),
        (PreferenceDataConfig.model_validate({"judge": {"generator": engine}}), ("judge",), "judge.generator"),
    ):
        if fits:
            check_nodes(config, inputs)
        else:
            with pytest.raises(RecipeError, match=rf"^{key}\.nodes 2 of 8 GPUs each .* {len(there)} nodes with "):
                check_nodes(config, inputs)
    check_nodes(grpo(judges={"generator": engine}), ())  # without a judge
    check_nodes(grpo(generator=engine | {"device": "cpu"}), ())


def test_models_that_judge_score_or_teach_have_bundles_where_the_stage_is_given_them():
    judges = {"generator": {"engine": "vllm", "replicas": 3, "tensor_parallel": 4}}
    rewards = [
        {"use": "rewards.preference:HelpfulReward", "domains": ["general"]},
        {"use": "rewards.preference:SafetyReward", "options": {"engine": "vllm", "tensor_parallel": 16, "nodes": 2}},
    ]
    config = grpo(judges=judges, rewards=rewards)
    assert "judge" not in asked(config, gpus=True) and "grm" not in asked(config, gpus=True)
    roles = asked(config, gpus=True, inputs=("policy", "grm", "helpful_rm"))
    assert roles["grm"] == (3, {"CPU": 1.0, "GPU": 4.0}, "PACK")
    assert roles["helpful_rm"] == (1, {"CPU": 1.0, "GPU": 1.0}, "PACK")
    assert "policy" not in roles and "safety_rm" not in roles
    both = asked(config, gpus=True, inputs=("safety_rm", "helpful_rm"))
    assert both["safety_rm"] == (2, {"CPU": 1.0, "GPU": 8.0}, "PACK")
    preferences = PreferenceDataConfig.model_validate({"judge": judges})
    assert asked(preferences, gpus=True, inputs=("policies.dev3", "judge"))["judge"][0] == 3
    assert "judge" not in asked(preferences, gpus=True, inputs=("policies.dev3",))
    in_turn = PreferenceDataConfig.model_validate({"judge": judges, "generator": judges["generator"]})
    assert set(asked(in_turn, gpus=True, inputs=("judge",))) == {"generator", "reward"}
    distilled = OnPolicyDistillConfig.model_validate(
        {"teacher": {"engine": "vllm", "tensor_parallel": 8}, "kl": {"top_k": 8}}
    )
    roles = asked(distilled, gpus=True, inputs=("student", "teachers.maths", "teachers.code"))
    assert roles["teachers.maths"] == roles["teachers.code"] == (1, {"CPU": 1.0, "GPU": 8.0}, "PACK")

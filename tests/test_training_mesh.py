"""Meshes in recipes: what they mean is checked before anything starts, and errors say how to mend it."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from training.mesh import MeshConfig

MOE = SimpleNamespace(model_type="deepseek_v3", n_routed_experts=8, hidden_size=64, moe_intermediate_size=24)
DEEP = SimpleNamespace(model_type="llama", num_hidden_layers=7)


def test_ranks_are_counted_once():
    assert MeshConfig().ranks == 1
    assert MeshConfig(data=8, expert=4).ranks == 8  # expert groups are made of the data ranks
    assert MeshConfig(data=8, expert=4, pipeline=3).ranks == 24


def test_expert_groups_fill_the_data_ranks():
    with pytest.raises(ValidationError, match=r"expert 4 does not divide data 6.*set data to a multiple of 4"):
        MeshConfig(data=6, expert=4)


@pytest.mark.parametrize(
    ("mesh", "model", "said"),
    [
        (MeshConfig(data=3, expert=3), MOE, "expert 3 does not divide the model's 8 experts"),
        (MeshConfig(data=20, expert=2), MOE, r"data / expert = 10 ranks along the model's hidden_size \(64\)"),
        (MeshConfig(data=64, expert=2), MOE, r"2 \* moe_intermediate_size \(48\)"),
        (MeshConfig(data=2, expert=2), SimpleNamespace(model_type="llama"), "llama has none here; set expert to 1"),
        (MeshConfig(pipeline=4), DEEP, "into 8 chunks, and this model has 7 layers; set pipeline to 3 or less"),
        (MeshConfig(pipeline=2), SimpleNamespace(model_type="deepseek_v4"), "deepseek_v4's layers have several"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(mesh, model, said):
    with pytest.raises(ValueError, match=said):
        mesh.check_model(model)


def test_a_model_that_fits_is_not():
    for mesh in (MeshConfig(), MeshConfig(data=5), MeshConfig(data=16, expert=8), MeshConfig(data=8, expert=8)):
        mesh.check_model(MOE)
    MeshConfig(pipeline=3).check_model(DEEP)

import pytest

from planning.assumptions import PAPER, Assumptions, BadAssumption
from planning.devices import UnknownCluster, parse_cluster


def test_clusters_are_nodes_by_devices_by_name():
    cluster = parse_cluster("64x8xH800")
    assert (cluster.nodes, cluster.per_node, cluster.devices, str(cluster)) == (64, 8, 512, "64x8xH800")
    assert parse_cluster("8xh100").nodes == 1 and parse_cluster("RTX 4090").devices == 1
    assert cluster.slowest_link(8) > cluster.slowest_link(9)


@pytest.mark.parametrize("text", ["64x8", "8xB9000", "0xH100", "", "x8xH100"])
def test_other_clusters_are_refused(text):
    with pytest.raises(UnknownCluster, match=f"--cluster {text}: "):
        parse_cluster(text)


def test_a_device_without_units_of_a_precision_computes_in_the_next():
    a100 = parse_cluster("A100").device
    assert a100.peak("fp8") == a100.peak("bfloat16") > a100.peak("float32")


def test_assumptions_have_reasons_and_refuse_what_they_do_not_know():
    assert all(field.description and len(field.description) > 40 for field in Assumptions.model_fields.values())
    assert Assumptions.parse(PAPER).changed() == PAPER
    with pytest.raises(BadAssumption, match="no such assumption; known: completion_share"):
        Assumptions.parse({"lenght": 1})
    with pytest.raises(BadAssumption, match="completion_share=2"):
        Assumptions.parse({"completion_share": 2})

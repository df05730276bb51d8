"""`r1 sandbox` on the command line."""

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pipeline.cli import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux only")


def r1(*arguments: str, stdin: str = ""):
    result = CliRunner().invoke(main, ["sandbox", *arguments], input=stdin)
    assert "Traceback" not in result.output
    return result


def test_doctor_names_tiers_attacks_and_languages():
    result = r1("doctor")
    assert result.exit_code == 0, result.output
    assert "tier ns:" in result.output and "tier landlock:" in result.output
    assert "connect to the loopback: refused" in result.output
    assert "languages: python" in result.output


def test_a_program_runs_with_our_input(tmp_path):
    program = tmp_path / "double.py"
    program.write_text("print(int(input()) * 2)")
    result = r1("run", str(program), stdin="21\n")
    assert (result.exit_code, result.output) == (0, "42\n")


def test_a_failing_program_is_exit_code_1_with_its_verdict(tmp_path):
    program = tmp_path / "loop.py"
    program.write_text("while True: pass")
    result = r1("run", str(program), "--cpu-s", "0.2", stdin="")
    assert result.exit_code == 1 and "TLE" in result.output


def test_bad_arguments_are_exit_code_2(tmp_path):
    other = tmp_path / "program.xyz"
    assert r1("run", str(other)).exit_code == 2
    other.write_text("")
    assert "known are .py" in r1("run", str(other)).output
    program = tmp_path / "program.py"
    program.write_text("")
    assert "not one of auto" in r1("run", str(program), "--tier", "thick").output
    assert "token" in r1("serve", "--host", "0.0.0.0").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "PROGRAM", "--cpu-s", "1e19"], "cpu_s"),
        (["run", "PROGRAM", "--memory-mb", "99999999999999"], "memory_mb"),
        (["serve", "--port", "99999"], "65535"),
        (["serve", "--port", "TAKEN"], "in use"),
        (["serve", "--workers", "0"], "workers"),
        (["serve", "--token-file", "nope"], "nope"),
    ],
)
def test_what_cannot_be_served_is_one_sentence_and_exit_code_2(tmp_path, arguments: list[str], message):
    program = tmp_path / "program.py"
    program.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = {"PROGRAM": str(program), "TAKEN": str(taken.getsockname()[1])}
        result = r1(*(words.get(word, word) for word in arguments))
    assert result.exit_code == 2 and message in result.output, result.output


def test_sources_of_other_encodings_and_closed_inputs(tmp_path):
    program = tmp_path / "latin.py"
    program.write_bytes(b"# coding: latin-1\nprint(len('\xe9'), ascii('\xe9'))\n")
    assert r1("run", str(program), stdin="").output == "1 '\\xe9'\n"
    command = f"exec {sys.executable} -c 'from pipeline.cli import main; main()' sandbox run {program} <&-"
    closed = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (closed.returncode, closed.stdout) == (0, "1 '\\xe9'\n"), closed.stderr


def test_the_command_starts_without_heavy_imports():
    heavy = ("torch", "ray", "numpy", "rewards.sandbox.pool")
    program = f"import sys, pipeline.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"

"""`r1 serve`: what is refused before vLLM is imported, what vLLM is told; and the real server on the tiny base."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from data.chat import jinja_template, parse_completion, render_prompt
from models.checkpoint import load_tokenizer
from pipeline import serve_command
from pipeline.cli import main
from rollouts.records import Request, SamplingParams

ROOT = Path(__file__).parents[1]
BASE = ROOT / "recipes" / "tiny" / "base"


class Started(Exception):
    """In the place of vLLM."""


@pytest.fixture
def serve(monkeypatch):
    """Run `r1 serve` up to the point where vLLM starts; the command line and environment of that, or the refusal."""

    def stop(path, command, environment):
        raise Started(command, environment)

    monkeypatch.setattr(serve_command, "find_spec", lambda name: object())
    monkeypatch.setattr(serve_command, "version", lambda name: "0.32.0+cpu")
    monkeypatch.setattr(os, "execve", stop)

    def invoke(*arguments):
        result = CliRunner().invoke(main, ["serve", *map(str, arguments)])
        assert "Traceback" not in result.output
        if isinstance(result.exception, Started):
            return result.exception.args
        return result.exit_code, result.stderr

    return invoke


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    return number


def options(command):
    """The value behind each flag of vLLM's command line, None behind one without."""
    own = command[command.index("vllm.entrypoints.openai.api_server") + 1 :]
    pairs = zip(own, [*own[1:], "--"], strict=True)
    return {flag: None if value.startswith("--") else value for flag, value in pairs if flag.startswith("--")}


def test_on_a_cpu_vllm_is_told_what_it_gets_wrong_by_itself(serve, port):
    command, environment = serve(BASE, "--port", port, "--", "--max-model-len", "256", "--dtype", "bfloat16")
    told = options(command)
    assert told["--model"] == str(BASE) and told["--served-model-name"] == "base"
    assert (told["--host"], told["--port"]) == ("127.0.0.1", str(port))
    assert "--enforce-eager" in told and told["--enforce-eager"] is None
    assert json.loads(told["--compilation-config"]) == {"custom_ops": ["all", "-rotary_embedding"]}
    assert command[-4:] == ["--max-model-len", "256", "--dtype", "bfloat16"]  # later ones win
    assert command[command.index("--dtype") + 1] == "float32"
    assert told["--reasoning-parser"] == "r1" and Path(told["--reasoning-parser-plugin"]).is_file()
    assert "--chat-template" not in told
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert int(environment["VLLM_CPU_KVCACHE_SPACE"]) > 0


def test_on_a_gpu_vllm_decides_by_itself(serve, port, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(serve_command, "version", lambda name: "0.33.0")
    assert serve(BASE, "--port", port)[0] == 2  # torch finds no GPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    command, environment = serve(BASE, "--port", port, "--device", "cuda")
    assert "--dtype" not in options(command) and "VLLM_CPU_KVCACHE_SPACE" not in environment
    code, sentence = serve(BASE, "--device", "cpu")
    assert code == 2 and sentence.startswith("--device cpu: the installed vLLM is built for cuda")


def test_settings_of_the_user_come_first(serve, port, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert serve(BASE, "--port", port)[1]["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_other_templates_are_handed_over_and_an_opened_think_tag_is_known(serve, port, tmp_path):
    tokenizer = load_tokenizer(BASE)
    for template in ("plain", "r1_zero"):
        command, _ = serve(BASE, "--port", port, "--template", template)
        assert options(command)["--chat-template"] == jinja_template(tokenizer, template)
    opening = tmp_path / "opening"
    opening.mkdir()
    for file in BASE.iterdir():
        (opening / file.name).symlink_to(file)
    (opening / "chat_template.jinja").unlink()
    (opening / "chat_template.jinja").write_text(tokenizer.chat_template + "{{ '<think>\n' }}", encoding="utf-8")
    command, _ = serve(opening, "--port", port)
    assert options(command)["--reasoning-parser"] == "r1_opened"
    (opening / "chat_template.jinja").unlink()
    code, sentence = serve(opening, "--port", port)
    assert code == 2 and sentence == f"{opening}: the tokenizer has no chat template; try --template plain\n"


def test_a_bad_checkpoint_is_refused_before_vllm_is_looked_for(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_command, "find_spec", None)
    assert serve(tmp_path / "nowhere") == (2, f"{tmp_path}/nowhere: there is no such checkpoint folder\n")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    code, sentence = serve(tmp_path)
    assert code == 2 and "it has no weights" in sentence


def test_how_to_install_vllm_is_said_in_one_sentence(serve, monkeypatch):
    monkeypatch.setattr(serve_command, "find_spec", lambda name: None)
    code, sentence = serve(BASE)
    assert code == 2 and sentence.startswith("vLLM is not installed: make .venv/.vllm") and sentence.count("\n") == 1


def test_the_package_of_cpu_builds_is_known(serve, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(serve_command, "version", missing)
    code, sentence = serve(BASE, "--device", "cuda")
    assert code == 2 and "built for cpu" in sentence


def test_a_port_in_use_is_one_sentence(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        code, sentence = serve(BASE, "--port", number)
    assert code == 2 and sentence.startswith("cannot listen at 127.0.0.1: Address already in use")


# --- the real server -----------------------------------------------------------------------------------------------

QUESTIONS = ["What is 3 + 8 - 5?", "What is 9 + 4?", '计算 "2" + 6 {{ 7 }}\n', "Hello"]
LOAD_S = 600


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`r1 serve recipes/tiny/base` as a user starts it: its process and its address."""
    pytest.importorskip("vllm")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "pipeline.cli", "serve", str(BASE), "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--", "--trust-request-chat-template"],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + LOAD_S
    try:
        while not healthy(url):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield process, url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        process.kill()


def healthy(url):
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    except OSError:
        return False


def post(url, path, **body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def embedded():
    """What the embedded generator answers, greedily."""
    from rollouts.transformers_generator import TransformersGenerator

    generator = TransformersGenerator(str(BASE))
    prompts = [render_prompt(generator.tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    requests = [Request(key=str(number), prompt_ids=prompt) for number, prompt in enumerate(prompts)]
    groups = generator.sample(requests, SamplingParams(max_new_tokens=64, temperature=0))
    return [group.completions[0] for group in groups]


@pytest.mark.slow
def test_the_server_answers_as_the_embedded_generator(server, embedded):
    parts = []
    for question, completion in zip(QUESTIONS, embedded, strict=True):
        messages = [{"role": "user", "content": question}]
        answer = post(server[1], "/v1/chat/completions", messages=messages, temperature=0, max_tokens=64)
        [choice] = answer["choices"]
        reasoning, content = choice["message"]["reasoning"], choice["message"]["content"]
        assert answer["model"] == "base"
        assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == (
            completion.finish_reason, len(completion.token_ids),
        )  # fmt: skip
        parsed = parse_completion(completion.text)
        if parsed.reasoning is not None:
            assert (reasoning.strip(), (content or "").strip()) == (parsed.reasoning, parsed.final)
            parts.append(content)
        elif "<think>" not in completion.text:
            assert (reasoning, content) == (None, completion.text)
    assert any(parts)  # the tiny base thinks and answers


@pytest.mark.slow
@pytest.mark.parametrize("template", ["chat", "plain", "r1_zero"])
def test_the_server_renders_prompts_as_we_do(server, template):
    tokenizer = load_tokenizer(BASE)
    own = {"chat_template": jinja} if (jinja := jinja_template(tokenizer, template)) else {}
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        ids = post(server[1], "/tokenize", messages=messages, **own)["tokens"]
        assert ids == render_prompt(tokenizer, messages, template)


@pytest.mark.slow
def test_a_template_that_holds_one_question_says_so(server):
    jinja = jinja_template(load_tokenizer(BASE), "plain")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        post(server[1], "/v1/chat/completions", messages=messages, chat_template=jinja)
    assert b"template plain holds one user turn" in refused.value.read()


@pytest.mark.slow
def test_chat_shows_the_same_from_the_server_and_embedded(server):
    questions = "\n".join(question.strip() for question in QUESTIONS[:2])
    shown = [
        CliRunner().invoke(main, ["chat", source, "--temperature", "0", "--max-new-tokens", "200"], input=questions)
        for source in (server[1], f"{server[1]}/v1", str(BASE))
    ]
    assert [result.exit_code for result in shown] == [0, 0, 0], shown[0].output
    assert shown[0].stdout == shown[1].stdout == shown[2].stdout != ""
    long = CliRunner().invoke(main, ["chat", server[1]], input="1 + " * 600)
    assert long.exit_code == 0 and "maximum context length is 512 tokens" in long.stderr


@pytest.mark.slow
def test_ctrl_c_ends_the_server_and_leaves_no_process(server):  # the last test: nothing is served after it
    process, url = server
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(processes) > 2
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=90) == 0
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert all(left.status() == psutil.STATUS_ZOMBIE for left in alive)
    assert not healthy(url)

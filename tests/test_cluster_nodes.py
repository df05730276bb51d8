"""A cluster of a head and two workers on this machine, started with `ray start`: jobs, placement, stalls, files."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.chain,
    pytest.mark.skipif(sys.platform != "linux", reason="hides a folder from a node by a mount namespace"),
]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1",
}


class Cluster:
    """`ray start --block` three times, each in a process group of its own; stopped by these alone."""

    def __init__(self, folder: Path):
        self.shared, self.hidden = folder / "shared", folder / "hidden"
        self.shared.mkdir(), self.hidden.mkdir()
        # Short, because of the sockets in it.
        self.temp = Path(tempfile.mkdtemp(prefix="r1c", dir="/tmp"))
        self.environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | ENVIRONMENT
        self.address, self.dashboard = f"127.0.0.1:{_free_port()}", _free_port()
        self.processes: list[subprocess.Popen] = []

    def start(self) -> None:
        port = self.address.partition(":")[2]
        head = f"--head --port={port} --dashboard-port={self.dashboard} --num-cpus=1"
        self._start(head.split())
        self.add_worker()
        self.add_worker(hide=True)

    def add_worker(self, hide: bool = False) -> None:
        self._start(f"--address={self.address} --num-cpus=4".split(), hide)

    def remove(self, node: int) -> None:
        """As a machine that loses its power: nothing on it has time to say so."""
        for process in _all_of(self.processes[node]):
            process.kill()

    def actors(self, node: int) -> Iterator[dict]:
        """The cards of living actors on the node (cluster.processes), by their number in the order of `_start`."""
        for path in (self.temp / str(node)).glob("session_*/r1/*/*.json"):
            with suppress(OSError, ValueError):
                card = json.loads(path.read_text())
                if psutil.pid_exists(card["pid"]):
                    yield card

    def _start(self, arguments: list[str], hide: bool = False, attempts: int = 3) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command = [*ray, "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--num-gpus=0", *arguments]
        command.append(f"--dashboard-agent-listen-port={_free_port()}")  # else one port for all, and jobs need it
        # As on machines of their own: nodes that share a folder replace each other's copy of a job's files.
        command.append(f"--temp-dir={self.temp}/{len(self.processes)}")
        if hide:
            mount = f'mount -t tmpfs none {self.hidden} && exec "$@"'
            command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command]
        log = self.temp / f"node{len(self.processes)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.processes.append(process)
        while "Ray runtime started" not in log.read_text():  # two at once would be in each other's way on one machine
            if process.poll() is not None:  # Ray gives a node 30 s, which a busy machine may not keep
                assert attempts > 1 and "timed out during startup" in log.read_text(), log.read_text()
                return self._start(arguments, hide, attempts - 1)
            time.sleep(0.1)

    def run(self, *command: str) -> subprocess.CompletedProcess:
        environment = self.environment | {"RAY_ADDRESS": self.address}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, cwd=self.shared)

    def stop(self) -> None:
        """End the three and all that they have started, and nothing else."""
        started = [each for process in self.processes if process.poll() is None for each in _all_of(process)]
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(started, timeout=3)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=10)
        shutil.rmtree(self.temp, ignore_errors=True)


def _all_of(process: subprocess.Popen) -> list[psutil.Process]:
    started = psutil.Process(process.pid)
    return [started, *started.children(recursive=True)]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def seen(cluster) -> dict:
    """What the driver in cluster_program.py saw."""
    program = str(ROOT / "tests" / "cluster_program.py")
    done = cluster.run(sys.executable, program, str(cluster.shared), str(cluster.hidden))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_roles_get_bundles_of_their_own(seen):
    nodes = seen["nodes"]
    assert nodes["trainer 0"] == nodes["trainer 1"]  # packed: neighbouring ranks
    assert nodes["reward 0"] != nodes["reward 1"]  # spread
    assert nodes["generator again"] == nodes["generator"]  # where the one before it was


def test_a_cluster_that_is_too_small_is_said_before_anything_starts(seen):
    sentence = seen["refused"]
    assert "within 1 s: trainer: 2 x CPU 64, GPU 1 (PACK); generator: 1 x CPU 1, GPU 1" in sentence
    assert "it has 3 nodes (" in sentence and "CPU 4" in sentence
    assert "no node is large enough for one bundle of trainer and generator" in sentence
    assert not re.search(r"[A-Z]\w+Error", sentence)


def test_the_report_of_a_stall_reaches_the_node_that_hangs(seen):
    report, far = seen["report"], seen["nodes"]["trainer 0"]
    (node,) = [node for node in report["nodes"] if node["node"] == far]
    stacks = ["\n".join(actor["stack"]) for actor in node["actors"]]
    assert sum("sleep_far_away" in stack for stack in stacks) == 1
    assert len(report["nodes"]) == 3 and report["missing"] == []


def test_a_folder_or_an_input_that_a_node_does_not_see_is_named_with_the_node(seen):
    assert seen["unseen"]["shared"] == []
    (sentence,) = seen["unseen"]["hidden"]
    assert re.match(r"node [\d.]+ \(\w+\) ", sentence) and "does not see what is written into" in sentence
    assert len(seen["unseen"]["input"]) == 2 and seen["unseen"]["input"][0].endswith("has no /no/such/model")


@pytest.mark.parametrize("call", ["answered", "under way"])
def test_what_is_lost_with_a_node_names_process_and_node(lost, call):
    """Also an answer that was there, and had not been fetched."""
    sentence = r"asking: a worker process died \(Worker on node [\d.]+ \(\w{8}\), which has left the cluster: \w.*\)"
    assert re.fullmatch(sentence, lost[call])


@pytest.fixture(scope="module")
def lost(cluster) -> dict:
    """What the driver in lost_node_program.py saw, and another node in place of the lost one."""
    folder = cluster.shared / "lost"
    folder.mkdir()
    done = cluster.run(sys.executable, str(ROOT / "tests" / "lost_node_program.py"), str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    cluster.add_worker()
    return json.loads(done.stdout.splitlines()[-1])


# --- ray job submit --working-dir . -- r1 run ... ---

STEPS = 60  # enough that no machine ends the stage before a test has disturbed it
STAGE = f"zero.steps={STEPS} zero.mini_batches=2 zero.questions_per_step=2 zero.group_size=2 zero.reference_every=4 "
STAGE += "zero.trainer.checkpoint_every=2 zero.rollout.max_new_tokens=16"


def submit(cluster: Cluster, *overrides: str) -> tuple[JobSubmissionClient, str]:
    """The job of the README's last example, for one small stage."""
    r1 = Path(sys.executable).with_name("r1")
    command = f"{r1} run recipes/tiny/smoke.yaml --only zero {' '.join([STAGE, *overrides])}"
    end = time.monotonic() + 90
    while True:
        try:
            client = JobSubmissionClient(f"http://127.0.0.1:{cluster.dashboard}")
            return client, client.submit_job(entrypoint=command, runtime_env={"working_dir": str(ROOT)})
        except (ConnectionError, RuntimeError):  # the job server, or its agent, is still starting
            assert time.monotonic() < end
            time.sleep(0.5)


def ended(client: JobSubmissionClient, job: str) -> tuple[JobStatus, str]:
    end = time.monotonic() + 240
    while not (status := client.get_job_status(job)).is_terminal():
        assert time.monotonic() < end, client.get_job_logs(job)
        time.sleep(0.5)
    return status, client.get_job_logs(job)


def test_a_job_runs_is_stopped_and_goes_on(cluster):
    output = f"output={cluster.shared}/runs/smoke"
    stage = cluster.shared / "runs" / "smoke" / "zero"
    client, job = submit(cluster, output)
    end = time.monotonic() + 240
    while not list(stage.glob("checkpoints/step_*")) and not client.get_job_status(job).is_terminal():
        assert time.monotonic() < end, client.get_job_logs(job)
        time.sleep(0.2)
    client.stop_job(job)
    status, logs = ended(client, job)
    assert status == JobStatus.STOPPED and "zero: starts" in logs, logs
    client, job = submit(cluster, output)
    status, logs = ended(client, job)
    assert status == JobStatus.SUCCEEDED and "zero: resumes" in logs, logs
    steps = [json.loads(line)["step"] for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_a_job_whose_output_is_in_its_own_upload_is_refused(cluster):
    status, logs = ended(*submit(cluster))
    assert status == JobStatus.FAILED
    assert "lies in the files that `ray job submit` has unpacked, which Ray removes" in logs


# --- a node that leaves while a stage runs ---

# Bundles that fill the three nodes in one way only: the trainer has a worker node to itself, generators and a reward
# worker have the other one, and a second reward worker the head.
PLACES = "cluster.placement=disaggregated cluster.placement_deadline_s=15 cluster.cpus_per_trainer=4 "
PLACES += "cluster.cpus_per_generator=1.5 cluster.cpus_per_reward_worker=1 "
PLACES += "zero.sample_in_trainer=false zero.generator.replicas=2 zero.reward_workers.workers=2"


class Run:
    """The small stage with a node for each role."""

    def __init__(self, cluster: Cluster, name: str, places: str = PLACES, steps: int = STEPS):
        self.cluster, self.folder, self.steps = cluster, cluster.shared / "runs" / name, steps
        self.places = f"{places} zero.steps={steps}"
        self.start()

    def start(self) -> None:
        overrides = (self.places, f"output={self.folder}")
        self.client, self.job = submit(self.cluster, *overrides)
        self.until = time.monotonic() + 240

    def end(self) -> tuple[JobStatus, str]:
        return ended(self.client, self.job)

    def rows(self) -> list[dict]:
        log = self.folder / "zero" / "metrics.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def left(self) -> list[bytes]:
        return [(self.folder / "zero" / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")]

    def wait_for_node_of(self, actor: str) -> int:
        """The number of the worker node that hosts it."""
        while True:
            for node in range(1, len(self.cluster.processes)):
                if any(card["name"] == actor for card in self.cluster.actors(node)):
                    return node
            self._goes_on()

    def wait_for_step(self, step: int) -> None:
        while len(self.rows()) < step:
            self._goes_on()
        assert len(self.rows()) < self.steps, "too late to prove anything"

    def _goes_on(self) -> None:
        over = self.client.get_job_status(self.job).is_terminal() or time.monotonic() > self.until
        assert not over, self.client.get_job_logs(self.job)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(cluster) -> Run:
    run = Run(cluster, "undisturbed")
    status, logs = run.end()
    assert status == JobStatus.SUCCEEDED, logs
    return run


def assert_nothing_is_lost(run: Run, undisturbed: Run) -> None:
    assert run.left() == undisturbed.left()
    assert [row["step"] for row in run.rows()] == list(range(1, STEPS + 1))
    batches = [row for row in run.rows() if "experience/sampled" in row]
    assert len(batches) == STEPS / 2
    for batch in batches:
        parts = [batch[f"experience/{name}"] for name in ("trained", "unscorable", "dropped")]
        assert sum(parts) == batch["experience/sampled"] == 8


def test_what_a_lost_node_hosted_is_started_on_another_one(cluster, undisturbed):
    run = Run(cluster, "moved")
    node = run.wait_for_node_of("TransformersGenerator")
    cluster.add_worker()
    run.wait_for_step(2)
    assert {card["name"] for card in cluster.actors(node)} == {"TransformersGenerator", "RewardWorker"}
    cluster.remove(node)
    status, logs = run.end()
    assert status == JobStatus.SUCCEEDED and "zero: resumes" not in logs, logs
    sentence = r"TransformersGenerator on node [\d.]+ \(\w{8}\), which has left the cluster: .*; starting"
    assert re.search(sentence, logs), logs
    assert_nothing_is_lost(run, undisturbed)


def test_a_node_that_nothing_can_replace_stops_the_stage_which_resumes_when_there_is_another(cluster, undisturbed):
    run = Run(cluster, "stopped")
    node = run.wait_for_node_of("TransformersGenerator")
    run.wait_for_step(4)
    cluster.remove(node)
    status, logs = run.end()
    assert status == JobStatus.FAILED, logs
    assert "the cluster did not give the bundles that the stage asks for within 15 s" in logs, logs
    assert "it has 2 nodes" in logs and "run the same command again to resume it" in logs, logs
    cluster.add_worker()
    run.start()
    status, logs = run.end()
    assert status == JobStatus.SUCCEEDED and "zero: resumes" in logs, logs
    assert_nothing_is_lost(run, undisturbed)


def test_the_node_of_the_trainer_stops_the_stage_which_resumes_elsewhere(cluster, undisturbed):
    run = Run(cluster, "resumed")
    node = run.wait_for_node_of("PolicyTrainer")
    run.wait_for_step(4)
    cluster.remove(node)
    status, logs = run.end()
    assert status == JobStatus.FAILED, logs
    sentence = r"PolicyTrainer on node [\d.]+ \(\w{8}\), which has left the cluster: .*run the same command again"
    assert re.search(sentence, " ".join(logs.split())), logs
    cluster.add_worker()
    run.start()
    status, logs = run.end()
    assert status == JobStatus.SUCCEEDED and "zero: resumes" in logs, logs
    assert_nothing_is_lost(run, undisturbed)


# Two bundles of a generator, one on each worker node.
ENGINE = "cluster.placement=disaggregated cluster.placement_deadline_s=15 cluster.cpus_per_trainer=0.5 "
ENGINE += "cluster.cpus_per_generator=3.5 cluster.cpus_per_reward_worker=0.25 "
ENGINE += "zero.sample_in_trainer=false zero.generator.engine=vllm zero.generator.replicas=1 "
ENGINE += "zero.generator.tensor_parallel=2 zero.generator.nodes=2 zero.generator.device=cpu "
ENGINE += "zero.log_routing_groups=0"  # which vLLM does not tell from several processes on CPU


def test_one_engine_samples_on_two_nodes_and_is_started_again_when_one_leaves(cluster):
    pytest.importorskip("vllm")
    run = Run(cluster, "engine", ENGINE, steps=24)
    first, second = run.wait_for_node_of("VLLMGenerator"), run.wait_for_node_of("EngineMember")
    assert first != second
    cluster.add_worker()
    run.wait_for_step(2)
    trained_there = any(card["name"] == "PolicyTrainer" for card in cluster.actors(second))
    cluster.remove(first if trained_there else second)
    status, logs = run.end()
    assert status == JobStatus.SUCCEEDED and "zero: resumes" not in logs, logs
    # The engine ends with its part on another node, so its own node need not have left.
    assert re.search(r"VLLMGenerator on node .*; starting (it|all replicas) again", logs), logs
    assert [row["step"] for row in run.rows()] == list(range(1, 25))
    probes = [row["sync/probe_abs_mean"] for row in run.rows() if "sync/probe_abs_mean" in row]
    assert len(probes) == 12 and max(probes) < 1e-5  # the engine of other nodes has the trainer's weights

"""What the doctor makes of reports of stalls."""

import pytest

from pipeline.stall_causes import causes, working_thread

CALL = 'File "/srv/r1/cluster/actors.py", line 90 in call'


def frame(file: str, function: str) -> str:
    return f'File "{file}", line 7 in {function}'


def actor(name: str, number: int, *frames: str, **facts) -> dict:
    stack = ["Thread 0x1 (most recent call first):", frame("/usr/lib/threading.py", "wait")]
    stack += ["Current thread 0x2 (most recent call first):", *frames, CALL] if frames else []
    known = {"state": "sleeping", "busy": 0.0, "children": [], "rss_mib": 1, "pss_mib": 1, "gpu_mib": 0}
    return {"name": name, "pid": number, "actor": f"id{number}", "stack": stack, **known, **facts}


def report(*actors: dict, missing=(), **node) -> dict:
    sizes = {"memory_mib": 1000, "memory_free_mib": 500, "disks": {}, "object_store": {}}
    return {
        "waits_for": [{"actor": a["actor"], "name": a["name"]} for a in actors],
        "nodes": [{"host": "n1", "node": "1", "actors": list(actors), **sizes, **node}],
        "missing": list(missing),
    }


BARRIER = frame("/venv/torch/distributed/distributed_c10d.py", "barrier")
GATHER = frame("/venv/torch/distributed/distributed_c10d.py", "all_gather")
WRAPPER = frame("/venv/torch/distributed/c10d_logger.py", "wrapper")
LOADING = frame("/srv/r1/training/checkpoint.py", "load")


@pytest.mark.parametrize(
    ("seen", "said", "advice"),
    [
        (report(actor("Rank", 1, BARRIER, WRAPPER), actor("Rank", 2, LOADING)),
         r"1 of 2 processes wait in barrier for Rank \(process 2 on n1\), which is at load .training/checkpoint.py:7.",
         "mend what that one does"),
        (report(actor("Rank", 1, BARRIER), actor("Rank", 2)), "for Rank .process 2 on n1., which carries out no call",
         "mend what that one does"),
        (report(actor("Rank", 1, BARRIER), actor("Rank", 2, GATHER)), "ranks are in different collectives", "program"),
        (report(actor("Rank", 1, BARRIER), actor("Rank", 2, BARRIER)), "all 2 processes there are wait in barrier",
         "GLOO_SOCKET_IFNAME"),
        (report(actor("RewardWorker", 3, frame("/x/rewards/sandbox/pool.py", "read"))),
         "RewardWorker .* hangs at read .* a grader, a sandboxed program", "r1 sandbox doctor"),
        (report(actor("VLLMGenerator", 4, frame("/x/rollouts/vllm_generator.py", "step"))),
         "makes no progress at step", "generator.engine"),
        (report(actor("TransformersGenerator", 4, frame("/x/models/attention.py", "forward"), busy=0.9)),
         "is at forward .* and computes .it uses 0.9 processors", "generator.deadline_s"),
        (report(actor("PolicyTrainer", 5, frame("/x/torch/nn/linear.py", "forward"), LOADING)),
         r"hangs at forward \(nn/linear.py:7\), called from load \(training/checkpoint.py:7\)", "frame"),
        (report(actor("Worker", 6, LOADING, state="stopped")), "is stopped by a signal", "kill -CONT 6"),
        (report(actor("Worker", 6, LOADING, state="disk-sleep")), "waits in the kernel for a disk", "dmesg"),
        (report(actor("Worker", 6)), "carries out no call", "run it again"),
        (report(actor("Worker", 6, LOADING), disks={"run": {"path": "/r", "free_gib": 0.1, "total_gib": 900}}),
         "the disk of /r on n1 is full: 0.1 of 900 GiB", "free some"),
        (report(actor("Worker", 6, LOADING), disks={"run": {"path": "/r", "error": "stale"}}), "n1 cannot read /r", ""),
        (report(actor("Worker", 6, LOADING), object_store={"used_mib": 99, "size_mib": 100}), "object store", "bucket"),
        (report(actor("Worker", 6, LOADING), memory_free_mib=10), "no memory left", "memory_limit_gib"),
        (report(missing=["node 2: it has left the cluster"]), "node 2: it has left the cluster", "network"),
    ],
)  # fmt: skip
def test_a_stall_is_explained(seen, said, advice):
    import re

    first = causes(seen)
    assert any(re.search(said, cause.says) and advice in cause.do for cause in first), first


def test_a_process_that_is_not_there_is_named():
    gone = report() | {"waits_for": [{"actor": "id9", "name": "Rank"}]}
    assert causes(gone)[0].says.startswith("1 Rank that was waited for has no process")


def test_there_is_always_an_answer():
    assert causes(report())[0].says == "nothing in the report stands out"


def test_py_spy_s_stacks_are_read_too():
    stack = ['Thread 7 (idle): "MainThread"', "    wait (threading.py:320)", "    call (/srv/r1/cluster/actors.py:90)"]
    frames = working_thread([line.strip() for line in stack])
    assert frames is not None and str(frames[0]) == "wait (threading.py:320)"

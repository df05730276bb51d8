"""What Ray raises, as sentences of ours; those about nodes and stores are in the tests that lose or fill them."""

import os
import re
import subprocess
import sys

# A Ray that finds its node's memory full from the start.
PROGRAM = """
import time
import ray
from cluster.actors import ActorDied, spawn, wait

class Worker:
    def work(self):
        time.sleep(60)

ray.init(address="local", include_dashboard=False, log_to_driver=False)
try:
    wait(spawn(Worker).work.remote(), phase="working", deadline_s=50)
except ActorDied as error:
    print(error)
"""


def test_a_process_that_ray_ends_for_want_of_memory_has_died_and_says_so():
    """So pools start it again like any other; Ray has a class of errors of its own for it."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = kept | {"RAY_memory_usage_threshold": "0.01"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    (sentence,) = done.stdout.splitlines()[-1:]
    said = r"working: a worker process died \(Ray ended it, since the memory of node [\d.]+ \(\w{8}\) is nearly full: "
    said += r"[\d.]+GB used / [\d.]+GB limit; let the stage need less, or give it more nodes\)"
    assert re.fullmatch(said, sentence)

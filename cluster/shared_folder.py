"""Whether every node of the cluster sees the same files: workers read and write the run folder by its path."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.failures import node_name

_DEADLINE_S = 120.0  # a node of a cloud may first have to start a process and unpack the job's files


def unseen(folder: Path, inputs: Sequence[Path] = ()) -> list[str]:
    """One sentence per node that does not see what this process writes into `folder`, or lacks one of `inputs`.

    folder: exists. Nothing is asked where there is one node.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return []
    word = secrets.token_hex(8)
    written = folder / f".seen-{word}"
    written.write_text(word, encoding="utf-8")
    try:
        asked = {_read_on(node["NodeID"]).remote(str(written), [str(p) for p in inputs]): node for node in others}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_DEADLINE_S)
        return [
            f"{node_name(node)} {said}"
            for ref, node in asked.items()
            if (said := _said(ref, ref in answered, folder, word))
        ]
    finally:
        written.unlink(missing_ok=True)


def _said(ref: ray.ObjectRef, answered: bool, folder: Path, word: str) -> str:
    """What is wrong on a node, "" where nothing is."""
    if not answered:
        return f"has not answered within {_DEADLINE_S:.0f} s"
    try:
        text, missing = ray.get(ref)
    except Exception as error:  # the node has left, or cannot start a process
        return f"cannot be asked ({type(error).__name__}: {str(error).splitlines()[0]})"
    if text != word:
        return f"does not see what is written into {folder}"
    return f"has no {missing[0]}" if missing else ""


def _read_on(node: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(_read).options(num_cpus=0, scheduling_strategy=there, max_retries=0)


def _read(written: str, inputs: Sequence[str]) -> tuple[str, list[str]]:
    try:
        text = Path(written).read_text(encoding="utf-8")
    except OSError:
        text = ""
    return text, [path for path in inputs if not Path(path).exists()]

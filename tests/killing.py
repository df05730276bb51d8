"""Killing an actor for tests: Ray only asks for it, and who does not wait may still be answered."""

from typing import Any

from cluster.actors import ActorDied, kill, wait


def kill_and_wait(actor: Any) -> None:
    """Until its process is gone. Not for one that is started again."""
    kill(actor)
    try:
        for _ in range(1000):  # a call that was already there is answered first
            wait(getattr(actor, "_actor", actor).__ray_ready__.remote(), phase="ending an actor", deadline_s=60)
    except ActorDied:
        return
    raise AssertionError("an actor that was killed still answers")

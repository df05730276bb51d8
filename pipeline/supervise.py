"""Run a server in the foreground so that nothing of it is left: `python supervise.py HOST PORT COMMAND [ARGUMENT ...]`.

Whatever signal ends this process, the server is ended too: in order when it listens, else at once, since vLLM heeds no
signal while its engine loads. From then on its stderr is dropped, which would be tracebacks. This process stays as long
as the server, hence it is a script of its own with few imports.
"""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial

GRACE_S = 60  # for requests under way (vLLM's --shutdown-timeout), and for processes to tidy up; a second signal kills


def main(host: str, port: str, *command: str) -> int:
    """The exit code of the server, or 128 + the number of the signal that ended it, as shells say it."""
    ends, others = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], [signal.SIGALRM, signal.SIGCHLD]
    signal.pthread_sigmask(signal.SIG_BLOCK, ends + others)  # until there is a process to end
    unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, ends + others)
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=unblock
    )
    received = 0

    def hear(number: int, frame: object) -> None:
        nonlocal received
        if number == signal.SIGCHLD:
            if server.poll() is not None:
                signal.alarm(GRACE_S)
        elif number in ends and not received and _listens(host, int(port)):
            server.terminate()
            signal.alarm(GRACE_S)
        else:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
        received = received or (number if number in ends else 0)

    for number in ends + others:
        signal.signal(number, hear)
    unblock()
    assert server.stderr is not None
    for words in iter(partial(os.read, server.stderr.fileno(), 65536), b""):  # until all its processes have ended
        if not received:
            with suppress(OSError):  # the terminal may be gone
                os.write(2, words)
    code = server.wait()
    return 128 + (received or -code) if code < 0 else code


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

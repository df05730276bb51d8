"""Counts what namespaces would limit: files made and threads alive, by seccomp's reports to the zygote.

Only the tier without namespaces needs it: there a job writes to a real folder, where nothing else caps the number of
files, and an ordinary user's RLIMIT_NPROC counts all processes of that user. The counted arguments are numbers, so the
race that seccomp_unotify(2) warns of (memory changed after the check) does not exist.
"""

import errno
import fcntl
import os
import struct
from contextlib import suppress

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_REPORT_SIZE, _CONTINUE = 80, 1
_CLONE = 56


class Watch:
    """Answers the reports of one job."""

    def __init__(self, listener: int, job: int, files: int, threads: int, proc: int):
        self.listener = listener
        self._job, self._files_left, self._threads, self._proc = job, files, threads, proc

    def answer(self) -> None:
        """Read one report and let the call go on, or fail it."""
        report = bytearray(_REPORT_SIZE)
        with suppress(OSError):  # the job died in the meantime
            fcntl.ioctl(self.listener, _RECEIVE, report, True)
            key, _, _, number = struct.unpack_from("=QIIi", report)
            refusal = self._refuse_thread() if number == _CLONE else self._refuse_file()
            reply = struct.pack("=QqiI", key, 0, -refusal, 0 if refusal else _CONTINUE)
            fcntl.ioctl(self.listener, _SEND, reply)

    def _refuse_file(self) -> int:
        self._files_left -= 1
        return errno.ENOSPC if self._files_left < 0 else 0

    def _refuse_thread(self) -> int:
        try:
            stat = os.open(f"{self._job}/stat", os.O_RDONLY, dir_fd=self._proc)
            with open(stat, "rb") as file:
                threads = int(file.read().rpartition(b")")[2].split()[17])
        except (OSError, ValueError, IndexError):
            return errno.EAGAIN
        return errno.EAGAIN if threads >= self._threads else 0

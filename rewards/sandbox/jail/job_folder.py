"""The one place a job may write to, empty for every job."""

import os
import stat
from contextlib import suppress

from rewards.sandbox.jail import kernel, mounts


class JobFolder:
    """Mounted: a memory file system of our own, made anew when a job has touched it. Otherwise: a folder, emptied."""

    def __init__(self, path: str, mounted: bool):
        self.path = path
        self._mounted = mounted
        self._size: tuple[int, int] | None = None
        self._untouched: tuple[int, int] | None = None
        self._descriptor: int | None = None

    def prepare(self, space_bytes: int, files: int) -> None:
        """Make it empty, with these caps where it is mounted."""
        if not self._mounted:
            empty(self.path)
            return
        if self._size == (space_bytes, files) and self._fingerprint() == self._untouched:
            return
        self._close()
        if self._size is not None:
            kernel.unmount(self.path)
        mounts.mount_job_folder(space_bytes, files, os.geteuid())
        self._size = (space_bytes, files)
        self._untouched = self._fingerprint()

    def descriptor(self) -> int:
        """The folder itself, to open files in it."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self._descriptor

    def _fingerprint(self) -> tuple[int, int]:
        """Changes with every file made or removed and every change of the folder itself: nobody can set a ctime."""
        return os.stat(self.path).st_ctime_ns, os.statvfs(self.path).f_ffree

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def empty(path: str) -> None:
    """Remove all below `path`, which no process uses any more. Follows no link; mends permissions on its way."""
    os.chmod(path, 0o700)  # a job may have shut it; it cannot have put a link in its place
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _empty(folder)
    finally:
        os.close(folder)


def _empty(folder: int) -> None:
    # Recursion is bounded: in the tier that needs this a job may make a few dozen folders, not more.
    for name in os.listdir(folder):
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        os.chmod(name, 0o700, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            _empty(inner)
        finally:
            os.close(inner)
        with suppress(OSError):
            os.rmdir(name, dir_fd=folder)

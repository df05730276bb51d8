"""The file tree of a jail in namespaces: read-only pieces of the host, four devices, one small writable folder.

No /proc, no /etc, no /home. /dev/stdin is a copy of the job's input. Folders on the way to a piece can be passed but
not listed.
"""

import os
from collections.abc import Iterable

from rewards.sandbox.jail import kernel

JOB_FOLDER = "/box/job"  # also /tmp
_INPUT_FOLDER = "/box/input"
_STAGING = "/tmp"  # covered by the new root before that becomes the root
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_FIXED = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID


def build_root(shown: Iterable[str]) -> None:
    """Build the tree in the current mount namespace and enter it. `shown`: absolute paths, missing ones are skipped."""
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    links, folders = _resolve(shown)
    trees = {path: kernel.clone_tree(path) for path in [*folders, *filter(os.path.exists, _DEVICES)]}
    for path, tree in trees.items():
        # The flag against devices would shut the devices, too: their mounts are single files.
        kernel.restrict_mount(tree, _FIXED if path in _DEVICES else _FIXED | kernel.MOUNT_ATTR_NODEV)
    is_folder = {path: os.path.isdir(path) for path in trees}
    kernel.mount("root", _STAGING, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,nr_inodes=4096,mode=0755")
    for path, tree in trees.items():
        target = _STAGING + path
        _make_folders(os.path.dirname(target))
        if is_folder[path]:
            os.makedirs(target, 0o111, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o400))
        kernel.attach_tree(tree, target)
        os.close(tree)
    _make_folders(_STAGING + JOB_FOLDER)
    _make_folders(_STAGING + _INPUT_FOLDER)
    for link, target in {**links, "/tmp": JOB_FOLDER, "/dev/stdin": f"{_INPUT_FOLDER}/stdin"}.items():
        _make_folders(os.path.dirname(_STAGING + link))
        if not os.path.lexists(_STAGING + link):
            os.symlink(target, _STAGING + link)
    _hide_listings(_STAGING)
    kernel.enter_root(_STAGING)
    kernel.restrict_mount("/", _FIXED | kernel.MOUNT_ATTR_NODEV)


def mount_job_folder(space_bytes: int, files: int, uid: int) -> None:
    """A fresh job folder: memory file system with a cap on bytes and on files."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    options = f"size={space_bytes},nr_inodes={files},mode=0700,uid={uid}"
    kernel.mount("job", JOB_FOLDER, "tmpfs", flags, options)


def mount_input() -> int:
    """The file that /dev/stdin leads to, without /proc. Jobs see it read-only; the descriptor returned can write."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("input", _INPUT_FOLDER, "tmpfs", flags, "nr_inodes=2,mode=0555")
    file = os.open(f"{_INPUT_FOLDER}/stdin", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o400)
    seen = kernel.clone_tree(_INPUT_FOLDER)
    kernel.restrict_mount(seen, kernel.MOUNT_ATTR_RDONLY)
    kernel.unmount(_INPUT_FOLDER)
    kernel.attach_tree(seen, _INPUT_FOLDER)
    os.close(seen)
    return file


def _resolve(shown: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Symbolic links to repeat, and real paths without those inside of others."""
    links = {path: os.path.realpath(path) for path in shown if os.path.exists(path) and os.path.realpath(path) != path}
    real = sorted({os.path.realpath(path) for path in shown if os.path.exists(path)})
    outer: list[str] = []
    for path in real:
        if not any(path.startswith(other + "/") for other in outer):
            outer.append(path)
    return links, outer


def _make_folders(path: str) -> None:
    os.makedirs(path, 0o755, exist_ok=True)


def _hide_listings(root: str) -> None:
    """Folders of the new root itself become passable only; the attached pieces keep their modes."""
    device = os.stat(root).st_dev
    pending = [root]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_dev == device:
                    pending.append(entry.path)
        os.chmod(folder, 0o111)

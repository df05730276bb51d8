"""What a hostile program looks for on its host, and whether it got there."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

ANSWER = "31337"
_VARIABLE = "SBX_CANARY_TOKEN"


class Decoys:
    """Canaries in files, memory and environment, listening services, a victim process. Use it in a `with` block."""

    def __init__(self, uid: int | None = None):
        """`uid`: the user the programs run as, who must own what they could otherwise not even kill."""
        self.canary = f"CANARY-{secrets.token_hex(8)}"
        self.folder = Path(tempfile.mkdtemp(prefix="decoys-"))
        self.folder.chmod(0o777)
        self._uid = uid
        self._reached: list[str] = []
        self._name = f"decoy-{secrets.token_hex(8)}"
        self._marker = self.folder / "marker"
        self._shared = Path(f"/dev/shm/decoy_{os.getpid()}")
        home = self.folder / "home"
        (home / ".ssh").mkdir(parents=True)
        for file in (self.folder / "expected.txt", home / ".ssh" / "id_rsa", self._shared):
            file.write_text(self.canary)
            file.chmod(0o644)
        os.environ[_VARIABLE] = self.canary
        self._services = self._serve()
        self._udp = socket.socket(type=socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self._udp.setblocking(False)
        self.victim = self._make_victim()

    @property
    def hints(self) -> dict:
        return {
            "ppid": os.getpid(),
            "victim_pid": self.victim.pid,
            "tcp_port": self._services["tcp"].getsockname()[1],
            "udp_port": self._udp.getsockname()[1],
            "abstract": self._name,
            "unix_path": str(self.folder / "sock"),
            "canary_file": str(self.folder / "expected.txt"),
            "host_marker": str(self._marker),
            "shm_file": str(self._shared),
            "fake_home": str(self.folder / "home"),
            "benign_answer": ANSWER,
            "strict_net": True,
            "strict_locks": True,
        }

    def touched(self) -> list[str]:
        """What was reached since the last call; all of it is put in place again."""
        found, self._reached = sorted({f"{name} service reached" for name in self._reached}), []
        with suppress(OSError):
            self._udp.recv(1)
            found.append("udp service reached")
        if self._marker.exists():
            found.append("file made on the host")
            self._marker.unlink()
        if self.victim.poll() is not None:
            found.append("process of the host killed")
            self.victim = self._make_victim()
        return found

    def __enter__(self) -> "Decoys":
        return self

    def __exit__(self, *_: object) -> None:
        self.victim.kill()
        self.victim.wait()
        for service in self._services.values():
            service.shutdown(socket.SHUT_RDWR)  # `accept` in the thread ends
            service.close()
        self._udp.close()
        del os.environ[_VARIABLE]
        self._shared.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_victim(self) -> subprocess.Popen:
        return subprocess.Popen(["sleep", "3600"], user=self._uid, group=self._uid)

    def _serve(self) -> dict[str, socket.socket]:
        services = {
            "tcp": socket.create_server(("127.0.0.1", 0)),
            "abstract": socket.socket(socket.AF_UNIX),
            "unix": socket.socket(socket.AF_UNIX),
        }
        services["abstract"].bind(f"\0{self._name}")
        services["unix"].bind(str(self.folder / "sock"))
        (self.folder / "sock").chmod(0o777)
        for name, service in services.items():
            service.listen()
            threading.Thread(target=self._answer, args=(name, service), daemon=True).start()
        return services

    def _answer(self, name: str, service: socket.socket) -> None:
        while True:
            try:
                connection, _ = service.accept()
            except OSError:
                return
            self._reached.append(name)
            with connection, suppress(OSError):
                connection.sendall(self.canary.encode())

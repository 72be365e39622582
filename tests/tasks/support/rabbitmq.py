"""RabbitMQ as Debian has it: installed, or unpacked by .ci/run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.support.servers import free_port
from tests.support.waiting import eventually


def find_rabbitmq() -> Path | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    unpacked = cache / "tenfold" / "debian-rabbitmq" / "usr" / "lib" / "rabbitmq" / "bin" / "rabbitmq-server"
    installed = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    for path in (installed, unpacked):
        if path.is_file():
            return path
    return None


class RabbitMQServer:
    """One node on loopback, with a name daemon of its own; its data outlive :meth:`kill`."""

    def __init__(self, program: Path) -> None:
        self.program, self.port = program, free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self.folder = Path(tempfile.mkdtemp(prefix="tenfold-rabbitmq-"))
        names, distribution = free_port(), free_port()
        root = program.parents[4]
        libraries = [*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu")]
        self._environment = {
            **os.environ,
            "PATH": f"{root}/usr/lib/erlang/bin:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "HOME": str(self.folder),  # where Erlang keeps its cookie
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": "tenfold@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        (daemon,) = root.glob("usr/lib/erlang/erts-*/bin/epmd")
        self._names = subprocess.Popen([daemon, "-port", str(names), "-address", "127.0.0.1"])
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        log = self.folder / "log"
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [self.program], env=self._environment, cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        eventually(
            lambda: b"Server startup complete" in log.read_bytes() or self.process.poll() is not None,
            within_s=60,
        )
        assert self.process.poll() is None, log.read_text()

    def kill(self) -> None:
        """End the node as when its machine goes down."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def forget(self) -> None:
        """Start it without its data."""
        self.kill()
        shutil.rmtree(self.folder / "data")
        self.start()

    def close(self) -> None:
        self.kill()
        self._names.kill()
        self._names.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

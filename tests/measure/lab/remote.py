"""Another service, as the lab's services call it: each call takes a while; at most some run at a time."""

from __future__ import annotations

import http.server
import sys
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers after the server's time, when it is its turn."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        server = self.server
        with server.turns:  # type: ignore[attr-defined]
            time.sleep(server.seconds)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None:
        """Nothing."""


class Remote(http.server.ThreadingHTTPServer):
    """Answers in ``seconds``, ``at_once`` calls at a time."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, seconds: float, at_once: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seconds, self.turns = seconds, threading.BoundedSemaphore(at_once)


if __name__ == "__main__":
    remote = Remote(float(sys.argv[1]), int(sys.argv[2]))
    print(remote.server_port, flush=True)
    remote.serve_forever()

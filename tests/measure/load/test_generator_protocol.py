from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tenfold.measure.load.generator_protocol import (
    MAX_MESSAGE,
    BlockDone,
    GeneratorConnection,
    Message,
    RunOpenLoop,
    Stop,
    TrialDone,
)
from tenfold.measure.trial import Block, Endpoint, GeneratorHealth

Ends = tuple[GeneratorConnection, GeneratorConnection, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    here, there = socket.socketpair()
    yield GeneratorConnection(here), GeneratorConnection(there), there
    here.close()
    there.close()


MESSAGES: list[Message] = [
    RunOpenLoop(rate=12.5, duration_s=3, seed=1, settle_s=1, overload=False),
    Stop(settle=False),
    BlockDone(Block(0.0, 0.5, 3, 2, slow=1)),
    TrialDone(
        seconds=1.0,
        settled_s=0.1,
        generator=GeneratorHealth(0.1, 0.0, 1.0),
        endpoints=(Endpoint("GET /", 1, 0, 0, {"200": 1}, "c", "r"),),
        corrected="c",
        raw="r",
        users=1,
        requests=1,
        errors={"é": 1},
        notes={},
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_round_trip(ends: Ends, message: Message) -> None:
    here, there, _ = ends
    here.send(message)
    assert there.receive(1.0) == message


def test_many_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    here, there, _ = ends
    large = Stop(settle=True), BlockDone(Block(0, 0.5, 1, 1))
    sender = threading.Thread(target=lambda: [here.send(one) for one in large * 20_000])
    sender.start()
    assert [there.receive(5.0) for _ in range(40_000)] == list(large) * 20_000
    sender.join()


def test_partial_message_is_kept_for_the_next_call(ends: Ends) -> None:
    here, _, raw = ends
    body = b'{"type":"Stop","settle":true}'
    raw.sendall(struct.pack(">I", len(body)) + body[:5])
    with pytest.raises(TimeoutError):
        here.receive(0.01)
    raw.sendall(body[5:])
    assert here.receive(1.0) == Stop(settle=True)


@pytest.mark.parametrize(
    "nonsense",
    [struct.pack(">I", 3) + b"\x80\x04.", struct.pack(">I", MAX_MESSAGE + 1), struct.pack(">I", 2) + b"{}"],
)
def test_invalid_message_raises_eof_error(ends: Ends, nonsense: bytes) -> None:
    here, _, raw = ends
    raw.sendall(nonsense)
    with pytest.raises(EOFError):
        here.receive(1.0)


def test_closed_end_raises_on_receive_and_send(ends: Ends) -> None:
    here, there, _ = ends
    there.close()
    with pytest.raises(EOFError):
        here.receive(1.0)
    with pytest.raises(OSError):
        here.send(Stop(settle=True))

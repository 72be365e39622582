"""nginx.conf: accepted by nginx, and nothing in it but what was meant."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.deploy.nginx import ACCESS_LOG, FrontDoor, render
from tenfold.errors import SettingsError
from tenfold.settings import Settings
from tenfold.stack.programs import find_nginx


def text(**values: object) -> str:
    (file,) = render(FrontDoor(**{"listen": "127.0.0.1:18080", "upstreams": ("127.0.0.1:18081",), **values}))
    assert file.path == PurePosixPath("nginx.conf")
    return file.text


def accepted(configuration: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = find_nginx(Settings())
    if program is None:
        missing = "nginx is missing: pip install 'tenfold[stack]'"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    (folder / "nginx.conf").write_text(configuration)
    command = [program.path, "-t", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"upstreams": ("127.0.0.1:1", "127.0.0.1:2", "[::1]:3", "localhost:4")},
        {"account": ("nobody", "root")},
        {"body_bytes": 1, "connect_timeout_s": 1, "read_timeout_s": 1, "connections": 128},
    ],
)
def test_nginx_accepts_it(values: dict, tmp_path: Path) -> None:
    told = accepted(text(**values), tmp_path)
    assert told.returncode == 0, told.stderr
    assert "[emerg]" not in told.stderr


def test_nginx_would_not_accept_anything(tmp_path: Path) -> None:
    assert accepted(text().replace("proxy_pass", "proxy_past"), tmp_path).returncode != 0


@pytest.mark.parametrize(
    "values",
    [
        {"listen": "127.0.0.1:80; include /etc/passwd"},
        {"listen": "127.0.0.1"},
        {"listen": "127.0.0.1:99999"},
        {"upstreams": ()},
        {"upstreams": ("127.0.0.1:1;}",)},
        {"upstreams": ("127.0.0.1:1\nserver evil:80",)},
        {"upstreams": ("unix:/tmp/socket",)},
        {"upstreams": ("$host:80",)},
        {"account": ("nobody; load_module x", "nogroup")},
        {"account": ("nobody", "a b")},
        {"body_bytes": "1; evil on"},
        {"body_bytes": 0},
        {"read_timeout_s": True},
    ],
)
def test_a_value_that_is_more_than_a_value_is_refused(values: dict) -> None:
    with pytest.raises(SettingsError, match="nginx"):
        text(**values)


@given(st.text(max_size=40), st.sampled_from(["listen", "upstream", "user"]))
def test_no_text_opens_a_directive_of_its_own(evil: str, where: str) -> None:
    values = {
        "listen": {"listen": evil},
        "upstream": {"upstreams": (evil,)},
        "user": {"account": (evil, "nogroup")},
    }[where]
    try:
        rendered = text(**values)
    except SettingsError:
        return
    assert not re.search(r"[\s;{}#$'\"\\]", evil)
    plain = text(**({"account": ("nobody", "nogroup")} if where == "user" else {}))
    assert len(rendered.splitlines()) == len(plain.splitlines())


def test_the_access_log_has_what_a_diagnosis_needs() -> None:
    assert {
        "upstream_connect_time",
        "upstream_header_time",
        "upstream_response_time",
        "upstream_status",
        "upstream_addr",
        "upstream_cache_status",
    } <= ACCESS_LOG.keys()
    assert "escape=json" in text()
    assert "$request_uri" not in text()  # a query may hold secrets
    assert "$args" not in text()


def test_metrics_are_for_loopback_only() -> None:
    section = re.search(r"location = /metrics \{(.*?)\}", text(), re.S)[1]
    assert [line.strip() for line in section.split(";")][:3] == ["allow 127.0.0.1", "allow ::1", "deny all"]

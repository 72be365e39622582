"""The ``[verify]`` table: how ``tenfold verify`` signs in to a service, writes to it and reads from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tenfold.requestline import RequestLine

_TOKEN = re.compile(r"[!#-'*+.0-9A-Z^_`a-z|~-]*")  # RFC 9110, section 5.6.2


class VerifySettings(BaseModel):
    """The requests that the checks send. A check that needs a key which is not set is skipped.

    A request is written as ``POST /login``. A body that begins with a brace is sent as JSON, any other as a
    form; ``{user}``, ``{password}``, ``{key}``, ``{value}`` and ``{id}`` are filled in, in bodies and in
    paths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    transport: Literal["cookie", "bearer"] = Field(
        "cookie", description='how a session travels: "cookie", or "bearer" for Authorization: Bearer'
    )
    cookie: str = Field(
        "",
        description="the session's cookie; without it, it is found out at the login",
        examples=["__Host-session"],
    )
    token: str = Field(
        "token", description="bearer: where the login's JSON answer has the token, a.b for nested"
    )
    login: RequestLine = Field("", description="signs a user in", examples=["POST /login"])
    login_body: str = Field(
        '{"user": "{user}", "password": "{password}"}',
        description="the body of login: JSON, or a form such as user={user}&password={password}",
    )
    user: str = Field("", description="a user of the stack's test data", examples=["alice"])
    password: str = Field(
        "",
        repr=False,
        description="the user's password; rather in TENFOLD_VERIFY__PASSWORD than here",
        examples=["…"],
    )
    other_user: str = Field("", description="a second user, to tell sessions apart", examples=["bob"])
    other_password: str = Field(
        "",
        repr=False,
        description="the second user's password; rather in TENFOLD_VERIFY__OTHER_PASSWORD",
        examples=["…"],
    )
    logout: RequestLine = Field("", description="signs the user out", examples=["POST /logout"])
    whoami: RequestLine = Field(
        "",
        description="answers 2xx to a signed-in user only; 401, 403 or a redirect to others",
        examples=["GET /me"],
    )
    session_write: RequestLine = Field(
        "", description="puts {value} under {key} into the user's session", examples=["PUT /cart/{key}"]
    )
    session_write_body: str = Field('{"{key}": "{value}"}', description="the body of session_write")
    session_read: RequestLine = Field(
        "",
        description="answers with the values that session_write wrote, somewhere in its text",
        examples=["GET /cart"],
    )
    write: RequestLine = Field(
        "",
        description="writes to the database and must not be carried out twice; sent hundreds of times, "
        "by a signed-in user where login is set; {value} is filled in",
        examples=["POST /api/orders"],
    )
    write_body: str = Field(
        '{"value": "{value}"}',
        description="the body of write: JSON, or a form; without a {value} in it, every write has to change "
        "what read answers",
    )
    read: RequestLine = Field(
        "",
        description="shows what write wrote, to the user who wrote it; sent hundreds of times",
        examples=["GET /api/orders"],
    )
    cached: RequestLine = Field(
        "",
        description="answered from a cache, once it is filled; sent hundreds of times, by a signed-in user "
        "where login is set",
        examples=["GET /api/products/popular"],
    )
    pages: tuple[str, ...] = Field(
        (),
        description="paths of public pages and files, the most popular first; sent hundreds of times",
        examples=[["/", "/static/app.js"]],
    )
    task: RequestLine = Field(
        "",
        description="starts work in the background; sent some forty times, signed in where login is set",
        examples=["POST /reports"],
    )
    task_body: str = Field("{}", description="the body of task: JSON, or a form")
    task_id: str = Field(
        "task_id", description="where the JSON answer of task has its id; else the end of its Location is it"
    )
    task_status: RequestLine = Field(
        "", description="says what became of a task; {id} is filled in", examples=["GET /tasks/{id}"]
    )
    task_done: str = Field(
        "succeeded", min_length=1, description="what the answer of task_status contains once a task is done"
    )
    task_rate: float = Field(
        2.0, gt=0, le=100, description="tasks a second that the workers have to keep up with"
    )
    metrics: RequestLine = Field(
        "", description="answers with metrics in Prometheus' text format", examples=["GET /metrics"]
    )
    replica_share: float = Field(
        0.5, gt=0, le=1, description="the part of the transactions of read that replicas have to take"
    )
    oversize_bytes: int = Field(
        262_144, ge=4096, le=16_777_216, description="a value that no session should hold, bytes"
    )
    revocation_ms: float = Field(
        0.0,
        ge=0,
        le=10_000,
        description="how long a cache may go on accepting a revoked session, milliseconds",
    )
    plain_http: bool = Field(False, description="the service is meant for http: its cookie may lack Secure")

    @field_validator("pages")
    @classmethod
    def _pages_are_paths(cls, pages: tuple[str, ...]) -> tuple[str, ...]:
        for page in pages:
            if not re.fullmatch(r"/[!-~]*", page):
                raise ValueError(f"{page!r} is no path: it begins with a slash and has no spaces")
        return pages

    @field_validator("cookie")
    @classmethod
    def _is_a_cookie_name(cls, name: str) -> str:
        if not _TOKEN.fullmatch(name):
            raise ValueError("it has to be a cookie's name, for example __Host-session")
        return name


_FROM_SESSIONS = (
    "transport cookie token login login_body user password other_user other_password logout whoami "
    "oversize_bytes revocation_ms plain_http"
)
MOVED: Mapping[tuple[str, str], str] = {
    **{("sessions", key): key for key in _FROM_SESSIONS.split()},
    ("sessions", "write"): "session_write",
    ("sessions", "write_body"): "session_write_body",
    ("sessions", "read"): "session_read",
    ("database", "write"): "write",
    ("database", "write_body"): "write_body",
    ("database", "read"): "read",
    ("database", "replica_share"): "replica_share",
    ("balancing", "probe_read"): "read",
    ("balancing", "probe_write"): "write",
    ("balancing", "probe_write_body"): "write_body",
}
"""Former keys of other tables, and the key of ``[verify]`` that replaces each.

A pattern that gives one of these names to a key of its own takes it out of here.
"""

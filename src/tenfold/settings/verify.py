"""The ``[sessions]`` table: how ``tenfold verify`` signs in to a service, whatever keeps its sessions."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tenfold.requestline import RequestLine

_NAME = re.compile(r"[!#-'*+.0-9A-Z^_`a-z|~-]*")  # a token of RFC 9110, section 5.6.2


class SessionsSettings(BaseModel):
    """What the attacks on sessions have to know of a service; one that needs a missing key is skipped.

    A request is written as ``POST /login``. A body that begins with a brace is sent as JSON, any other as a
    form; ``{user}``, ``{password}``, ``{key}`` and ``{value}`` are filled in, in bodies and in paths.
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
        description="what is sent to sign in: JSON, or a form such as user={user}&password={password}",
    )
    user: str = Field("", description="a user of the stack's test data", examples=["alice"])
    password: str = Field(
        "",
        repr=False,
        description="the user's password; rather in TENFOLD_SESSIONS__PASSWORD than here",
        examples=["…"],
    )
    other_user: str = Field("", description="a second user, to tell sessions apart", examples=["bob"])
    other_password: str = Field(
        "",
        repr=False,
        description="the second user's password; rather in TENFOLD_SESSIONS__OTHER_PASSWORD",
        examples=["…"],
    )
    logout: RequestLine = Field("", description="signs the user out", examples=["POST /logout"])
    whoami: RequestLine = Field(
        "",
        description="answers 2xx to a signed-in user only; 401, 403 or a redirect to others",
        examples=["GET /me"],
    )
    write: RequestLine = Field(
        "", description="puts {value} under {key} into the session", examples=["PUT /cart/{key}"]
    )
    write_body: str = Field('{"{key}": "{value}"}', description="what is sent to write")
    read: RequestLine = Field(
        "",
        description="answers with the values that were written, somewhere in its text",
        examples=["GET /cart"],
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

    @field_validator("cookie")
    @classmethod
    def _is_a_cookie_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("it has to be a cookie's name, for example __Host-session")
        return name

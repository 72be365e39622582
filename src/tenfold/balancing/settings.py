"""The ``[balancing]`` table: the method, the weights, and the limits of nginx before the instances."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tenfold.balancing.upstream import WITHOUT_BACKUP, Node, Upstream, is_hash_key, is_host_name
from tenfold.errors import SettingsError

Method = Literal["least_conn", "round_robin", "random_two", "ip_hash", "hash", "sticky"]


class BalancingSettings(BaseModel):
    """The distribution of requests over instances. The defaults need no state in the instances."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Method = Field(
        "least_conn",
        description='"least_conn", "round_robin", "random_two", "ip_hash", "hash" (by hash_key) or "sticky" '
        "(a client stays with its instance)",
    )
    hash_key: str = Field(
        "uri",
        description='the key of "hash": "uri", "client", "cookie:NAME", "header:NAME" or "argument:NAME"; '
        "a request without it is hashed by its client",
    )
    weights: tuple[int, ...] = Field(
        (), description="a whole number for each instance, 1 to 1000; empty makes them equal"
    )
    backups: int = Field(
        0,
        ge=0,
        le=63,
        description="how many of the last instances get requests only when all others are down",
    )
    max_fails: int = Field(
        3, ge=0, le=1000, description="failures after which an instance is left alone for a while; 0 is never"
    )
    fail_timeout_s: int = Field(
        5,
        ge=1,
        le=3600,
        description="how long that is, and the window in which failures count, whole seconds",
    )
    keepalive: int = Field(32, ge=0, le=10_000, description="idle connections to instances that nginx keeps")
    keepalive_idle_s: float = Field(
        4.0,
        ge=0.1,
        le=3600,
        description="how long nginx keeps one, seconds: less than the instances do (uvicorn 5, granian 30), "
        "or a request meets a connection that is just being closed",
    )
    tries: int = Field(3, ge=1, le=10, description="instances that one request is sent to, at most")
    connect_timeout_s: float = Field(5.0, ge=0.1, le=75, description="longest wait for a connection, seconds")
    read_timeout_s: float = Field(
        30.0, ge=0.1, le=3600, description="longest silence of an instance or a client, seconds"
    )
    drain_timeout_s: float = Field(
        60.0,
        ge=0.1,
        le=3600,
        description="longest wait for the requests of an instance that is replaced, seconds",
    )
    client_idle_s: float = Field(
        5.0,
        ge=0,
        le=60,
        description="a client's idle connection outlives a reload by this, seconds; from nginx 1.27.4 on",
    )
    body_bytes: int = Field(
        16 * 1024 * 1024, ge=1, description="the largest request body; a larger one is answered with 413"
    )
    header_bytes: int = Field(
        16 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="the longest line of a request and the longest header; there is room for four of them",
    )
    server_names: tuple[str, ...] = Field(
        (),
        description="the names the service goes by; others are answered with 421. Empty takes any name",
        examples=[("shop.example", "*.shop.example")],
    )
    scheme: Literal["", "http", "https"] = Field(
        "",
        description='X-Forwarded-Proto for instances: "https" where a balancer in front ends TLS; '
        "empty is the scheme of the connection to nginx",
    )

    @field_validator("weights")
    @classmethod
    def _weights_are_shares(cls, weights: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= weight <= 1000 for weight in weights):
            raise ValueError("a weight is a whole number from 1 to 1000")
        return weights

    @field_validator("hash_key")
    @classmethod
    def _hash_key_names_something(cls, key: str) -> str:
        if not is_hash_key(key):
            raise ValueError('it has to be "uri", "client", "cookie:NAME", "header:NAME" or "argument:NAME"')
        return key

    @field_validator("server_names")
    @classmethod
    def _names_are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(is_host_name(name) for name in names):
            raise ValueError('a name looks like "shop.example" or "*.shop.example"')
        return names

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.backups and self.method in WITHOUT_BACKUP:
            raise ValueError(
                f'balancing.backups is {self.backups} but balancing.method is "{self.method}", which knows '
                'no backup servers; set balancing.backups = 0 or balancing.method = "least_conn"'
            )
        if self.hash_key != "uri" and self.method != "hash":
            raise ValueError(
                f'balancing.hash_key is "{self.hash_key}" but balancing.method is "{self.method}", which '
                'does not look at it; set balancing.method = "hash" or remove balancing.hash_key'
            )
        return self


def upstream(settings: BalancingSettings, addresses: Sequence[str], *, out: Collection[str] = ()) -> Upstream:
    """The upstream of ``addresses`` by these settings; addresses in ``out`` are marked as down.

    Raises:
        SettingsError: the number of weights is not that of the addresses.
    """
    weights = settings.weights or (1,) * len(addresses)
    if len(weights) != len(addresses):
        raise SettingsError(
            f"balancing.weights has {len(weights)} numbers for {len(addresses)} instances: name one for each"
        )
    first_backup = len(addresses) - settings.backups
    nodes = tuple(
        Node(address=address, weight=weight, backup=number >= first_backup, down=address in out)
        for number, (address, weight) in enumerate(zip(addresses, weights, strict=True))
    )
    return Upstream(
        nodes=nodes,
        method=settings.method,
        hash_key=settings.hash_key,
        max_fails=settings.max_fails,
        fail_timeout_s=settings.fail_timeout_s,
        keepalive=settings.keepalive,
        keepalive_idle_s=settings.keepalive_idle_s,
        tries=settings.tries,
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.read_timeout_s,
    )

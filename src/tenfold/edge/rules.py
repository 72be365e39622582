"""The policy: which rule a path has, and what a rule says. Pure.

A path is matched as it travels: percent-encoded, without its query. One that is written in an unusual way,
as ``/a//b``, ``/a/../b`` or ``/%61``, has no rule, so that no cache takes it for another (:data:`ODD_PATH`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tenfold.errors import SettingsError

__all__ = ["ODD_PATH", "EdgePolicy", "Rule", "immutable", "no_store", "private", "public"]

YEAR_S = 31_536_000
_UNRESERVED = r"2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE]"
ODD_PATH = (
    # Encodings of what needs none, of slashes, of control characters, of "%" and ";", and in lower case.
    rf"%({_UNRESERVED}|2[fF]|25|3[bB]|5[cC]|[01][0-9a-fA-F]|7[fF]|[0-9a-f]?[a-f]|[a-f][0-9A-F])"
    r"|%(?![0-9A-Fa-f]{2})|//|/\.\.?(/|$)|[\\;#]|[^!-~]|^(?!/)"
)
"""A path that no cache stores answers of, as a regular expression that Python and PCRE read alike."""

TAG = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""A tag, and a name in an A/B test."""
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_QUERY = re.compile(r"[A-Za-z0-9_.~\[\]-]{1,64}\*?")
# ISO 3166-1 alpha-2, and XK for Kosovo, which CDNs use.
_CODES = (
    "ADAEAFAGAIALAMAOAQARASATAUAWAXAZBABBBDBEBFBGBHBIBJBLBMBNBOBQBRBSBTBVBWBYBZCACCCDCFCGCHCICKCLCMCNCOCR"
    "CUCVCWCXCYCZDEDJDKDMDODZECEEEGEHERESETFIFJFKFMFOFRGAGBGDGEGFGGGHGIGLGMGNGPGQGRGSGTGUGWGYHKHMHNHRHTHU"
    "IDIEILIMINIOIQIRISITJEJMJOJPKEKGKHKIKMKNKPKRKWKYKZLALBLCLILKLRLSLTLULVLYMAMCMDMEMFMGMHMKMLMMMNMOMPMQ"
    "MRMSMTMUMVMWMXMYMZNANCNENFNGNINLNONPNRNUNZOMPAPEPFPGPHPKPLPMPNPRPSPTPWPYQARERORSRURWSASBSCSDSESGSHSI"
    "SJSKSLSMSNSOSRSSSTSVSXSYSZTCTDTFTGTHTJTKTLTMTNTOTRTTTVTWTZUAUGUMUSUYUZVAVCVEVGVIVNVUWFWSXKYEYTZAZMZW"
)
_COUNTRIES = {_CODES[at : at + 2] for at in range(0, len(_CODES), 2)}


class Rule(BaseModel):
    """What caches may do with the answers of some paths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: Literal["public", "private", "immutable", "no-store"] = Field(
        description="who may store: every cache, the user's browser, every cache for a year, none"
    )
    ttl: int = Field(0, ge=0, le=YEAR_S, description="seconds for which an answer is fresh")
    browser_ttl: int | None = Field(
        None,
        ge=0,
        le=YEAR_S,
        description="seconds in browsers, which no purge reaches; unset: ttl, and 0 for a rule with tags",
    )
    swr: int = Field(
        0, ge=0, le=YEAR_S, description="seconds after ttl in which a cache may answer while it asks again"
    )
    stale_if_error: int = Field(
        0,
        ge=0,
        le=YEAR_S,
        description="seconds after ttl in which a cache may answer for a service that is down",
    )
    tags: tuple[str, ...] = Field((), description="names by which answers are purged")
    ignore_query: tuple[str, ...] = Field(
        (), description="query parameters that change nothing; * at the end stands for the rest of a name"
    )
    vary: tuple[str, ...] = Field((), description="request headers that change the answer")
    authorization: bool = Field(
        False, description="answers to requests with Authorization are the same for everybody, too"
    )
    experiments: Mapping[str, Mapping[str, int]] = Field(
        default_factory=dict, description="A/B tests by name: variants with their percentages"
    )
    manifest: str = Field(
        "",
        description="immutable: a JSON file that lists the fingerprinted files below the pattern: Vite's "
        "manifest.json, Django's staticfiles.json, or hashed names by name; others are asked for anew",
    )
    countries: Mapping[str, str] = Field(
        default_factory=dict, description="addresses that visitors from a country are redirected to"
    )

    @field_validator("tags")
    @classmethod
    def _tags_are_names(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        for tag in tags:
            if not TAG.fullmatch(tag):
                raise ValueError(f"{tag!r} is no tag: use letters, digits, -, _, . and :, 64 at most")
        return tags

    @field_validator("vary")
    @classmethod
    def _vary_names_headers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _HEADER.fullmatch(name) or name == "*":
                raise ValueError(f"{name!r} is no request header")
        return names

    @field_validator("ignore_query")
    @classmethod
    def _queries_are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _QUERY.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a query parameter, such as ref or utm_*")
        return names

    @field_validator("experiments")
    @classmethod
    def _percentages_add_up(cls, tests: Mapping[str, Mapping[str, int]]) -> Mapping[str, Mapping[str, int]]:
        for name, variants in tests.items():
            if not all(TAG.fullmatch(word) for word in (name, *variants)):
                raise ValueError(f"experiment {name}: use letters, digits, -, _, . and : in its names")
            if not variants or min(variants.values()) < 1 or sum(variants.values()) != 100:
                raise ValueError(
                    f"experiment {name}: its percentages add up to {sum(variants.values())}: make it 100, of "
                    "whole numbers above 0"
                )
        return tests

    @field_validator("countries")
    @classmethod
    def _countries_exist(cls, countries: Mapping[str, str]) -> Mapping[str, str]:
        for country, url in countries.items():
            if country not in _COUNTRIES:
                raise ValueError(f"{country!r} is no country: write it as ISO 3166 does, for example CN")
            address = urlsplit(url)
            if (
                address.scheme not in ("http", "https")
                or not address.hostname
                or re.search(r"[^!-~]|[\"'\\${};]", url)
            ):
                raise ValueError(f"{url!r} is no address to redirect to, such as https://cn.example.com")
        return countries

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.cache in ("private", "no-store"):
            shared = ("tags", "experiments", "countries", "browser_ttl", "stale_if_error", "authorization")
            for name in shared:
                if getattr(self, name):
                    raise ValueError(f"{name} is for answers that are shared: this rule is {self.cache}")
        if self.manifest and self.cache != "immutable":
            raise ValueError("manifest is for files that never change: this rule is not immutable")
        if self.cache == "no-store" and (self.ttl or self.swr):
            raise ValueError("a rule that stores nothing has no lifetime: remove ttl and swr")
        if self.cache == "immutable" and self.model_fields_set & {
            "ttl",
            "browser_ttl",
            "swr",
            "stale_if_error",
        }:
            raise ValueError("what never changes is fresh for a year: remove its lifetimes")
        return self

    # ------------------------------------------------------------------ what it says

    @property
    def is_shared(self) -> bool:
        """Whether caches of several users may store."""
        return self.cache in ("public", "immutable")

    @property
    def shared_s(self) -> int:
        """Seconds for which a shared cache's answer is fresh."""
        return YEAR_S if self.cache == "immutable" else self.ttl if self.cache == "public" else 0

    @property
    def browser_s(self) -> int:
        """Seconds for which a browser's answer is fresh."""
        if self.cache == "immutable":
            return YEAR_S
        if self.browser_ttl is None:
            return 0 if self.tags else self.ttl
        return self.browser_ttl

    def ab(self, name: str, **percentages: int) -> Rule:
        """Return the rule with an A/B test: ``.ab("hero", A=50, B=50)``."""
        return _checked(self, experiments={**self.experiments, name: percentages})

    def geo(self, **addresses: str) -> Rule:
        """Return the rule with redirects by country: ``.geo(CN="https://cn.example.com")``."""
        return _checked(self, countries={**self.countries, **addresses})

    def ignores(self, parameter: str) -> bool:
        """Return whether a query parameter, as it is written, changes nothing."""
        return any(
            parameter.startswith(name[:-1]) if name.endswith("*") else parameter == name
            for name in self.ignore_query
        )


def _checked(rule: Rule, **changes: Any) -> Rule:
    values = {name: getattr(rule, name) for name in rule.model_fields_set} | changes
    return _make(**values)


def _make(**values: Any) -> Rule:
    try:
        return Rule(**values)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    text = first["msg"].removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def public(*, ttl: int, **options: Any) -> Rule:
    """Every cache may store the answers for ``ttl`` seconds.

    Args:
        options: of :class:`Rule`: ``swr``, ``tags``, ``ignore_query``, ``vary``, ``browser_ttl``, …

    Raises:
        SettingsError: an option is unknown, or its value impossible.
    """
    return _make(cache="public", ttl=ttl, **options)


def private(*, ttl: int = 0, **options: Any) -> Rule:
    """Only the user's browser may store the answers, for ``ttl`` seconds."""
    return _make(cache="private", ttl=ttl, **options)


def immutable(**options: Any) -> Rule:
    """Files whose names change with their content: every cache stores them for a year.

    With ``manifest=`` those that it lists; the others below the pattern are asked for anew each time.
    """
    return _make(cache="immutable", **options)


def no_store() -> Rule:
    """Nothing is stored, as for paths without a rule."""
    return _make(cache="no-store")


NOTHING_SAID = no_store()
ASKED_AGAIN = public(ttl=0)  # what the manifest of an immutable rule does not list

# ------------------------------------------------------------------ the policy


class EdgePolicy:
    """Rules by path.

    A pattern is a path; ``*`` in it stands for a part of a segment, ``**`` at its end for everything below.
    The most specific rule wins: a path without wildcards, then the one with more text before its first
    wildcard, then the longer one. Paths without a rule are private and not stored.

    Args:
        rules: by pattern.
        country_header: the request header in which a CDN that you trust names the visitor's country, such as
            ``CF-IPCountry``; nothing else is believed. Needed for rules with countries.
        tag_header: the response header for tags, which your CDN reads: ``Cache-Tag``, ``Surrogate-Key``.

    Raises:
        SettingsError: a pattern or a rule is impossible; two of equal rank match one path.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        *,
        country_header: str = "",
        tag_header: str = "Cache-Tag",
    ) -> None:
        for key, name in (("country_header", country_header or "X"), ("tag_header", tag_header)):
            if not _HEADER.fullmatch(name):
                raise SettingsError(f"edge.{key}: {name!r} is no name of a header")
        self.country_header, self.tag_header = country_header.lower(), tag_header
        patterns = [_Pattern(text, rule) for text, rule in rules.items()]
        self._patterns = sorted(patterns, key=lambda pattern: pattern.rank, reverse=True)
        for number, one in enumerate(self._patterns):
            if one.rule.countries and not country_header:
                raise SettingsError(
                    f"edge rule {one.text}: redirects by country need country_header, the header that your "
                    "CDN sets"
                )
            for other in self._patterns[number + 1 :]:
                if other.rank == one.rank and _overlap(one.segments, other.segments):
                    raise SettingsError(
                        f"edge rules {one.text} and {other.text} match the same paths and neither is more "
                        "specific: make one of them longer"
                    )

    @property
    def rules(self) -> Sequence[tuple[str, str, Rule]]:
        """Pattern, regular expression and rule of each, the most specific first."""
        return [(pattern.text, pattern.expression, pattern.rule) for pattern in self._patterns]

    def find(self, path: str) -> tuple[str, Rule]:
        """Return the pattern and the rule of a path; ``""`` and a rule that stores nothing without one.

        Args:
            path: percent-encoded, without the query.
        """
        if not is_odd(path):
            for pattern in self._patterns:
                if pattern.compiled.match(path):
                    return pattern.text, pattern.rule if pattern.lists(path) else ASKED_AGAIN
        return "", NOTHING_SAID


_ODD = re.compile(ODD_PATH)


def is_odd(path: str) -> bool:
    """Return whether a path is written in a way that caches and apps may read differently."""
    return _ODD.search(path) is not None


class _Pattern:
    def __init__(self, text: str, rule: Rule) -> None:
        self.text, self.rule = text, rule
        path, is_below = (text.removesuffix("**"), True) if text.endswith("/**") else (text, False)
        encoded = quote(path, safe="/%:@!$&'()*+,=~")
        if "**" in path or is_odd(encoded) or re.search(r"[\"{}$]", encoded):
            raise SettingsError(
                f"edge rule {text!r}: write a path such as /products, /products/* or /static/**"
            )
        plain = encoded.partition("*")[0]
        self.rank = ("*" not in encoded and not is_below, len(plain), len(encoded))
        self.segments = [*encoded.split("/")[1:-1], "**"] if is_below else encoded.split("/")[1:]
        body = "[^/]*".join(map(re.escape, encoded.split("*")))
        self.expression = f"^{body}{'.*' if is_below else ''}$"
        self.compiled = re.compile(self.expression)
        self.plain = plain
        self.files = _read_manifest(rule.manifest) if rule.manifest else None

    def lists(self, path: str) -> bool:
        """Whether a path that matches is in the rule's manifest, if it has one."""
        return self.files is None or unquote(path[len(self.plain) :]) in self.files


def _read_manifest(file: str) -> frozenset[str]:
    """The hashed names in a manifest.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        found = json.loads(Path(file).read_text())
        if isinstance(found.get("paths"), dict):  # Django's
            found = found["paths"]
        names: list[str] = []
        for value in found.values():
            if isinstance(value, str):
                names.append(value)
            elif isinstance(value, dict):  # Vite's
                names += [value["file"], *value.get("css", ()), *value.get("assets", ())]
        return frozenset(name.lstrip("/") for name in names)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SettingsError(f"the manifest {file} cannot be read ({error}): build the files first") from None


def _overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether some path matches two patterns, each a list of segments."""
    if not one or not other:
        return not one and not other
    if "**" in (one[0], other[0]):
        return True
    return _may_equal(one[0], other[0]) and _overlap(one[1:], other[1:])


def _may_equal(one: str, other: str) -> bool:
    """Whether some text matches two segments with wildcards."""
    if not one or not other:
        return set(one + other) <= {"*"}
    if one[0] == "*":
        return _may_equal(one[1:], other) or _may_equal(one, other[1:])
    if other[0] == "*":
        return _may_equal(other, one)
    return one[0] == other[0] and _may_equal(one[1:], other[1:])

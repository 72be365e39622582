"""The type of a request in the settings: ``POST /login``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_LINE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/[!-~]*)")


def _is_a_request(line: str) -> str:
    if line and not _LINE.fullmatch(line):
        raise ValueError('it has to be a method and a path, for example "POST /login"')
    return line


RequestLine = Annotated[str, AfterValidator(_is_a_request)]
"""A method, a blank and a path; or an empty text."""

"""Checks of session ids that leak: through cookie attributes, addresses and logs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.user_agent import Answer, Cookie
from tenfold.verify.sessions.target import SessionTarget, find_target

ATTRIBUTES = "session cookie attributes"
HIDDEN = "session ids stay hidden"

_LOGGED_S = 0.3  # a line about a request is written after its answer
_LONGEST_LOG = 16 * 1024 * 1024
_HEADERS = ("Location", "Content-Location", "Link", "Refresh")

# ------------------------------------------------------------------ attributes


def check_cookie_attributes(stack: Stack, settings: Settings) -> Finding:
    """Look for HttpOnly, SameSite and Secure at the session's cookie."""
    target = find_target(stack, settings.verify)
    if not target.cookie:
        return Finding(ATTRIBUTES, "there is no cookie: the session is a bearer token", Verdict.SKIP)
    cookie = _login_cookie(target)
    missing = _missing_attributes(cookie, plain_http=target.settings.plain_http)
    numbers = {"missing": len(missing)}
    if missing:
        remedy = "set Secure, HttpOnly and SameSite=Lax"
        if "Secure" in missing:
            remedy += "; or declare verify.plain_http = true"
        return Finding(ATTRIBUTES, f"{cookie.name} lacks {', '.join(missing)}", Verdict.FAIL, numbers, remedy)
    claim = f"{cookie.name}: HttpOnly, SameSite={cookie.attributes['samesite']}"
    claim += ", Secure" if "secure" in cookie.attributes else ", for plain http"
    if "secure" in cookie.attributes and not cookie.name.startswith("__Host-"):
        claim += f"; named __Host-{cookie.name}, no subdomain could set it"
    return Finding(ATTRIBUTES, claim, Verdict.PASS, numbers)


def _login_cookie(target: SessionTarget) -> Cookie:
    """The session's cookie as the login sets it, or as the answer before the login did."""
    user = target.new_user()
    answers = [user.whoami(), user.sign_in()]
    cookies = [cookie for answer in answers for cookie in answer.cookies if cookie.name == target.cookie]
    return cookies[-1] if cookies else Cookie(target.cookie, "", {})


def _missing_attributes(cookie: Cookie, *, plain_http: bool) -> list[str]:
    known = cookie.attributes
    missing = [] if "httponly" in known else ["HttpOnly"]
    same_site = known.get("samesite", "").lower()
    if same_site not in ("lax", "strict", "none"):
        missing.append("SameSite")
    if "secure" not in known and (not plain_http or same_site == "none" or cookie.name.startswith("__")):
        missing.append("Secure")
    return missing


# ------------------------------------------------------------------ leaks


def check_leaks(stack: Stack, settings: Settings) -> Finding:
    """Look for the session id in redirects and in every log of the stack."""
    target = find_target(stack, settings.verify)
    logs = {server.name: server.log for server in stack.servers}
    if stack.access_log:
        logs["nginx's access log"] = stack.access_log
    before = {name: log.stat().st_size if log.exists() else 0 for name, log in logs.items()}
    user = target.new_user()
    answers = [user.sign_in()]
    identifier = target.session_id(user)
    answers += [user.whoami()]
    if target.settings.session_write:
        answers += [user.write("kept", "0")]
    shown = [f"the header {name}" for name in _headers_with(identifier, answers)]
    if target.settings.logout:
        user.sign_out()
    shown += _logs_with(identifier, logs, before)
    numbers = {"logs": len(logs), "shown": len(shown)}
    if shown:
        remedy = "log a digest of the id, or nothing; never put it into an address"
        return Finding(HIDDEN, f"an id is shown in {', '.join(shown)}", Verdict.FAIL, numbers, remedy)
    return Finding(HIDDEN, f"in no address and in none of {len(logs)} logs", Verdict.PASS, numbers)


def _headers_with(identifier: str, answers: Iterable[Answer]) -> list[str]:
    return sorted({name for answer in answers for name in _HEADERS if identifier in answer.header(name)})


def _logs_with(identifier: str, logs: Mapping[str, Path], before: Mapping[str, int]) -> list[str]:
    time.sleep(_LOGGED_S)
    return [name for name, log in logs.items() if identifier.encode() in _read_appended(log, before[name])]


def _read_appended(log: Path, since: int) -> bytes:
    if not log.exists():
        return b""
    with log.open("rb") as file:
        file.seek(since)
        return file.read(_LONGEST_LOG)

"""Signing in, with sessions in this process's memory."""

from __future__ import annotations

import secrets
import time
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select

from shop import api, passwords
from shop.naive.database import Session
from shop.naive.models import User

SESSION_S = 8 * 60 * 60

router = APIRouter()
bearer = HTTPBearer(auto_error=False)

# token → user id and when it expires
_sessions: dict[str, tuple[int, float]] = {}


@router.post("/login")
def login(credentials: api.Credentials) -> api.Token:
    with Session() as session:
        user = session.scalar(select(User).where(User.email == credentials.email))
    if user is None or not passwords.matches(credentials.password, user.password_hash):
        raise HTTPException(401, "Wrong e-mail address or password")
    token = secrets.token_urlsafe(32)
    _sessions[token] = (user.id, time.monotonic() + SESSION_S)
    return api.Token(token=token)


def current_user_id(
    authorization: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> int:
    token = authorization.credentials if authorization else ""
    user_id, expires = _sessions.get(token, (0, 0.0))
    if expires < time.monotonic():
        _sessions.pop(token, None)
        raise HTTPException(401, "Sign in first", headers={"WWW-Authenticate": "Bearer"})
    return user_id


CurrentUserId = Annotated[int, Depends(current_user_id)]

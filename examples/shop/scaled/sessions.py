"""Who is signed in, on whichever instance asks."""

from __future__ import annotations

import os
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from sqlalchemy import select

from shop import api, passwords
from shop.scaled.database import router as database
from shop.scaled.models import User
from tenfold.sessions import ServerSessions, current
from tenfold.sessions import Session as VisitorSession
from tenfold.sessions.stores.redis import RedisStore

sessions = ServerSessions(RedisStore(os.environ["REDIS_URL"]), idle_s=8 * 60 * 60)

router = APIRouter()
Visitor = Annotated[VisitorSession, Depends(current)]


@router.post("/login")
def login(credentials: api.Credentials, visitor: Visitor) -> api.Token:
    with database.read() as session:
        user = session.scalar(select(User).where(User.email == credentials.email))
    if user is None or not passwords.matches(credentials.password, user.password_hash):
        raise HTTPException(401, "Wrong e-mail address or password")
    return api.Token(token=visitor.login(str(user.id)))


@router.post("/logout", status_code=204)
async def logout(visitor: Visitor) -> None:
    visitor.logout()


async def current_user_id(visitor: Visitor) -> int:
    if visitor.principal is None:
        raise HTTPException(401, "Sign in first", headers={"WWW-Authenticate": "Bearer"})
    return int(visitor.principal)


CurrentUserId = Annotated[int, Depends(current_user_id)]

"""The usual shape of full-stack templates: backend/app, imported as app, with migrations beside it."""

from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database import Item, get_session

api = APIRouter(prefix="/api/v1")


@api.get("/items")
def items(session: Session = Depends(get_session)) -> list[str]:
    return list(session.scalars(select(Item.name).order_by(Item.id).limit(20)))


app = FastAPI()
app.include_router(api)

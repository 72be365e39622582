"""What the probe sees of services that are not FastAPI over SQLAlchemy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest

from tenfold.callsites import CallSites
from tests.adoption.conftest import SHAPES, ServedShape, line_of

MAIN = SHAPES / "drivers" / "main.py"
Serve = Callable[..., ServedShape]


@pytest.mark.parametrize(
    ("path", "mark", "statement", "executions"),
    [
        ("/asyncpg", "asyncpg", "SELECT ?", 6),
        ("/prepared", "prepared", "SELECT ?", 1),
        ("/psycopg", "psycopg", 'SELECT ? AS "one"', 1),
        ("/async-psycopg", "async psycopg", "SELECT ?", 1),
        ("/sqlalchemy-asyncpg", "sqlalchemy asyncpg", "SELECT ?", 1),
        ("/sqlalchemy-psycopg", "sqlalchemy psycopg", "SELECT ?", 1),
        ("/many", "many", "INSERT INTO many VALUES (?+)", 1),
        ("/sqlite", "sqlite", "SELECT ? AS lite", 1),
    ],
)
def test_each_statement_is_recorded_once_with_its_line(
    serve: Serve, path: str, mark: str, statement: str, executions: int
) -> None:
    served = serve("drivers", database=True, app="main:app")
    served.get(path)  # connections are opened by the first request
    evidence = served.record(path)
    found = {(one.fingerprint, one.site): one.executions for one in evidence.statements}
    assert found.get((statement, line_of(MAIN, mark))) == executions, found
    assert sum(count for (text, _), count in found.items() if statement in text) == executions, found


def test_resetting_of_a_pool_is_a_round_trip_and_no_statement(serve: Serve) -> None:
    evidence = serve("drivers", database=True, app="main:app").record("/asyncpg")
    assert {one.fingerprint for one in evidence.statements} == {"SELECT ?", "RESET"}


def test_other_databases_are_not_asked_for_postgresql_plans(serve: Serve) -> None:
    served = serve("drivers", database=True, app="main:app")
    assert {one.database for one in served.record("/psycopg").statements} == {"postgresql"}
    assert {one.database for one in served.record("/sqlite").statements} == {"sqlite"}
    assert "SELECT 1 AS lite" not in served.collector.sql_examples().values()
    assert 'SELECT 1 AS "one"' in served.collector.sql_examples().values()


def test_flask_routes_have_their_rule_and_view(serve: Serve) -> None:
    served = serve("flask_login", app="app:app")
    evidence = served.record("/orders/17")
    (route,) = evidence.routes
    assert (route.route, route.endpoint) == ("GET /orders/<int:number>", "app.py:24")
    assert evidence.seen["requests"]


@pytest.mark.parametrize("app", ["project.wsgi:application", "project.asgi:application"])
def test_django_routes_and_orm_statements_have_their_lines(serve: Serve, app: str) -> None:
    served = serve("django_rest", database=True, app=app, prepare="python manage.py migrate")
    evidence = served.record("/api/products/", times=3)
    (route,) = evidence.routes
    assert (route.route, route.endpoint) == ("GET /api/products/", "catalogue/views.py:7")
    (repeated,) = [one for one in evidence.statements if one.repeating_requests]
    assert repeated.site == "catalogue/views.py:10"
    assert repeated.executions_max == 25
    assert "catalogue_review" in repeated.fingerprint
    assert {one.database for one in evidence.statements} == {"postgresql"}


def test_django_class_based_views_have_the_line_of_their_method(serve: Serve) -> None:
    served = serve(
        "django_rest", database=True, app="project.wsgi:application", prepare="python manage.py migrate"
    )
    (route,) = served.record("/api/products/4/").routes
    assert (route.route, route.endpoint) == ("GET /api/products/<int:number>/", "catalogue/views.py:15")


def test_line_of_a_jinja_template_is_that_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>\n{% for one in [1] %}\n\n{{ look() }}\n{% endfor %}")
    sites = CallSites(tmp_path)
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(tmp_path), autoescape=True)
    page = templates.get_template("index.html").render(look=lambda: sites.find(sys._getframe(1)).where)
    assert "index.html:4" in page

"""What is refused when an app, a task or a call is written down: one sentence each."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from tenfold.errors import SettingsError, TaskError
from tenfold.settings import Settings
from tenfold.tasks import Outbox, QueueSettings, TaskSettings, create_celery, once
from tenfold.tasks.celery import LedgerCelery
from tenfold.tasks.ledger import Ledger
from tenfold.tasks.table import create_table, table_sql

BROKER, DATABASE = "redis://localhost:1/0", "postgresql+psycopg://user@localhost:1/x"


def make_app(**options: Any) -> LedgerCelery:
    return create_celery("t", broker_url=BROKER, database_url=DATABASE, **options)


@pytest.mark.parametrize(
    ("broker", "database", "words"),
    [
        ("filesystem://", DATABASE, "a filesystem broker loses the running tasks"),
        ("sqla+postgresql://u:pw@h/d", DATABASE, "a sqla broker loses the running tasks"),
        ("memory://", DATABASE, "a memory broker loses"),
        ("http://u:secret@host", DATABASE, r"\*\*\*@host is not one of Redis, RabbitMQ or SQS"),
        (BROKER, "sqlite://", "tasks need PostgreSQL for their outbox, not sqlite"),
        (BROKER, "nonsense", "the URL of the database cannot be read"),
    ],
)
def test_brokers_and_databases_that_lose_tasks_are_refused(broker: str, database: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        create_celery("t", broker_url=broker, database_url=database)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("broker", ["redis://h/0", "rediss://h", "sentinel://h", "amqp://h", "sqs://"])
def test_brokers_that_keep_tasks_are_taken(broker: str) -> None:
    assert create_celery("t", broker_url=broker, database_url=DATABASE).conf.task_acks_late


def test_rabbitmq_gets_quorum_queues_and_confirms() -> None:
    conf = create_celery("t", broker_url="amqp://h", database_url=DATABASE).conf
    assert conf.broker_transport_options["confirm_publish"]
    assert [queue.queue_arguments["x-queue-type"] for queue in conf.task_queues] == ["quorum"]


def test_async_task_is_refused() -> None:
    async def send_email() -> None: ...

    with pytest.raises(SettingsError, match=r"send_email is async def, which Celery does not run"):
        make_app().task(send_email)


def test_shared_async_task_and_rate_limit_are_refused() -> None:
    async def shared() -> None: ...

    with pytest.raises(SettingsError, match="is async def"):
        make_app()._task_from_fun(shared, name="t.shared")  # as Celery does for @shared_task

    app = make_app()

    @app.task(name="t.limited", rate_limit="10/m")
    def limited() -> None: ...

    with pytest.raises(SettingsError, match=r"t.limited has a rate_limit"):
        limited.name  # noqa: B018 - tasks are made when they are first used


def test_task_that_may_run_longer_than_its_queue_is_refused_at_start() -> None:
    app = make_app(settings=TaskSettings(queues={"video": QueueSettings(tasks=("*.encode",))}))

    @app.task(name="t.encode", time_limit=3600)
    def encode() -> None: ...

    with pytest.raises(
        SettingsError, match=r"t.encode has time_limit=3600 but queue video ends tasks after 300"
    ):
        app.configure_worker(frozenset({"video"}), "prefork")


def test_worker_groups_share_no_keys_and_have_their_own_timeout() -> None:
    video = QueueSettings(tasks=("*.encode",), soft_limit_s=3000, hard_limit_s=3600)
    found = {}
    for queues in ({"default"}, {"video"}):
        app = make_app(settings=TaskSettings(queues={"video": video}))
        app.configure_worker(frozenset(queues), "prefork")
        found["".join(queues)] = app.conf.broker_transport_options
    assert [found[name]["visibility_timeout"] for name in ("default", "video")] == [360, 3660]
    for key in ("unacked_key", "unacked_index_key", "unacked_mutex_key"):
        assert found["default"][key] != found["video"][key]


@pytest.mark.parametrize(
    ("queues", "pool", "words"),
    [
        ({"video"}, "prefork", "no queue video: declare"),
        ({"default"}, "gevent", "start the worker without --pool gevent"),
        ({"default"}, "thread", "start the worker without --pool thread"),
    ],
)
def test_workers_that_cannot_keep_the_promises_do_not_start(queues: set[str], pool: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_app().configure_worker(frozenset(queues), pool)


def test_countdown_eta_and_chord_are_refused() -> None:
    app = make_app()

    @app.task(name="t.add")
    def add(left: int, right: int) -> int:
        return left + right

    for options in ({"countdown": 5}, {"eta": "later"}):
        with pytest.raises(SettingsError, match="delay_s"):
            add.apply_async((1, 2), **options)
    with pytest.raises(SettingsError, match="chord"):
        add.apply_async((1, 2), chord=add.s(1))


def test_arguments_are_checked_before_anything_is_sent() -> None:
    app = make_app()

    @app.task(name="t.store")
    @once
    def store(session: Session, order_id: int, *, note: str = "") -> None: ...

    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((), {}, "missing a required argument: 'order_id'"),
        ((1, 2), {}, "too many positional arguments"),
        ((1,), {"nte": "x"}, "unexpected keyword argument 'nte'"),
        ((object(),), {}, "cannot be written as JSON"),
        ((float("nan"),), {}, "cannot be written as JSON"),
        (("x" * 70_000,), {}, "70,0.. bytes long and 65,536 are allowed"),
    ]
    for args, kwargs, words in cases:
        with pytest.raises(TaskError, match=words):
            store.delay(*args, **kwargs)
        with pytest.raises(TaskError, match=words), Session() as session:
            Outbox(app).enqueue(session, store, *args, **kwargs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay_s": -1}, "delay_s is -1"),
        ({"delay_s": float("nan")}, "delay_s is nan"),
        ({"key": ""}, "a key is text of 1 to 512"),
        ({"key": 7}, "a key is text"),
    ],
)
def test_options_of_enqueue_are_checked(options: dict[str, Any], words: str) -> None:
    app = make_app()

    @app.task(name="t.ping")
    def ping() -> None: ...

    with pytest.raises(TaskError, match=words), Session() as session:
        Outbox(app).enqueue(session, ping, **options)


def test_function_that_is_no_task_is_refused() -> None:
    with pytest.raises(TaskError, match="is no task of this app"), Session() as session:
        Outbox(make_app()).enqueue(session, len)


def test_outbox_of_a_plain_celery_app_is_refused() -> None:
    from celery import Celery

    with pytest.raises(SettingsError, match="create_celery made"):
        Outbox(Celery())  # type: ignore[arg-type]


def test_once_task_is_a_plain_function_in_tests_of_ones_own() -> None:
    app = make_app()

    @app.task(name="t.twice")
    @once
    def twice(session: Session, number: int) -> int:
        return 2 * number

    with Session() as session:
        assert twice(session, 4) == 8


def test_missing_table_is_one_sentence(postgresql_server: Any) -> None:
    ledger = Ledger(postgresql_server.url, TaskSettings())
    with pytest.raises(TaskError, match=r"the tables of tasks are missing: create them with"):
        ledger.release("another worker")
    ledger.close()


def test_table_is_the_same_as_text_and_from_its_model(postgresql_server: Any) -> None:
    engine = create_engine(postgresql_server.url)

    def describe() -> list[Any]:
        with engine.connect() as connection:
            columns = connection.exec_driver_sql(
                "SELECT table_name, column_name, data_type, is_nullable, column_default "
                "FROM information_schema.columns WHERE table_name LIKE 'tenfold_task%%' ORDER BY 1, 2"
            ).all()
            indexes = connection.exec_driver_sql(
                "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'tenfold_task%%' ORDER BY 1"
            ).all()
        return [*columns, *indexes]

    def drop() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "DROP TABLE tenfold_tasks, tenfold_task_schedules, tenfold_task_workers"
            )

    create_table(engine)
    made = describe()
    drop()
    with engine.begin() as connection:
        for statement in table_sql().split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    assert describe() == made
    drop()
    engine.dispose()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"queues": {"a b": {}}}, "'a b' is no name of a queue"),
        ({"queues": {"a": {"soft_limit_s": 10, "hard_limit_s": 10}}}, "set soft_limit_s lower"),
        ({"max_retries": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_are_checked(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TaskSettings.model_validate(table)


def test_stack_refuses_an_app_that_is_no_import_string() -> None:
    with pytest.raises(ValueError, match=r"package\.module:attribute"):
        Settings.model_validate({"tasks": {"app": "shop tasks"}})

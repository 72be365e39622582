"""Session state: what statements may leave behind on a connection, so that its next user does not find it.

SET, set_config(), SET ROLE, temporary tables, LISTEN and held cursors are undone by ROLLBACK. So a session
that reads, in AUTOCOMMIT, gets a transaction as soon as it runs a statement that may set such state, and
ROLLBACK at its end; others pay nothing. Advisory locks are released after it. What ROLLBACK does not undo
(PREPARE, a COMMIT as text) costs the connection: it is closed instead of reused. A session that writes
commits its state: its connection is closed when the text of a statement sets some for longer than the
transaction.

RESET ALL and DISCARD ALL would not do: they also undo what listeners for "connect" have set, and deallocate
the driver's prepared statements.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache, partial
from typing import Any

__all__ = [
    "Effect",
    "effect_of",
    "execute",
    "execute_outside_transaction",
    "is_in_block",
    "may_have_state",
    "track_reads",
    "track_writes",
]

# In a connection record's info, which is cleared when the connection ends.
_MUST_CLOSE = "tenfold must close"
_BLOCK = "tenfold transaction block"  # BEGIN was sent on a connection in AUTOCOMMIT
_MAY_HAVE_STATE = "tenfold may have state"
_CACHED = 4096  # statements


class Effect(IntEnum):
    """The effect of a statement on the state of its session."""

    NONE = 0  # a query without functions that are not known
    POSSIBLE = 1  # a function may set something; or it ends with the transaction
    SESSION = 2  # sets something for the session, which ROLLBACK undoes
    LASTING = 3  # ROLLBACK does not undo it, or it may end the transaction


# ------------------------------------------------------------------ statements. Pure.

_TOKEN = re.compile(
    r"""
    (?P<skipped>  \s+ | --[^\n]* | /\*(?:(?!/\*|\*/).)*\*/ | (?:(?:%\(\w+\)s|\$\d+)(?:::\w+)?(?:,\s*)?)+ )
  | (?P<text>     [eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' )
  | (?P<dollars>  \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$ )
  | (?P<quoted>   "(?:[^"]|"")*" )
  | (?P<word>     [^\W\d][\w$]* )
  | (?P<unclosed> ['"] | /\* )
  | (?P<sign>     \d[\w.]* | . )
    """,
    re.S | re.X,
)
_QUERIES = {"select", "with", "values", "table", "show", "explain", "(", ""}
_CHANGES = {"insert", "update", "delete", "merge"}
_LASTING = {"abort", "begin", "commit", "deallocate", "discard", "end", "load", "prepare", "start"}
_SETTING = {"listen", "reset", "set"}
_TEMPORARY = {"temp", "temporary"}
_LOCKS = {
    f"pg_{attempt}advisory_lock{shared}" for attempt in ("", "try_") for shared in ("", "_shared")
}  # without xact: of the session
# What may stand before a parenthesis and sets nothing: keywords, types, functions of pg_catalog and tenfold.
_HARMLESS_NAMES = """
    all and any array as asc between by case cast check cross cube distinct else end except exclude
    exists explain extract fetch filter first following from full grouping group having in inner
    intersect interval into is isnull join last lateral left like limit materialized natural next not
    notnull nulls offset on or order outer over overlay partition preceding recursive right rollup row
    rows select sets similar some symmetric table tablesample then trim union using values when where
    window with within xmlelement bigint bit boolean bool bpchar char character date decimal double
    float float4 float8 int int2 int4 int8 integer json jsonb numeric precision real smallint text time
    timestamp timestamptz timetz uuid varbit varchar varying array_agg avg bit_and bit_or bool_and
    bool_or corr count covar_pop covar_samp every json_agg json_object_agg jsonb_agg jsonb_object_agg
    max min mode percentile_cont percentile_disc regr_slope stddev stddev_pop stddev_samp string_agg sum
    var_pop var_samp variance xmlagg cume_dist dense_rank first_value lag last_value lead nth_value
    ntile percent_rank rank row_number coalesce greatest least nullif ascii bit_length btrim char_length
    character_length chr concat concat_ws convert_from convert_to decode encode format initcap length
    lower lpad ltrim md5 normalize octet_length position quote_ident quote_literal quote_nullable
    regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse rpad rtrim sha224
    sha256 sha384 sha512 split_part starts_with string_to_array string_to_table strpos substr substring
    to_hex translate upper abs acos asin atan atan2 cbrt ceil ceiling cos cot degrees div exp factorial
    floor gcd lcm ln log log10 mod pi power radians random round scale sign sin sqrt tan trim_scale
    trunc width_bucket age clock_timestamp current_date current_time current_timestamp date_add date_bin
    date_part date_subtract date_trunc isfinite justify_days justify_hours justify_interval localtime
    localtimestamp make_date make_interval make_time make_timestamp make_timestamptz now
    statement_timestamp timeofday timezone to_char to_date to_number to_timestamp transaction_timestamp
    array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position
    array_positions array_prepend array_remove array_replace array_to_string array_upper cardinality
    generate_series generate_subscripts isempty lower_inc unnest upper_inc json_array_elements
    json_array_elements_text json_array_length json_build_array json_build_object json_each
    json_each_text json_extract_path json_extract_path_text json_object json_object_keys
    json_strip_nulls json_to_record json_to_recordset json_typeof jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each
    jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object
    jsonb_object_keys jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array
    jsonb_path_query_first jsonb_pretty jsonb_set jsonb_strip_nulls jsonb_to_record jsonb_to_recordset
    jsonb_typeof row_to_json to_json to_jsonb numnode phraseto_tsquery plainto_tsquery setweight strip
    to_tsquery to_tsvector ts_headline ts_rank ts_rank_cd websearch_to_tsquery col_description
    current_database current_schema current_schemas current_setting format_type gen_random_uuid
    has_schema_privilege has_table_privilege inet_client_addr inet_client_port inet_server_addr
    inet_server_port obj_description pg_backend_pid pg_column_size pg_database_size pg_get_constraintdef
    pg_get_expr pg_get_indexdef pg_get_serial_sequence pg_get_viewdef pg_is_in_recovery
    pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_relation_size
    pg_size_pretty pg_sleep pg_table_is_visible pg_table_size pg_total_relation_size pg_typeof
    to_regclass to_regtype uuidv4 uuidv7 version tenfold.bucket tenfold.key tenfold.require_epoch
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())


@lru_cache(_CACHED)
def effect_of(statement: str) -> Effect:
    """Return what a statement may do to the state of its session, as far as its text tells.

    A function that is not known to be PostgreSQL's own may do anything; one that hides in a view, an
    operator, a cast or a policy is not seen.
    """
    words: list[str] = []
    calls: set[str] = set()
    before = last = ""  # the two tokens before; of a name that is qualified the first is "."
    is_over = False
    schema = ""
    for match in _TOKEN.finditer(statement):
        kind, part = match.lastgroup, match[0].lower()
        if kind == "skipped":
            continue
        if (is_over and part != ";") or kind == "unclosed":
            return Effect.LASTING  # several statements, or a text that is read differently here and there
        if part == ";":
            is_over = True
            continue
        if not words or kind == "word":
            words.append(part)
        if part == "(" and last and (last[0] == '"' or last[0].isalpha() or last[0] == "_"):
            calls.add(f"{schema}.{last}" if before == "." and schema != "pg_catalog" else last)
        if part == ".":
            schema = last
        before, last = last, part
    return _effect(words, calls)


def _effect(words: list[str], calls: set[str]) -> Effect:
    first, second = [*words[:2], "", ""][:2]
    if first in _LASTING or (first == "rollback" and "to" not in words):
        return Effect.LASTING
    bare = {call.rpartition(".")[2].strip('"') for call in calls}
    sets = first in _SETTING and second not in {"local", "transaction", "constraints"}
    if sets or bare & (_LOCKS | {"set_config"}) or (first == "declare" and "hold" in words):
        return Effect.SESSION
    after_into = set(words[words.index("into") + 1 :][:1]) if first in _QUERIES and "into" in words else set()
    if _TEMPORARY & (set(words[:5]) if first == "create" else after_into):
        return Effect.SESSION
    is_known = first in _QUERIES and not _CHANGES & set(words)
    return Effect.NONE if is_known and calls <= _HARMLESS else Effect.POSSIBLE


def _is_local(statement: str, parameters: Any) -> bool:
    """Return whether all a statement sets is by ``set_config(…, true)``, literally or by a parameter."""
    text = statement.lower()
    if not text.lstrip().startswith(("select", "with")) or "false" in text or "advisory_lock" in text:
        return False
    values = list(parameters.values() if isinstance(parameters, dict) else parameters or ())
    if False in [value for value in values if isinstance(value, bool)]:
        return False
    local = len(re.findall(r",\s*true\s*\)", text)) + sum(value is True for value in values)
    return local >= len(re.findall(r"set_config\W", text))


# ------------------------------------------------------------------ connections


def is_in_block(info: dict[Any, Any]) -> bool:
    """Return whether a connection in AUTOCOMMIT, with this info of its record, is in a transaction now."""
    return _BLOCK in info


def may_have_state(info: dict[Any, Any]) -> bool:
    """Return whether a session that reads may have set something which its statements rely on."""
    return _MAY_HAVE_STATE in info or _MUST_CLOSE in info


def track_reads(engine: Any) -> None:
    """Give sessions that read a transaction once they may set state, and end it with ROLLBACK."""
    dialect = engine.dialect
    _listen(engine, _before_read)
    # Nothing was written: COMMIT would only keep what was set.
    dialect.do_rollback = dialect.do_commit = partial(_end_read, dialect)


def track_writes(engine: Any) -> None:
    """Close connections whose session sets state for longer than its transaction."""
    _listen(engine, _before_write)


def _listen(engine: Any, listener: Callable[..., None]) -> None:
    from sqlalchemy import event

    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        event.listen(engine.dialect, name, listener)
    event.listen(engine, "checkin", _close_marked)


def _close_marked(_: Any, record: Any) -> None:
    if _MUST_CLOSE in record.info:
        record.invalidate()


def _before_read(_: Any, statement: str, *rest: Any) -> None:
    if (effect := effect_of(statement)) is Effect.NONE:
        return
    connection = rest[-1].root_connection.connection
    record = connection._connection_record
    if record is None:  # detached: there is no next user
        return
    if effect is Effect.LASTING:
        record.info[_MUST_CLOSE] = True
        return
    record.info[_MAY_HAVE_STATE] = True
    if connection.autocommit and _BLOCK not in record.info:
        execute(connection, "BEGIN READ ONLY")
        record.info[_BLOCK] = True


def _end_read(dialect: Any, connection: Any) -> None:
    rollback = type(dialect).do_rollback  # looked up each time: the probe of `tenfold measure` may wrap it
    record = connection._connection_record
    info: dict[Any, Any] = {} if record is None else record.info
    if _MAY_HAVE_STATE not in info:
        rollback(dialect, connection)
        return
    try:
        if _BLOCK in info:
            execute(connection, "ROLLBACK")
            del info[_BLOCK]
        else:
            rollback(dialect, connection)
        execute_outside_transaction(connection, "SELECT pg_advisory_unlock_all()")
        del info[_MAY_HAVE_STATE]
    except BaseException:  # a cancellation, too: the next user must not get it
        connection.invalidate()
        raise


def _before_write(_: Any, statement: str, *rest: Any) -> None:
    effect = effect_of(statement)
    if effect < Effect.SESSION:
        return
    if effect is Effect.SESSION and _is_local(statement, rest[0] if len(rest) > 1 else None):
        return
    record = rest[-1].root_connection.connection._connection_record
    if record is not None:
        record.info[_MUST_CLOSE] = True


def execute(connection: Any, statement: str) -> Any:
    """Run a statement on a driver's connection; return its rows."""
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None
    finally:
        cursor.close()


def execute_outside_transaction(connection: Any, statement: str) -> Any:
    """Run a statement whose effect no rollback undoes."""
    dbapi = getattr(connection, "dbapi_connection", connection)
    if dbapi.autocommit:
        return execute(dbapi, statement)
    dbapi.autocommit = True
    try:
        return execute(dbapi, statement)
    finally:
        dbapi.autocommit = False

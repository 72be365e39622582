"""Every error that tenfold raises on purpose.

TenfoldError
├── SettingsError          tenfold.toml, the environment or an argument is wrong
├── DependencyError        a library, a program or a server is missing
├── StackError             a server of the stack did not start, or ended
├── ReplacementError       an instance could not be replaced; the message says what state it is in
├── ScenarioError          a locustfile cannot be loaded, or its users cannot log in
├── TargetError            the service under test cannot be reached, or load on it is not permitted
├── MeasurementError       a measurement could not be carried out
├── SignatureError         a signed or encrypted value has expired, was changed, or has another key
├── BreakerOpenError       a circuit breaker is open after repeated failures
├── PositionError          a database's log position, or a token with one, cannot be parsed
├── DatabaseError          errors of the router of primary and replicas
│   ├── ReadOnlyError      a write through a read-only session
│   ├── CommitUnknownError the connection was lost during COMMIT: the outcome is unknown
│   └── NoReplicaError     no server may serve this read now
├── PoolExhaustedError     every connection of a pool is checked out: answer 503 with Retry-After
├── DeadlineExceededError  the request's deadline has passed
├── RateStoreError         the server of the rate limits does not answer
├── ShardingError          errors of sharded databases
│   ├── ShardDownError     a shard does not answer; those of other shards are not affected
│   ├── BucketMovedError   rows are on another shard than this process knew; run() repeats by itself
│   ├── CrossShardError    a row of another key than the session's: cross-shard writes need an outbox
│   ├── QueryRefusedError  a query over all shards whose merged result would be wrong
│   ├── PageTokenError     a page's token is none of this query: answer 422
│   ├── DirectoryError     the directory of shards cannot be read, so that nothing is routed
│   └── DirectoryConflictError  another writer has changed the directory meanwhile
├── TaskError              a task cannot be enqueued: unknown, or its arguments are not JSON or too large
│   ├── TaskConflictError  its key is known, with other arguments
│   └── TaskCancelledError a running task is to end: it was cancelled, or runs elsewhere
├── SessionStoreError      the server of the sessions does not answer
└── SessionError           a session cannot be saved: not JSON, or changed too late
    ├── SessionSizeError   it is larger than allowed
    └── SessionEndedError  it was revoked, or its token replaced, while this request ran

Each message is one sentence that says what is wrong and what to do about it; the
command line prints it on stderr and exits with 2. Catch TenfoldError for all of them.
"""

from __future__ import annotations


class TenfoldError(Exception):
    """The root of everything that tenfold raises on purpose."""


class SettingsError(TenfoldError):
    """tenfold.toml, a TENFOLD_ variable or an argument cannot be accepted."""


class DependencyError(TenfoldError):
    """A library, program or server is not installed; the message says how to install it."""


class StackError(TenfoldError):
    """A server of the stack did not start or ended, or the stack's folder cannot be used."""


class ScenarioError(TenfoldError):
    """The scenario cannot be run: it does not load, or none of its users gets through ``on_start``."""


class TargetError(TenfoldError):
    """The service under test cannot be reached, or load on it was not permitted."""


class MeasurementError(TenfoldError):
    """The measurement itself failed, so that it says nothing about the service."""


class BreakerOpenError(TenfoldError):
    """A circuit breaker is open after repeated failures: this call was not sent."""


class SignatureError(TenfoldError):
    """A signed or sealed value is refused: expired, changed, too long, or made with another key."""


class PositionError(TenfoldError):
    """A log position, or a token with one, cannot be parsed."""


class DatabaseError(TenfoldError):
    """The root of the errors of the router of primary and replicas."""


class ReadOnlyError(DatabaseError):
    """A write through a read-only session was refused; nothing was changed."""


class CommitUnknownError(DatabaseError):
    """The connection was lost during COMMIT: whether the transaction was committed is unknown.

    It was not retried. Query the database for the transaction's effects before you repeat it.
    """


class NoReplicaError(DatabaseError):
    """No replica may serve this read, and the primary accepts no more of them now."""


class ReplacementError(TenfoldError):
    """An instance could not be replaced by a new one; the message says whether it gets requests now."""


class SessionError(TenfoldError):
    """A session cannot be saved: too large, not JSON, or changed after the response started."""


class SessionSizeError(SessionError):
    """A session is larger than allowed; no part of the change was saved."""


class SessionEndedError(SessionError):
    """A session was revoked, or its token replaced, while this request ran; its changes were not saved."""


class SessionStoreError(TenfoldError):
    """The server of the sessions cannot be reached; whether a write happened is unknown."""


class PoolExhaustedError(TenfoldError):
    """Every connection of a pool is checked out, and the wait timed out or the queue is full."""


class DeadlineExceededError(TenfoldError):
    """The request's deadline has passed."""


class ShardingError(TenfoldError):
    """The root of the errors of sharded databases."""


class ShardDownError(ShardingError):
    """A shard does not answer; whether the last statement took effect is unknown."""


class BucketMovedError(ShardingError):
    """The rows of this key are on another shard than this process knew: nothing was done, repeat it."""


class CrossShardError(ShardingError):
    """A row of another key than the session's was written; nothing of the transaction is kept."""


class QueryRefusedError(ShardingError):
    """A query over all shards is refused, because its merged result would be wrong."""


class PageTokenError(ShardingError):
    """The token of a page, which a client sends, is none of this query."""


class DirectoryError(ShardingError):
    """The directory of shards, or a shard that is to be administered, cannot be read or changed."""


class DirectoryConflictError(ShardingError):
    """Another writer changes the directory, or has changed it since it was read; nothing was changed."""


class TaskError(TenfoldError):
    """A task, its arguments or its result cannot be taken."""


class TaskConflictError(TaskError):
    """This key has been enqueued before, with other arguments."""


class TaskCancelledError(TaskError):
    """The running task is to end: it was cancelled, or another run of it is valid."""


class RateStoreError(TenfoldError):
    """The server of the rate limits cannot be reached, or does not answer in time."""

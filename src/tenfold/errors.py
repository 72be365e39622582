"""Every error that tenfold raises on purpose.

TenfoldError
├── SettingsError          tenfold.toml, the environment or an argument is wrong
├── DependencyError        a library, a program or a server is missing
├── StackError             a server of the stack did not start, or ended
├── ReplacementError       an instance could not be replaced; the message says what state it is in
├── ScenarioError          a locustfile cannot be loaded, or its users cannot log in
├── TargetError            the service under test cannot be reached, or may not be loaded
├── MeasurementError       a measurement could not be carried out
├── SignatureError         a signed or encrypted value has expired, was changed, or is not ours
├── BreakerOpenError       what is asked failed repeatedly, and is left alone for a while
├── PositionError          a database's log position, or a token of one, cannot be read
├── DatabaseError          what the router of primary and replicas reports
│   ├── ReadOnlyError      something was written through a session that only reads
│   ├── CommitUnknownError the connection was lost during COMMIT: written or not, nobody knows
│   └── NoReplicaError     no server may take this read now
├── PoolExhaustedError     no connection to the database is to be had: 503, and come back
├── DeadlineExceededError  nobody waits for the result any more
├── RateStoreError         the server that counts for rate limits does not answer
├── SessionStoreError      the server that keeps sessions does not answer
└── SessionError           a session cannot be kept as it is: not JSON, or changed too late
    ├── SessionSizeError   it holds more than it may
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
    """Something that has to be installed is not; the message names the way to get it."""


class StackError(TenfoldError):
    """A server of the stack did not start, ended, or left its place in an unusable state."""


class ScenarioError(TenfoldError):
    """The scenario cannot be run: it does not load, or none of its users gets through ``on_start``."""


class TargetError(TenfoldError):
    """The service under test cannot be reached, or nobody said that it may be loaded."""


class MeasurementError(TenfoldError):
    """The instrument itself failed, so that nothing can be said about the service."""


class BreakerOpenError(TenfoldError):
    """What is asked failed repeatedly: it is left alone for a while, and this call did not reach it."""


class SignatureError(TenfoldError):
    """A signed or sealed value cannot be accepted: expired, changed, too long, or made with another key."""


class PositionError(TenfoldError):
    """A log position, or a token that carries one, cannot be read."""


class DatabaseError(TenfoldError):
    """The root of what the router of primary and replicas reports."""


class ReadOnlyError(DatabaseError):
    """Something was written through a session that only reads; nothing was changed."""


class CommitUnknownError(DatabaseError):
    """The connection was lost during COMMIT: whether the transaction was committed is unknown.

    Nothing was tried again. Ask the database for what the transaction would have left before you repeat it.
    """


class NoReplicaError(DatabaseError):
    """No replica may take this read, and the primary takes no more of them now."""


class ReplacementError(TenfoldError):
    """An instance could not be replaced by a new one; whether it gets requests now is in the message."""


class SessionError(TenfoldError):
    """A session cannot be kept as it is: too large, not JSON, or changed after the answer began."""


class SessionSizeError(SessionError):
    """A session would hold more than it may; nothing of the change was kept."""


class SessionEndedError(SessionError):
    """A session was revoked, or its token replaced, while this request ran; its changes were not kept."""


class SessionStoreError(TenfoldError):
    """The server that keeps sessions cannot be reached; whether a write happened is unknown."""


class PoolExhaustedError(TenfoldError):
    """Every connection of a pool is taken: it was waited for in vain, or too many wait already."""


class DeadlineExceededError(TenfoldError):
    """The time that the request had is over; nobody waits for the result."""


class RateStoreError(TenfoldError):
    """The server that counts for rate limits cannot be reached, or does not answer in time."""

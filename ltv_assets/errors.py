"""The failures the project raises on purpose.

Two families, because they are treated differently: a *permanent* failure stays the same however often it is retried
(bad data, bad configuration, a broken model file); a *transient* one may pass (a lock that is held, a service that is
down), and only it is retried. Every message names what is at fault, what was expected, what was found and the remedy.
"""

from __future__ import annotations


class LtvError(Exception):
    """Base of every error raised on purpose; its text is meant for a person."""


class PermanentError(LtvError):
    """Retrying changes nothing: data, configuration or code must change first."""


class TransientError(LtvError):
    """May pass by itself (a held lock, a full disk, an unreachable service); safe to retry a bounded number of times."""


class ConfigError(PermanentError):
    """The configuration is wrong; raised before any work starts, naming file, key and line."""


class DataError(PermanentError):
    """Input data breaks the contract in a way that cannot be quarantined or degraded."""


class ModelFileError(PermanentError):
    """A stored model or plan is missing, torn, foreign or does not belong to what it is used with."""


class StaleError(PermanentError):
    """A partition needed upstream is missing, failed its checks or was built from other inputs."""

"""One family of errors. Each message says what is wrong and what to do about it."""


class ResearchError(Exception):
    """Root of every error that this project raises on purpose."""


class ConfigurationError(ResearchError, ValueError):
    """A setting is unknown, missing or contradicts another one; raised before any work begins."""


class AssetError(ResearchError):
    """A model, corpus, index or question set is missing, corrupt or not the one expected.

    No `OSError`: who handles those of the system would take a finished message for one.
    """


class ProtocolError(ResearchError, ValueError):
    """Tokens or text violate the episode protocol."""


class ContextFullError(ProtocolError):
    """A prompt leaves no room in the model's context."""


class ServiceError(ResearchError, RuntimeError):
    """A service could not be reached, or answered with an error or with nonsense, after every allowed retry.

    Attributes:
        status: of HTTP, if the service answered with an error.
        reason: in a word, for counters: `unreachable` (no connection), `disconnected` (it broke), `timeout`, `busy`,
            `http_<status>` of a fault, `refused`, `nonsense`, or `fault`.
    """

    def __init__(self, message: str, status: int | None = None, *, reason: str = "fault") -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class ServiceBusyError(ServiceError):
    """A service is alive but refuses more work for now; it may say for how many seconds."""

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None, *, reason: str = "busy"
    ) -> None:
        super().__init__(message, status, reason=reason)
        self.retry_after = retry_after


class ServiceRefusalError(ServiceError):
    """A service refuses until a person has changed something there, such as a budget that is spent.

    Asking again is in vain. What goes on without an answer would leave out whatever needs one, so it ends.
    """


class ConditionsChangedError(ResearchError, RuntimeError):
    """The weights or the index that answer are not those measured so far."""


class TrainingError(ResearchError, RuntimeError):
    """Training cannot continue safely."""

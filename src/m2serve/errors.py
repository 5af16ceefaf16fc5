"""Errors a person can act on.

`str(error)` is one sentence or two: what happened, the offending value, what to do. The command
prints it without a traceback and exits with `exit_code`; the server turns a RequestError into the
HTTP status it carries. Anything that is not an M2Error is a bug of ours and keeps its traceback.
"""


class M2Error(Exception):
    """Base of everything a user may see; `exit_code` is what the command ends with."""

    exit_code = 1


class UsageError(M2Error):
    """The command line asks for something that does not exist or cannot be combined."""

    exit_code = 2


class ConfigError(M2Error):
    """config.json (or a file beside it) describes something that is not a MiniMax-M2 we can run."""


class CheckpointError(M2Error):
    """A tensor or a file of the checkpoint is missing, extra, misshapen, truncated or poisoned."""


class ResourceError(M2Error):
    """The machine lacks what was asked for: memory for the KV cache, a device, a free port."""


class EngineDeadError(M2Error):
    """The engine process is gone or starting; the request may be sent again later."""


class RequestError(M2Error):
    """A request that cannot be served as it was sent.

    `status` is the HTTP status, `param` the JSON path of the offending field ("messages[3].role"),
    `code` a stable machine-readable word ("context_length_exceeded").
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class OverloadedError(RequestError):
    """The queue is full; `retry_after_s` is sent as Retry-After."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, code="overloaded", status=503)
        self.retry_after_s = retry_after_s

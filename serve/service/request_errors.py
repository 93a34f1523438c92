"""Errors of requests with their HTTP status."""

from dreampose.errors import InputError
from serve.service.records import JobError


class RequestError(Exception):
    """A request that cannot be served.

    Invalid inputs raise `InputError` instead.

    Attributes:
        status: HTTP status.
        code: for programs.
        message: one sentence for users.
        field: the field at fault, if any.
        retry_after: seconds after which to retry; 0 if a retry cannot help.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after: float = 0,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.field, self.retry_after = field, retry_after


def not_found(kind: str, name: str) -> RequestError:
    """404 for ids that do not exist or belong to another key, without distinction."""
    return RequestError(404, "not_found", f"no {kind} has the id {name[:120]!r}", field="id")


def busy(message: str, retry_after: float) -> RequestError:
    """429 with the seconds after which to retry."""
    return RequestError(429, "rate_limit_exceeded", message, retry_after=max(1.0, retry_after))


def job_error(error: BaseException, code: str, timeout_s: float) -> JobError:
    """Reason of failed work for its API object.

    Args:
        error: that ended the work.
        code: if the error is neither an InputError nor a timeout.
        timeout_s: time limit of the work.
    """
    if isinstance(error, TimeoutError):
        message = f"the work took longer than the limit of {timeout_s:g} s"
        return JobError(code="timed_out", message=message)
    code = "invalid_input" if isinstance(error, InputError) else code
    return JobError(code=code, message=reason(error))


def reason(error: BaseException) -> str:
    """One-line message of an error, without the remote traceback that Ray adds."""
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:500]}"

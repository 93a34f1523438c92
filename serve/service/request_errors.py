"""Requests that cannot be answered as they are, each with its HTTP status. Knows no web framework.

What is wrong with an input itself is an `InputError`; here is what depends on who asks and when.
"""

from dreampose.errors import InputError
from serve.service.records import Fault


class RequestError(Exception):
    """A request that is refused in one sentence.

    Attributes:
        status: HTTP status.
        code: for programs.
        message: for people.
        field: the field at fault, if one is.
        retry_after: seconds after which another try may succeed; 0 where none will.
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
    """There is no such thing, or it belongs to another key: the answer does not tell which."""
    return RequestError(404, "not_found", f"id must be of a {kind}, got {name[:120]!r}", field="id")


def busy(message: str, retry_after: float) -> RequestError:
    """Too much at once: try again later."""
    return RequestError(429, "rate_limit_exceeded", message, retry_after=max(1.0, retry_after))


def fault(error: BaseException, code: str, timeout_s: float) -> Fault:
    """What is told of work that an error ended.

    Args:
        error: that ended it.
        code: where neither the input nor the time was at fault.
        timeout_s: how long the work was let.
    """
    if isinstance(error, TimeoutError):
        message = f"the work must end within {timeout_s:g} s, got no end"
        return Fault(code="timed_out", message=message)
    code = "invalid_input" if isinstance(error, InputError) else code
    return Fault(code=code, message=reason(error))


def reason(error: BaseException) -> str:
    """An error in one sentence, without the trace that Ray adds to what a replica raised."""
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:500]}"

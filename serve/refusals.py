"""Requests that cannot be answered as they are, each with its HTTP status. Knows no web framework.

What is wrong with an input itself is an `InputError`; here is what depends on who asks and when.
"""

from dreampose.errors import InputError


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


def reason(error: BaseException) -> str:
    """An error in one sentence, without the trace that Ray adds to what a replica raised."""
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:500]}"

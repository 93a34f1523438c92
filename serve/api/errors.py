"""Error responses of the API."""

import math
from typing import Any, Literal

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from serve.service.metrics import Metrics
from serve.service.request_errors import RequestError


class ErrorDetail(BaseModel):
    """What was wrong with a request."""

    message: str = Field(description="one sentence for users")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    code: str = Field(description="for programs")
    param: str | None = Field(description="the field at fault, if any")


class ErrorBody(BaseModel):
    """Body of every error response."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is rejected, with the reason."},
    429: {
        "model": ErrorBody,
        "description": "The queue is full, or a rate or limit of the key is reached.",
        "headers": {
            "Retry-After": {
                "description": "seconds after which to retry",
                "schema": {"type": "integer", "minimum": 1},
            }
        },
    },
    "5XX": {"model": ErrorBody, "description": "The service failed."},
}
"""For the OpenAPI document."""


class BodyLimitError(HTTPException):
    """Raised while a body is read, where FastAPI passes on no other exception."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


def error_response(error: RequestError, metrics: Metrics, *, close: bool = False) -> JSONResponse:
    """The error object that clients of the videos API expect.

    Args:
        error: what is wrong.
        metrics: counts errors.
        close: end the connection after the response, since the body of the request was not read.
    """
    metrics.count("dreampose_refused", code=error.code)
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    detail = ErrorDetail(
        message=error.message,
        type="rate_limit_error" if error.status == 429 else kind,
        code=error.code,
        param=error.field,
    )
    headers: dict[str, str] = {}
    if error.retry_after:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if close:
        headers["Connection"] = "close"
    body = ErrorBody(error=detail).model_dump()
    return JSONResponse(body, status_code=error.status, headers=headers)

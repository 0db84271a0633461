"""Domain error -> problem+json (RFC 9457). The one table that knows status codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from edgefleet_cloud import errors
from edgefleet_shared.errors import (
    EdgeFleetError,
    IncompatibleError,
    InvalidInputError,
    TrustError,
    UnavailableError,
)

TYPE_BASE = "https://edgefleet.dev/problems/"
MEDIA_TYPE = "application/problem+json"

# A code decides before a class; a class before its bases.
STATUS_BY_CODE: Mapping[str, int] = {
    "page_token": 400,
    "order_by": 400,
    "invalid_filter": 400,
    "idempotency_key": 400,
    "metadata_version": 409,
    "precondition_required": 428,
    "transition": 409,
}
STATUS_BY_CLASS: Mapping[type[EdgeFleetError], int] = {
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.PreconditionError: 412,
    errors.RangeError: 416,
    errors.TooLargeError: 413,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.TooManyAttemptsError: 429,
    InvalidInputError: 422,
    TrustError: 422,
    IncompatibleError: 422,
    UnavailableError: 503,
    EdgeFleetError: 500,
}


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it, with a stable code and what to do next."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": TYPE_BASE + "not_found",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "There is no model 'digits'.",
                    "code": "not_found",
                    "hint": "GET /v1/models lists them.",
                    "request_id": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    request_id: str = ""
    errors: list[FieldProblem] | None = None


def status_of(error: EdgeFleetError) -> int:
    """Return the HTTP status of a domain error."""
    if error.code in STATUS_BY_CODE:
        return STATUS_BY_CODE[error.code]
    return next(STATUS_BY_CLASS[kind] for kind in type(error).__mro__ if kind in STATUS_BY_CLASS)


def problem(
    request_id: str,
    status: int,
    code: str,
    detail: str,
    *,
    hint: str = "",
    fields: Sequence[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """Return an error response; `extra` members stand beside the standard ones."""
    body = Problem(
        type=TYPE_BASE + code,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        hint=hint,
        request_id=request_id,
        errors=list(fields) if fields else None,
    )
    return JSONResponse(
        {**body.model_dump(exclude_none=True), **(extra or {})},
        status_code=status,
        media_type=MEDIA_TYPE,
        headers=dict(headers or {}),
    )


def from_domain(request_id: str, error: EdgeFleetError) -> JSONResponse:
    """Return the response of a domain error."""
    status = status_of(error)
    headers = {
        **{401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status, {}),
        **getattr(error, "headers", {}),
    }
    extra = getattr(error, "extra", None)  # members that one problem alone has
    return problem(
        request_id, status, error.code, error.message, hint=error.hint, headers=headers, extra=extra
    )


def install(app: FastAPI) -> None:
    """Have the app answer every error as problem+json; `middleware` sees to the unexpected."""

    @app.exception_handler(EdgeFleetError)
    async def domain(request: Request, error: EdgeFleetError) -> JSONResponse:
        return from_domain(_id(request), error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        fields = [
            FieldProblem(field=".".join(map(str, e["loc"])), message=e["msg"])
            for e in error.errors()
        ]
        return problem(
            _id(request),
            422,
            "validation",
            "The request does not fit the API: " + "; ".join(map(_sentence, fields[:3])) + ".",
            hint="/v1/openapi.json describes every request.",
            fields=fields,
        )

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return problem(
            _id(request),
            error.status_code,
            code,
            f"{request.method} {request.url.path[:200]}: {error.detail}.",
            hint="/v1/openapi.json lists the routes.",
            headers=error.headers,
        )


def _sentence(field: FieldProblem) -> str:
    return f"{field.field}: {field.message}"


def _id(request: Request) -> str:
    return str(request.state.request_id)

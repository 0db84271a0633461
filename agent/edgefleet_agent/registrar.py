"""Asks the fleet manager over HTTP where no token is needed: enrolment and renewal."""

from __future__ import annotations

import json
from collections.abc import Mapping

import urllib3

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError, UnavailableError

TIMEOUT_S = 30.0
ANSWER_MAX_BYTES = 1024 * 1024


def post(url: str, body: Mapping[str, str], what: str, hint: str) -> bytes:
    """Post a JSON document and return the answer's body.

    Args:
        url: Where to.
        body: The document.
        what: What is asked for, for error messages: `enrolment` or `renewal`.
        hint: What to do if it is refused and the fleet manager says nothing about that.

    Raises:
        UnavailableError: The fleet manager does not answer (`fleet_manager_unreachable`), or fails.
        InvalidInputError: It refuses; its own code and hint.
    """
    try:
        response = urllib3.request(
            "POST",
            url,
            body=strict_json.encode(body),
            headers={"Content-Type": "application/json"},
            timeout=TIMEOUT_S,
            retries=False,
            preload_content=False,
        )
        try:
            data = response.read(ANSWER_MAX_BYTES)
        finally:
            response.close()
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise UnavailableError(
            f"The fleet manager at {url} does not answer: {error}.",
            code="fleet_manager_unreachable",
            hint="Check the network and run the same command again; nothing is used up.",
        ) from error
    if response.status in {200, 201}:
        return data
    raise _refusal(response.status, data, what, hint)


def _refusal(
    status: int, body: bytes, what: str, default: str
) -> InvalidInputError | UnavailableError:
    try:
        problem = json.loads(body)
        detail, code = str(problem["detail"]), str(problem.get("code", f"{what}_refused"))
        hint = str(problem.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        detail, code, hint = f"It answered {status}.", f"{what}_refused", ""
    if status >= 500:
        return UnavailableError(f"The fleet manager failed: {detail}", code=code, hint=hint)
    return InvalidInputError(
        f"The fleet manager refused the {what}: {detail}", code=code, hint=hint or default
    )

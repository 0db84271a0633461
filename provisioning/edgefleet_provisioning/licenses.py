"""Licences by their SPDX names."""

from __future__ import annotations

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from edgefleet_shared.errors import InvalidInputError

NOASSERTION = "NOASSERTION"
"""SPDX's word for: nobody says. A manifest has '' for it."""


def check(expression: str) -> str:
    """Return a licence expression in the spelling of the SPDX list; '' if nobody says.

    Raises:
        InvalidInputError: It is none, or names a licence that is not on the list.
    """
    if expression in {"", NOASSERTION}:
        return ""
    try:
        return str(canonicalize_license_expression(expression))
    except InvalidLicenseExpression as error:
        raise InvalidInputError(
            f"{expression[:80]!r} is not an SPDX licence expression.",
            code="invalid_license",
            hint="For example Apache-2.0, MIT OR BSD-3-Clause, or LicenseRef-Acme for your own.",
        ) from error

"""HTTP for brokers on other machines: whom to believe, and who is revoked. Nothing of it is secret.

The revocation lists are signed; whoever fetches them checks them, as a broker does on reading.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from edgefleet_cloud.auth.guards import anyone
from edgefleet_cloud.broker.service import BrokerService
from edgefleet_cloud.web import part

router = APIRouter(prefix="/v1/authority", tags=["authority"])
Service = Annotated[BrokerService, Depends(part(BrokerService))]

_PEM = "application/x-pem-file"
_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {_PEM: {}}}}


@router.get(
    "/certificates",
    summary="Read the device authority's certificates",
    response_class=Response,
    responses=_ANSWER,
    dependencies=[anyone("certificates are public")],
)
def read_certificates(service: Service) -> Response:
    """Return the certificates that are trusted, as PEM, newest first."""
    return _pem(service.bundle())


@router.get(
    "/crl",
    summary="Read the revocation lists",
    response_class=Response,
    responses=_ANSWER,
    dependencies=[anyone("revocation lists are public and signed")],
)
def read_crl(service: Service) -> Response:
    """Return the newest list of each authority, as PEM; a broker must have read one in a week."""
    return _pem(service.revocation_lists())


def _pem(data: bytes) -> Response:
    return Response(data, media_type=_PEM, headers={"Cache-Control": "no-cache"})

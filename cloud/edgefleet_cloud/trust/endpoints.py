"""HTTP for the catalog: a plain TUF repository to read, and owners' signatures to accept."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from edgefleet_cloud.auth.guards import allow
from edgefleet_cloud.trust.key_folder import StoredKey
from edgefleet_cloud.trust.service import Trust
from edgefleet_cloud.web import Actor, Db, decode_base64, part

router = APIRouter(prefix="/v1/trust", tags=["trust"])
Service = Annotated[Trust, Depends(part(Trust))]


class MetadataNames(BaseModel):
    """The files of the repository."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"files": ["1.root.json", "timestamp.json"]}]}
    )

    files: list[str]


class SignedFiles(BaseModel):
    """Newly signed metadata: file name -> base64 of its bytes."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"files": {"2.targets.json": "eyJzaWduYXR1cmVzIjpb..."}}]},
    )

    files: dict[str, str] = Field(min_length=1, max_length=64)


_ONLINE_KEY: dict[str, Any] = {
    "role": "director",
    "keyid": "3f0c...",
    "key": {"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": "..."}},
    "file": "director.pem",
    "active": True,
}


class OnlineKey(BaseModel):
    """A key that lies on the server: its public half, and whether it signs now."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ONLINE_KEY]})

    role: str
    keyid: str
    key: dict[str, Any]
    file: str
    active: bool

    @classmethod
    def of(cls, key: StoredKey, *, active: bool) -> Self:
        """Return a stored key as the API shows it."""
        public = key.signer.public_key.to_dict()
        return cls(role=key.role, keyid=key.keyid, key=public, file=key.file, active=active)


class OnlineKeyList(BaseModel):
    """Every online key."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"keys": [_ONLINE_KEY]}]})

    keys: list[OnlineKey]


class NewOnlineKey(BaseModel):
    """Whose key to make."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"role": "director"}]}
    )

    role: str


@router.get("/keys", summary="List the online keys", dependencies=[allow("trust.read")])
def list_keys(service: Service) -> OnlineKeyList:
    """Return the public halves of snapshot, timestamp and director keys that lie here."""
    found = service.online_keys()
    return OnlineKeyList(keys=[OnlineKey.of(key, active=active) for key, active in found])


@router.post(
    "/keys",
    status_code=201,
    summary="Make the next key of an online role",
    dependencies=[allow("trust.write")],
)
def make_key(body: NewOnlineKey, service: Service, db: Db, actor: Actor) -> OnlineKey:
    """Make a key whose private half never leaves the server; it signs once owners name it."""
    with db.write() as session:
        return OnlineKey.of(service.make_key(session, body.role, actor), active=False)


@router.get("/metadata", summary="List the metadata files", dependencies=[allow("trust.read")])
def list_metadata(service: Service) -> MetadataNames:
    """Return every file of the TUF repository, old versions too."""
    return MetadataNames(files=service.names())


@router.get(
    "/metadata/{name:path}",
    summary="Read a metadata file",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}},
    dependencies=[allow("trust.read")],
)
def read_metadata(name: str, service: Service) -> Response:
    """Return a file's exact bytes, as any TUF client expects them."""
    # Clients that do not escape the % of `publisher%2Fdigits` mean the same file.
    data = service.file(name.replace("/", "%2F"))
    return Response(data, media_type="application/json", headers={"Cache-Control": "no-cache"})


@router.get(
    "/bundle",
    summary="Read all current metadata as one bundle",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
    dependencies=[allow("trust.read")],
)
def read_bundle(service: Service) -> Response:
    """Return what `edgefleet_shared.bundle` decodes."""
    return Response(service.bundle(), media_type="application/octet-stream")


@router.post(
    "/metadata", summary="Bring newly signed metadata", dependencies=[allow("trust.write")]
)
def send_metadata(body: SignedFiles, service: Service, db: Db, actor: Actor) -> MetadataNames:
    """Take files signed by root, targets or publisher keys, all of them or none."""
    files = {name: decode_base64(text, name) for name, text in body.files.items()}
    with db.write() as session:
        service.submit(session, files, actor)
    return MetadataNames(files=service.names())

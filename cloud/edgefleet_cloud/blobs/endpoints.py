"""HTTP for uploads and blobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from edgefleet_cloud.auth.guards import allow
from edgefleet_cloud.blobs import ranges
from edgefleet_cloud.blobs.service import COMPLETE, Progress, Uploads
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.ports import Blobs
from edgefleet_cloud.web import Actor, Db, RequestDatabase, part
from edgefleet_shared.errors import InvalidInputError

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
# Devices read blobs too, without a token.
blob_router = APIRouter(prefix="/v1/blobs", tags=["blobs"])
Service = Annotated[Uploads, Depends(part(Uploads))]

_DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_BUFFER_BYTES = 1024 * 1024


class UploadIn(BaseModel):
    """A blob that is to come."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"digest": _DIGEST, "size": 4}]}
    )

    digest: str = Field(max_length=80)
    size: int = Field(ge=0, le=2**53 - 1)


class Upload(BaseModel):
    """An upload: `offset` of `size` bytes are on disk. A stored blob's has no id."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0199f3a1-6f0e-7cc2-9f5e-0d8f3d9c1a2b",
                    "digest": _DIGEST,
                    "size": 4,
                    "offset": 2,
                    "state": "open",
                }
            ]
        }
    )

    id: str
    digest: str
    size: int
    offset: int
    state: str


@router.post(
    "",
    status_code=201,
    summary="Begin an upload, or find the open one",
    dependencies=[allow("uploads.write")],
)
def begin_upload(
    body: UploadIn, response: Response, service: Service, db: Db, actor: Actor
) -> Upload:
    """Answer 200 and `complete` if the blob is stored already."""
    with db.write() as session:
        progress = service.begin(session, body.digest, body.size, actor)
    if progress.state == COMPLETE:
        response.status_code = 200
    return _show(progress)


@router.get("/{upload_id}", summary="How far is an upload?", dependencies=[allow("uploads.write")])
def get_upload(upload_id: str, service: Service, db: Db) -> Upload:
    """Return the number of bytes that are on disk."""
    with db.read() as session:
        return _show(service.get(session, upload_id))


@router.patch(
    "/{upload_id}",
    summary="Send bytes",
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
    dependencies=[allow("uploads.write")],
)
async def send_bytes(
    upload_id: str,
    request: Request,
    service: Service,
    db: Db,
    actor: Actor,
    upload_offset: Annotated[int, Header(ge=0, description="Where these bytes begin.")],
) -> Upload:
    """Append the body; with the last byte the digest is checked.

    What arrived before a broken connection stays: ask how far the upload is and go on there.
    """
    progress = await run_in_threadpool(_find, service, db, upload_id)
    if progress.state == COMPLETE:
        raise ConflictError("The upload is complete.", code="upload_complete")
    progress = await _receive(request, service, progress, upload_offset)
    if progress.offset < progress.size:
        return _show(progress)
    return await run_in_threadpool(_finish, service, db, progress, actor)


async def _receive(request: Request, service: Uploads, progress: Progress, offset: int) -> Progress:
    receiver = await run_in_threadpool(service.receive, progress, offset)
    held = bytearray()
    try:
        async for chunk in request.stream():
            held += chunk
            if len(held) >= _BUFFER_BYTES:
                data = bytes(held)
                held.clear()
                await run_in_threadpool(receiver.write, data)
    except ClientDisconnect as error:
        raise InvalidInputError("The connection broke.", code="disconnected") from error
    finally:
        await run_in_threadpool(receiver.close, bytes(held))
    return progress._replace(offset=receiver.offset)


def _find(service: Uploads, db: RequestDatabase, upload_id: str) -> Progress:
    with db.read() as session:
        return service.get(session, upload_id)


def _finish(service: Uploads, db: RequestDatabase, progress: Progress, actor: str) -> Upload:
    right = service.check(progress)
    with db.write() as session:
        if right:
            return _show(service.finish(session, progress, actor))
        service.discard(session, progress.id, actor)
    raise InvalidInputError(
        f"The bytes that came are not those of {progress.digest}; the upload is removed.",
        code="digest_mismatch",
        hint="Compute the digest again, and upload again from the first byte.",
    )


@blob_router.get(
    "/{digest}",
    summary="Read a blob, or one range of it",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"content": {"application/octet-stream": {}}, "description": "A range"},
        304: {"description": "The caller has it"},
    },
    dependencies=[allow("blobs.read", devices=True)],
)
@blob_router.head(
    "/{digest}",
    summary="Is a blob here, and how large?",
    dependencies=[allow("blobs.read", devices=True)],
)
def get_blob(
    digest: str,
    request: Request,
    service: Service,
    range_: Annotated[str | None, Header(alias="Range", examples=["bytes=0-1023"])] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Return bytes by their digest; a device may ask with its own signature."""
    blobs = service.blobs
    size = blobs.stat(digest).size
    tag = f'"{digest}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Type": "application/octet-stream",
    }
    if if_none_match and tag in {item.strip() for item in if_none_match.split(",")}:
        return Response(status_code=304, headers=headers)
    span = ranges.parse(range_, size) if if_range in {None, tag} else None
    if span:
        end = span.start + span.length - 1
        headers["Content-Range"] = f"bytes {span.start}-{end}/{size}"
    start, length = span or (0, size)
    headers["Content-Length"] = str(length)
    status = 206 if span else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_bytes(blobs, digest, start, length), status, headers)


def _bytes(blobs: Blobs, digest: str, start: int, length: int) -> Iterator[bytes]:
    with blobs.open(digest, start, length) as chunks:
        yield from chunks


def _show(progress: Progress) -> Upload:
    return Upload(**progress._asdict())

"""All TUF files that a device may lack, as one small message; what is absent does not exist.

A bundle travels alike by MQTT, HTTP and USB stick: zlib over JSON {file name: base64}.
`BundleFetcher` makes it a repository that python-tuf's updater can read.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError

MAX_BYTES = 4 * 1024 * 1024  # inflated
FILE_NAME = re.compile(r"[A-Za-z0-9._%-]{1,200}\.json")


def encode(files: Mapping[str, bytes]) -> bytes:
    """Return the bundle of TUF files by name, for example `1.root.json`."""
    document = {name: base64.b64encode(data).decode() for name, data in sorted(files.items())}
    return zlib.compress(strict_json.encode(document), 9)


def decode(data: bytes) -> dict[str, bytes]:
    """Return the files of a bundle.

    Raises:
        InvalidInputError: Not a bundle, a foreign file name, or more than 4 MiB inflated.
    """
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_BYTES)
        if inflater.unconsumed_tail:
            raise InvalidInputError("The bundle inflates beyond 4 MiB.", code="bundle_too_large")
        if not inflater.eof or inflater.unused_data:
            raise InvalidInputError("The bundle is cut short or too long.", code="malformed")
        document = strict_json.decode(text, dict[str, str], max_bytes=MAX_BYTES, what="bundle")
        files = {name: base64.b64decode(body, validate=True) for name, body in document.items()}
    except (zlib.error, ValueError) as error:
        raise InvalidInputError(f"The bundle cannot be read: {error}.", code="malformed") from error
    for name in files:
        if not FILE_NAME.fullmatch(name):
            raise InvalidInputError(
                f"The bundle holds a file {name[:80]!r}, which is not a TUF file's name.",
                code="malformed",
            )
    return files


class BundleFetcher(FetcherInterface):
    """A TUF repository in memory: python-tuf's fetcher port over a bundle's files."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = urlsplit(url).path.rsplit("/", 1)[-1]
        try:
            return iter([self._files[name]])
        except KeyError:
            raise DownloadHTTPError(f"{name} is not in the bundle", 404) from None

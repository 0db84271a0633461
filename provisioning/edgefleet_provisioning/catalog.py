"""The catalog as the server has it now, believed only as far as the offline root vouches for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from edgefleet_provisioning.api import Api
from edgefleet_provisioning.errors import NotFoundError
from edgefleet_provisioning.present import Present, read_present
from edgefleet_provisioning.repository import file_name
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, TrustError
from edgefleet_shared.package import publisher_role, target_path
from edgefleet_shared.trust import SERVER_ROLES

T = TypeVar("T")
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class TopRoles(NamedTuple):
    """The verified top-level metadata."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]


class ApiFetcher(FetcherInterface):
    """python-tuf's way to the metadata: through the fleet manager's API."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = urlsplit(url).path.rsplit("/", 1)[-1]
        try:
            # The file's name holds `%2F`; it must arrive as those three characters.
            return iter([self._api.raw(f"/v1/trust/metadata/{quote(name, safe='')}")])
        except NotFoundError as error:
            raise DownloadHTTPError(str(error), 404) from error


class Catalog:
    """Verified metadata of one fleet.

    Args:
        api: Where to ask.
        root: The first root: what is trusted before anything is asked.
        cache: Folder for verified metadata; it makes older metadata recognisable.
        even_expired: Whether what has expired is taken too: by who is about to renew it.

    Raises:
        TrustError: What the server offers does not hold.
    """

    def __init__(self, api: Api, root: bytes, cache: Path, *, even_expired: bool = False) -> None:
        self._root = root
        self._cache = cache
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"{cache} cannot be made: {error.strerror}.", code="not_writable"
            ) from error
        self._updater = self._guard(
            lambda: Updater(
                str(cache), f"{api.server}/trust", fetcher=ApiFetcher(api), bootstrap=root
            )
        )
        if even_expired:
            # Private in python-tuf 7, guarded by a test. Versions still may not go back.
            self._updater._trusted_set.reference_time = _LONG_AGO  # noqa: SLF001
        self._guard(self._updater.refresh)

    def top(self) -> TopRoles:
        """Return root, timestamp, snapshot and targets."""
        return TopRoles(*(self._read(role) for role in TopRoles._fields))

    def target(self, model: str, version: str) -> TargetFile | None:
        """Return the catalog's entry of a model version, None if it has none.

        Raises:
            TrustError: The publisher's metadata does not hold.
        """
        return self._guard(lambda: self._updater.get_targetinfo(target_path(model, version)))

    def publisher(self, model: str) -> Metadata[Targets]:
        """Return the current role of a model's publisher.

        Raises:
            InvalidInputError: The fleet has no such family.
            TrustError: The publisher's metadata does not hold.
        """
        role = publisher_role(model)
        delegations = self.top().targets.signed.delegations
        if delegations is None or role not in (delegations.roles or {}):
            raise InvalidInputError(
                f"Nobody may publish {model!r} in this fleet.",
                code="no_family",
                hint=f"`edgefleet trust delegate {model}` allows it, with the targets keys.",
            )
        self.target(model, "0.0.0")  # loads and verifies the role, whatever it holds
        return self._read(role)

    def present(self) -> Present:
        """Return all that people signed, as it stands now, verified from the first root on."""
        top = self.top()
        files = {
            file_name("root", version): self._bytes(f"root_history/{version}.root.json")
            for version in range(1, top.root.signed.version + 1)
        }
        files[file_name("targets", top.targets.signed.version)] = self._bytes("targets.json")
        delegations = top.targets.signed.delegations
        for role in (delegations.roles or {}) if delegations else {}:
            if role not in SERVER_ROLES:
                signed = self.publisher(role.partition("/")[2]).signed
                files[file_name(role, signed.version)] = self._bytes(f"{quote(role, '')}.json")
        return read_present(files, self._root)

    def _bytes(self, name: str) -> bytes:
        return (self._cache / name).read_bytes()

    def _read(self, role: str) -> Metadata[Any]:
        """Return what the updater has verified and kept in this very run."""
        return Metadata.from_bytes(self._bytes(f"{quote(role, '')}.json"))

    def _guard(self, action: Callable[[], T]) -> T:
        """Turn python-tuf's errors into ours."""
        try:
            return action()
        except DownloadError as error:
            if isinstance(error.__cause__, EdgeFleetError):
                raise error.__cause__ from error
            raise TrustError(
                f"The server lacks a part of the catalog: {error}.",
                code="catalog_incomplete",
                hint="Check the server's metadata folder.",
            ) from error
        except OSError as error:
            raise InvalidInputError(
                f"{self._cache} cannot be used: {error.strerror}.", code="not_writable"
            ) from error
        except RepositoryError as error:
            raise TrustError(
                f"The server's catalog does not hold: {error}.",
                code="untrusted_catalog",
                hint="Is this the right fleet folder for this server? Nothing was signed.",
            ) from error

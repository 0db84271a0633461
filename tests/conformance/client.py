"""`tuf_client`: init, refresh and download with the device's own catalog, floors and time floor.

Nothing is decided here: the repository comes over HTTP instead of in a bundle, and that is all that
differs from a device. Verified metadata lies in the metadata folder as TUF clients keep it; the
pinned first root and the floors, which outlive that cache on a device, in `device/` within.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import msgspec
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from edgefleet_agent import durable
from edgefleet_agent.trust.catalog import Catalog
from edgefleet_agent.trust.floors import Floors, FloorStore
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.times import format_time, parse_time

KEPT = "device"
PINNED = "root.json"


def init(folder: Path, trusted: Path) -> None:
    """Pin a first root, as enrolment does; nothing is fetched."""
    kept = durable.make_folder(folder / KEPT)
    root = trusted.read_bytes()
    durable.atomic_write(kept / PINNED, root)
    durable.atomic_write(folder / PINNED, root)
    FloorStore(kept).commit(Floors())


def refresh(folder: Path, url: str) -> Catalog:
    """Return the repository's verified state, and raise the floors to it."""
    kept = folder / KEPT
    store = FloorStore(kept)
    floors = store.current
    if floors is None:
        raise RepositoryError("both floor files are lost")
    now = datetime.now(UTC)
    if floors.time:
        now = max(now, parse_time(floors.time))
    root = (kept / PINNED).read_bytes()
    catalog = Catalog(folder, Urllib3Fetcher(), root, now, floors, url)
    raised = catalog.raise_floors(floors, [])
    store.commit(msgspec.structs.replace(raised, time=format_time(now)))
    return catalog


def download(catalog: Catalog, given: argparse.Namespace, name: str) -> None:
    """Put one verified target into the target folder, unless it lies there already."""
    target = catalog.find(name)
    if target is None:
        raise RepositoryError(f"{name} is not in the repository")
    place = Path(given.target_dir) / quote(name, "")
    if _whole(durable.read_bytes(place), target):
        return
    consistent = Metadata[Root].from_file(str(Path(given.metadata_dir) / PINNED)).signed
    path = name
    if consistent.consistent_snapshot:
        folder, slash, last = name.rpartition("/")
        path = f"{folder}{slash}{next(iter(target.hashes.values()))}.{last}"
    url = given.target_base_url.rstrip("/") + "/" + path
    data = Urllib3Fetcher().download_bytes(url, target.length)
    target.verify_length_and_hashes(data)
    durable.atomic_write(place, data)


def _whole(data: bytes | None, target: TargetFile) -> bool:
    if data is None:
        return False
    try:
        target.verify_length_and_hashes(data)
    except RepositoryError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tuf_client", description=__doc__)
    parser.add_argument("--metadata-dir", required=True, help="verified metadata")
    parser.add_argument("--metadata-url", help="the repository's metadata")
    parser.add_argument("--target-name", action="append", default=[], help="may be repeated")
    parser.add_argument("--target-base-url", help="the repository's targets")
    parser.add_argument("--target-dir", help="where targets go")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root")
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser


def main() -> int:
    """Run one command; 0 if all of it succeeded, else 1 and one line that says why."""
    given = _parser().parse_args()
    folder = Path(given.metadata_dir)
    try:
        if given.command == "init":
            init(folder, Path(given.trusted_root))
            return 0
        catalog = refresh(folder, given.metadata_url)
        if given.command == "download":
            for name in given.target_name:
                download(catalog, given, name)
    except (EdgeFleetError, RepositoryError, DownloadError, OSError, ValueError) as error:
        print(f"tuf_client: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Bundles of TUF files: small, capped, and a repository for python-tuf's updater."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.exceptions import DownloadHTTPError, DownloadLengthMismatchError

from edgefleet_shared import bundle, strict_json
from edgefleet_shared.errors import InvalidInputError

FILES = {"1.root.json": b"{}", "1.publisher%2Fdigits.json": b"\x00\xff", "timestamp.json": b""}


def packed(document: object) -> bytes:
    """Return a bundle around any document."""
    return zlib.compress(strict_json.encode(document))


@given(st.dictionaries(st.from_regex(bundle.FILE_NAME, fullmatch=True), st.binary(max_size=99)))
def test_what_goes_in_comes_out(files):
    """Any files of allowed names survive the journey, byte for byte."""
    assert bundle.decode(bundle.encode(files)) == files


def test_the_same_files_make_the_same_bytes():
    """The order in which files were collected does not show."""
    assert bundle.encode(FILES) == bundle.encode(dict(reversed(FILES.items())))


GOOD = bundle.encode(FILES)
CASES: dict[str, tuple[bytes, str]] = {
    "not zlib": (b"{}", "malformed"),
    "nothing": (b"", "malformed"),
    "cut short": (GOOD[:-5], "malformed"),
    "something behind it": (GOOD + b"x", "malformed"),
    "a flipped bit": (GOOD[:20] + bytes([GOOD[20] ^ 1]) + GOOD[21:], "malformed"),
    "a list": (packed([]), "malformed"),
    "a file that is a number": (packed({"1.root.json": 1}), "malformed"),
    "not base64": (packed({"1.root.json": "*"}), "malformed"),
    "a file name that climbs": (packed({"../1.root.json": ""}), "malformed"),
    "a hidden parent": (packed({"a/../b.json": ""}), "malformed"),
    "a name that is too long": (packed({"a" * 201 + ".json": ""}), "malformed"),
    "no TUF file": (packed({"root.txt": ""}), "malformed"),
    "a file twice": (zlib.compress(b'{"a.json":"","a.json":""}'), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), CASES.values(), ids=CASES)
def test_refused(data, code):
    """What is not exactly one bundle is refused."""
    with pytest.raises(InvalidInputError) as refused:
        bundle.decode(data)
    assert refused.value.code == code


def test_a_bomb_is_cut_off():
    """256 MiB of zeros in 260 kB are refused after 4 MiB, in memory of that order."""
    compressor = zlib.compressobj(9)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1 << 8))
    bomb += compressor.flush()
    assert len(bomb) < 300_000
    with pytest.raises(InvalidInputError) as refused:
        bundle.decode(bomb)
    assert refused.value.code == "bundle_too_large"


def test_the_limit_itself_is_read():
    """A bundle that inflates to exactly 4 MiB is a bundle."""
    text = strict_json.encode({"a.json": "A" * (bundle.MAX_BYTES - 16)}).ljust(bundle.MAX_BYTES)
    assert len(text) == bundle.MAX_BYTES
    assert bundle.decode(zlib.compress(text)).keys() == {"a.json"}
    with pytest.raises(InvalidInputError) as refused:
        bundle.decode(zlib.compress(text + b" "))
    assert refused.value.code == "bundle_too_large"


def test_the_fetcher_serves_the_files_by_their_url():
    """python-tuf's fetcher port gets each file's bytes, whatever the path before its name."""
    fetcher = bundle.BundleFetcher(FILES)
    url = "http://x/metadata/1.publisher%2Fdigits.json"
    assert fetcher.download_bytes(url, 10) == FILES["1.publisher%2Fdigits.json"]


def test_the_fetcher_says_404_for_what_is_absent():
    """What the bundle lacks does not exist: python-tuf ends its root chain on that."""
    with pytest.raises(DownloadHTTPError) as missing:
        bundle.BundleFetcher(FILES).download_bytes("http://x/2.root.json", 10)
    assert missing.value.status_code == 404


def test_the_fetcher_is_held_to_the_length():
    """A file longer than the updater allows is cut off by the port's base class."""
    with pytest.raises(DownloadLengthMismatchError):
        bundle.BundleFetcher(FILES).download_bytes("http://x/1.root.json", 1)

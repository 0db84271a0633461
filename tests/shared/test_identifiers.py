"""Names, versions, digests and ids."""

from __future__ import annotations

import hashlib
import time
import uuid

import pytest

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import (
    check_digest,
    check_name,
    check_version,
    new_id,
    sha256_digest,
)


@pytest.mark.parametrize("name", ["a", "9", "cam-1", "a" * 63, "a--b"])
def test_good_names(name):
    """What is safe as topic, key, path and CN is taken as it is."""
    assert check_name(name, "device") == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "-a", "a-", "a" * 64, "a_b", "a.b", "a/b", "..", "a+", "#", "a\n", "\u00e9", "a b",
     "a\u0661", "$sys", "a\x00"],
)  # fmt: skip
def test_bad_names(name):
    """Anything that a broker, a file system or a certificate reads otherwise is refused."""
    with pytest.raises(InvalidInputError, match="cannot name a device") as refused:
        check_name(name, "device")
    assert refused.value.code == "invalid_name"
    assert refused.value.hint


@pytest.mark.parametrize("version", ["0.0.0", "1.2.3", "999999.0.1", "1.0.0-rc.1", "1.0.0---"])
def test_good_versions(version):
    """Semantic versions with an optional pre-release are taken."""
    assert check_version(version) == version


@pytest.mark.parametrize(
    "version",
    ["", "1", "1.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-..", "1.0.0-a..b", "1.0.0-.a", "v1.0.0",
     "1.0.0+build", "1.0.0\n", "1000000.0.0", "1\u0661.0.0", "1.0.0-" + "a" * 33, "1.0.0-a/b",
     "-1.0.0", "1.0.0-a\n"],
)  # fmt: skip
def test_bad_versions(version):
    """What is not one, what has empty parts and digits of other scripts are refused."""
    with pytest.raises(InvalidInputError) as refused:
        check_version(version)
    assert refused.value.code == "invalid_version"


def test_digests():
    """A digest is what `sha256_digest` returns, in one spelling only."""
    good = sha256_digest(b"abc")
    assert good == "sha256:" + hashlib.sha256(b"abc").hexdigest()
    assert check_digest(good) == good
    for bad in (good.upper(), good[7:], good + "0", good[:-1], good + "\n", "sha512:" + good[7:]):
        with pytest.raises(InvalidInputError) as refused:
            check_digest(bad)
        assert refused.value.code == "invalid_digest"


def test_ids_are_uuid_version_7_and_carry_the_time():
    """Ids are RFC 9562 version 7: unique, and ordered by the millisecond they were made in."""
    before = time.time_ns() // 1_000_000
    ids = [uuid.UUID(new_id()) for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1000
    assert all(i.version == 7 and i.variant == uuid.RFC_4122 for i in ids)
    stamps = [i.int >> 80 for i in ids]
    assert stamps == sorted(stamps)
    assert before <= stamps[0] <= stamps[-1] <= after

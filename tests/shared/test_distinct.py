"""A threshold counts keys: metadata that lists one key under two ids is refused."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, Root, Targets, Timestamp

from edgefleet_shared.distinct import check_distinct_keys
from edgefleet_shared.errors import TrustError

LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
KEYS = {
    "P-256": CryptoSigner.generate_ecdsa().public_key,
    "Ed25519": CryptoSigner.generate_ed25519().public_key,
    "RSA": CryptoSigner.generate_rsa().public_key,
}


def twin(key: Key) -> Key:
    """Return the same key under another id, written in another way."""
    document = deepcopy(key.to_dict())
    text = document["keyval"]["public"]
    document["keyval"]["public"] = text.replace("\n", "\r\n") if "\n" in text else text.upper()
    return Key.from_dict("cd" * 32, document)


def root(threshold: int, *keys: Key) -> Root:
    """Return a root whose root role has these keys."""
    made = Root(expires=LATER)
    for key in keys:
        made.add_key(key, "root")
    made.roles["root"].threshold = threshold
    return made


@pytest.mark.parametrize("kind", KEYS)
def test_one_key_under_two_ids_is_refused(kind):
    """However the key's text is written, in root and in a delegation."""
    keys = [KEYS[kind], twin(KEYS[kind])]
    with pytest.raises(TrustError) as refused:
        check_distinct_keys(root(2, *keys))
    assert refused.value.code == "duplicate_key"
    targets = Targets(expires=LATER)
    role = DelegatedRole("publisher/digits", [key.keyid for key in keys], 2, True, ["*"])
    targets.delegations = Delegations({key.keyid: key for key in keys}, {role.name: role})
    with pytest.raises(TrustError):
        check_distinct_keys(targets)


def test_different_keys_and_other_metadata_pass():
    """Two keys are two; where one signature is enough, a twin gives nobody anything."""
    check_distinct_keys(root(2, *KEYS.values()))
    check_distinct_keys(root(1, KEYS["P-256"], twin(KEYS["P-256"])))
    check_distinct_keys(Timestamp(expires=LATER))
    check_distinct_keys(Targets(expires=LATER))

"""Row 45, the headline: the whole server is stolen, and no byte runs that no publisher signed.

The thief has the keys of snapshot, timestamp, director, audit and device CA, the database, the blob
store and the broker. agentd, gateway, worker and mosquitto are real; the keys are those of a real
fleet folder.
"""

from __future__ import annotations

import json

import msgspec
import pytest

from edgefleet_agent.refusals import PER_PERIOD
from edgefleet_shared.identifiers import new_id, sha256_digest
from tests.adversarial.field import Asker, Field
from tests.adversarial.thief import EVIL_SCALE, Thief, borrowed
from tests.models import linear

pytestmark = pytest.mark.mosquitto
REPLACE = msgspec.structs.replace


@pytest.fixture(scope="module")
def field():
    """A device that serves 1.0.0 (scale 1), while 2.0.0 (scale 2) is published and not assigned."""
    field = Field()
    try:
        field.one = field.publish("1.0.0", 1.0)
        field.two = field.publish("2.0.0", 2.0)
        field.start()
        field.thief.send(field.thief.order(field.one))
        field.serves("1.0.0")
        yield field
    finally:
        field.close()


def own_version(field: Field, thief: Thief):
    """The director orders a version that nobody published."""
    return thief.order(thief.evil()), None


def other_bytes(field: Field, thief: Thief):
    """The director puts other bytes behind a published version's name."""
    evil = thief.evil("2.0.0", field.two.release_counter)
    return thief.order(evil), None


def listed_by(*names: str):
    """Stolen keys sign the publisher's role."""

    def attack(field: Field, thief: Thief):
        evil = thief.evil()
        return thief.order(evil), thief.published(evil, *(thief.keys[name] for name in names))

    return attack


def listed_by_a_borrowed_id(field: Field, thief: Thief):
    """A stolen key signs the publisher's role under the publisher's key id."""
    evil = thief.evil()
    files = thief.published(evil, thief.keys["director"])
    name = next(n for n in files if "publisher%2Fdigits" in n and n not in thief.metadata())
    targets = json.loads(files[next(n for n in files if n.endswith(".targets.json"))])
    roles = {role["name"]: role for role in targets["signed"]["delegations"]["roles"]}
    files[name] = borrowed(files[name], roles["publisher/digits"]["keyids"])
    return thief.order(evil), files


def listed_in_targets(field: Field, thief: Thief):
    """Stolen keys sign the top-level targets, which now list the model."""
    evil = thief.evil()
    return thief.order(evil), thief.in_targets(evil, *thief.keys.values())


def listed_without_signing(field: Field, thief: Thief):
    """The publisher's role keeps its true signature and lists one version more."""
    evil = thief.evil()
    files = thief.published(evil, thief.own)
    fake = next(n for n in files if "publisher%2Fdigits" in n and n not in thief.metadata())
    true = thief.metadata()
    old = next(n for n in true if "publisher%2Fdigits" in n)
    document = json.loads(files[fake])
    document["signatures"] = json.loads(true[old])["signatures"]
    files[fake] = json.dumps(document).encode()
    return thief.order(evil), files


def delegated_anew(field: Field, thief: Thief):
    """Targets, signed by stolen keys, delegate publisher and director to the thief."""
    return thief.order(thief.evil(), signer="own"), thief.delegated(*thief.keys.values())


def root_of_ones_own(field: Field, thief: Thief):
    """A root that follows, signed by every key that the thief has."""
    signers = (*thief.keys.values(), thief.own)
    return thief.order(thief.evil(), signer="own"), thief.rooted(*signers)


def no_root_at_all(field: Field, thief: Thief):
    """Everything anew under a root that only the thief signs, and the true roots left out."""
    files = thief.rooted(thief.own)
    own = {name: data for name, data in files.items() if name != "1.root.json"}
    return thief.order(thief.evil(), signer="own"), own


def ordered_by(name: str):
    """Another stolen key signs the assignment."""
    return lambda field, thief: (thief.order(thief.evil(), signer=name), None)


def unlisted_and_empty(field: Field, thief: Thief):
    """A bundle without anything, so that nothing contradicts."""
    return thief.order(thief.evil()), {}


def anothers_slot(field: Field, thief: Thief):
    """A published version is brought into the slot of another model."""
    slots = {"audio": REPLACE(field.two, deployment=new_id())}
    return thief.order(slots=slots), None


def another_models_name(field: Field, thief: Thief):
    """What digits' publisher signed is called audio's."""
    slot = REPLACE(field.two, deployment=new_id(), model="audio")
    return thief.order(slot), None


ATTACKS = {
    "not_in_catalog": [own_version, another_models_name],
    "disagree": [other_bytes],
    "metadata_signature": [
        listed_by("director"), listed_by("snapshot", "timestamp", "director"),
        listed_by("device-ca", "audit"), listed_by_a_borrowed_id, listed_in_targets,
        listed_without_signing, delegated_anew, root_of_ones_own,
    ],
    "signature": [
        ordered_by(name) for name in ("snapshot", "timestamp", "audit", "device-ca", "own")
    ],
    "metadata_missing": [unlisted_and_empty],
    "malformed": [anothers_slot],
}  # fmt: skip
CASES = [(code, attack) for code, attacks in ATTACKS.items() for attack in attacks]


def nothing_foreign(field: Field, asker: Asker) -> None:
    """Check that nothing but what a publisher signed was opened, kept or answered with."""
    assert field.opened() <= field.signed, field.opened() - field.signed
    assert field.stored() <= field.signed
    assert sha256_digest(linear(EVIL_SCALE)) not in field.opened() | field.stored()
    truth = {"1.0.0": (4.0, 4.0), "2.0.0": (8.0, 8.0)}
    assert asker.answers
    assert all(truth[version] == values for version, values in asker.answers)
    assert asker.failed == 0


def test_45_stolen_keys_bring_no_model(field):
    """Every forgery is refused by its code, told by a signed event; inference never pauses."""
    with Asker(field) as asker:
        for number, (code, attack) in enumerate(CASES, 1):
            if number % (PER_PERIOD - 2) == 0:  # so many are told; agentd alone begins anew
                field.kill_agentd()
                field.start()
            field.forget_cache()
            before = len(field.events)
            envelope, files = attack(field, field.thief)
            field.thief.send(envelope, files)
            field.wait(
                lambda code=code, before=before: field.told(code, before), f"{code} of {attack}"
            )
            assert field.ask() == ("1.0.0", [4.0, 4.0])
    nothing_foreign(field, asker)
    assert {version for version, _ in asker.answers} == {"1.0.0"}


@pytest.mark.parametrize("what", ["manifest", "model"])
def test_45_a_lying_blob_store_brings_no_byte(field, what):
    """What is truly signed and assigned is fetched from the thief, who sends his own bytes."""
    manifest = json.loads(field.blobs[field.two.manifest])
    model = manifest["variants"][0]["files"][0]["digest"]
    digest = field.two.manifest if what == "manifest" else model
    true, evil = field.blobs[digest], linear(EVIL_SCALE)
    before = len(field.events)
    with Asker(field) as asker:
        field.blobs[digest] = evil[: len(true)].ljust(len(true), b"\0")
        field.thief.send(field.thief.order(REPLACE(field.two, deployment=new_id())))
        field.wait(lambda: field.told("digest_mismatch", before), "a refusal")
        assert field.ask() == ("1.0.0", [4.0, 4.0])
        # Back to what ran, so that nobody waits for bytes that do not come.
        field.thief.send(field.thief.order(REPLACE(field.one, deployment=new_id())))
        field.blobs[digest] = true
        field.serves("1.0.0")
    nothing_foreign(field, asker)


def test_45_what_a_publisher_signed_may_be_chosen_and_no_more(field):
    """The thief may choose among signed versions: that much the sentence grants him."""
    with Asker(field) as asker:
        for slot, version in ((field.two, "2.0.0"), (field.one, "1.0.0")):
            field.thief.send(field.thief.order(REPLACE(slot, deployment=new_id())))
            field.serves(version)
    nothing_foreign(field, asker)


@pytest.mark.faketime
@pytest.mark.parametrize("days", [3, 4000])
def test_45_a_frozen_catalog_never_stops_inference(field, days):
    """Power fails and returns when all has expired: it serves, refuses change, and says both."""
    field.cut()
    before = len(field.events)
    field.start("env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", f"+{days}d")
    field.serves("1.0.0")
    with Asker(field) as asker:
        frozen = field.thief.fresh(days=0)
        field.thief.send(field.thief.order(REPLACE(field.two, deployment=new_id())), frozen)
        field.wait(lambda: field.told("metadata_expired", before), "a refusal")
    assert {version for version, _ in asker.answers} == {"1.0.0"}
    nothing_foreign(field, asker)
    # The clock is right again: what was refused as too late is taken.
    field.cut()
    field.start()
    field.serves("1.0.0")
    field.thief.send(field.thief.order(REPLACE(field.two, deployment=new_id())))
    field.serves("2.0.0")
    field.thief.send(field.thief.order(REPLACE(field.one, deployment=new_id())))
    field.serves("1.0.0")

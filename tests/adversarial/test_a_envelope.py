"""Rows 1 to 9: envelopes and parsing. Refused, counted, and what serves goes on serving."""

from __future__ import annotations

import base64
import json
import os
import time
import tracemalloc
import zlib
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime

import pytest
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Metadata, Targets

from edgefleet_shared import bundle, dsse, strict_json
from edgefleet_shared import trust as trust_rules
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.messages import ASSIGNMENT_TYPE, REPORTED_TYPE, Assignment
from edgefleet_shared.trust import open_assignment

SECONDS, BYTES = 0.05, 5 * 1024 * 1024


def payload_of(envelope: bytes) -> bytes:
    """Return what an envelope carries."""
    return base64.b64decode(json.loads(envelope)["payload"])


def changed(envelope: bytes, **fields) -> bytes:
    """Return an envelope with some of its fields replaced."""
    return json.dumps({**json.loads(envelope), **fields}).encode()


def order(world, victim, **fields) -> bytes:
    """Return a genuine envelope for a version that is published and could be run."""
    return world.assignment(victim.identity, victim.one, **fields)


def sealed(world, text: bytes, kind: str = ASSIGNMENT_TYPE) -> bytes:
    """Let the director sign any bytes at all; the counter beside them is a new one."""
    world.counter += 1
    return dsse.seal(text, kind, world.keys["director"])


def watch(monkeypatch) -> list[str]:
    """Return a list that grows by the name of every document that the trust rules parse."""
    seen: list[str] = []
    real = strict_json.decode

    def decode(data, kind, **given):
        seen.append(given["what"])
        return real(data, kind, **given)

    monkeypatch.setattr(trust_rules.strict_json, "decode", decode)
    return seen


def test_01_a_flipped_payload_is_refused_unparsed(world, victim, monkeypatch):
    """One bit in the signed payload: the signature fails and nobody reads the payload."""
    seen = watch(monkeypatch)
    envelope = order(world, victim)
    payload = bytearray(payload_of(envelope))
    for at in (0, len(payload) // 2, len(payload) - 1):
        flipped = payload.copy()
        flipped[at] ^= 1
        bad = changed(envelope, payload=base64.b64encode(bytes(flipped)).decode())
        victim.refuses(world.desired(bad), "signature")
    assert "DSSE envelope" in seen
    assert "assignment" not in seen


def test_02_a_statement_of_another_type_is_no_assignment(world, victim):
    """The director's own signature on another kind of statement orders nothing."""
    body = payload_of(order(world, victim))
    victim.refuses(world.desired(sealed(world, body, REPORTED_TYPE)), "payload_type")
    # Nor under the right name, which the signature covers.
    renamed = changed(sealed(world, body, REPORTED_TYPE), payloadType=ASSIGNMENT_TYPE)
    victim.refuses(world.desired(renamed), "signature")


@pytest.mark.parametrize("thief", ["timestamp", "snapshot", "publisher", "targets", "root"])
def test_03_another_trusted_key_is_not_the_directors(world, victim, thief):
    """A key that the catalog trusts elsewhere signs no assignment, by whatever key id."""
    envelope = order(world, victim, signer=thief)
    victim.refuses(world.desired(envelope), "signature")
    signature = json.loads(envelope)["signatures"][0]
    signature["keyid"] = world.key("director").keyid
    victim.refuses(world.desired(changed(envelope, signatures=[signature])), "signature")


def two_directors(world, second: Key) -> None:
    """Let targets ask for two director keys."""
    delegations = world.targets.delegations
    delegations.keys[second.keyid] = second
    ids = [world.key("director").keyid, second.keyid]
    delegations.roles["director"] = DelegatedRole("director", ids, 2, True, ["assignments/*"])
    world.targets.version += 1
    world.release()


@pytest.fixture
def delegations(world):
    """Targets that a test may change; what it has done is undone by a newer version."""
    before = deepcopy(world.targets.delegations)
    yield world.targets.delegations
    world.targets.delegations = before
    world.targets.version += 1
    world.release()


def test_04_two_signatures_by_one_key_count_once(world, victim, delegations):
    """With a threshold of two, one key's signature does not do, once or twice."""
    second = CryptoSigner.generate_ecdsa()
    two_directors(world, second.public_key)
    envelope = order(world, victim)
    victim.refuses(world.desired(envelope), "signature")
    mine = json.loads(envelope)["signatures"][0]
    victim.refuses(world.desired(changed(envelope, signatures=[mine, mine])), "malformed")
    other = {**mine, "keyid": second.public_key.keyid}
    victim.refuses(world.desired(changed(envelope, signatures=[mine, other])), "signature")
    pae = dsse.read(envelope, ASSIGNMENT_TYPE).pae()
    true = base64.b64encode(bytes.fromhex(second.sign(pae).signature)).decode()
    theirs = {"keyid": second.public_key.keyid, "sig": true}
    victim.takes(world.desired(changed(envelope, signatures=[mine, theirs])))


@pytest.mark.parametrize("how", ["the same text", "another text of the same key"])
def test_04_one_key_under_two_ids_counts_once(world, victim, delegations, how):
    """Targets that list the director's key twice are refused: a threshold counts keys, not ids."""
    twin = Key.from_dict("ab" * 32, deepcopy(world.key("director").to_dict()))
    if how != "the same text":
        twin.keyval["public"] = twin.keyval["public"].replace("\n", "\r\n") + "\n"
    two_directors(world, twin)
    envelope = order(world, victim)
    mine = json.loads(envelope)["signatures"][0]
    both = changed(envelope, signatures=[mine, {**mine, "keyid": twin.keyid}])
    victim.refuses(world.desired(both), "metadata")


def test_05_no_signature_is_no_threshold(world, victim):
    """An envelope without signatures is refused, whatever else it holds."""
    victim.refuses(world.desired(changed(order(world, victim), signatures=[])), "signature")


@pytest.mark.parametrize("threshold", [0, -1])
def test_05_a_threshold_below_one_is_no_delegation(world, victim, threshold):
    """Targets, truly signed, that ask for no signature at all are not read."""
    name = f"{world.targets.version}.targets.json"
    true = dict(world.files)
    document = json.loads(world.files[name])
    for role in document["signed"]["delegations"]["roles"]:
        role["threshold"] = threshold
    files = {**true, **resigned(world, document["signed"])}
    envelope = changed(order(world, victim), signatures=[])
    victim.refuses(world.desired(envelope, files=files), "metadata")
    victim.refuses(world.desired(order(world, victim), files=files), "metadata")
    # The device has seen snapshot and timestamp, which are genuine: the fleet goes on above them.
    for role, step in ((world.targets, 2), (world.snapshot, 1), (world.timestamp, 1)):
        role.version += step
    world.release()


def resigned(world, signed: dict) -> dict[str, bytes]:
    """Sign targets that python-tuf would not make, one version up, and all that names them."""
    signed = {**signed, "version": signed["version"] + 1}
    text = encode_canonical(signed).encode()
    signature = world.keys["targets"].sign(text)
    targets = json.dumps({"signed": signed, "signatures": [signature.to_dict()]}).encode()
    snapshot, timestamp = deepcopy(world.snapshot), deepcopy(world.timestamp)
    snapshot.version += 1
    snapshot.meta["targets.json"].version = signed["version"]
    timestamp.version += 1
    timestamp.snapshot_meta.version = snapshot.version
    return {
        f"{signed['version']}.targets.json": targets,
        f"{snapshot.version}.snapshot.json": world.sign(snapshot, "snapshot"),
        "timestamp.json": world.sign(timestamp, "timestamp"),
    }


def test_06_a_second_counter_is_no_second_chance(world, victim):
    """A payload that says `counter` twice is refused, although the director signed it."""
    body = payload_of(order(world, victim))
    for extra in (b'"counter":1', b'"\\u0063ounter":999'):
        twice = body[:-1] + b"," + extra + b"}"
        victim.refuses(world.desired(sealed(world, twice)), "malformed")


def numbers(body: bytes) -> dict[str, bytes]:
    """Return an assignment with every number or text that languages read differently."""
    document = json.loads(body)
    start = body.index(b'"counter":') + 10
    end = body.index(b",", start)

    def counter(text: bytes) -> bytes:
        return body[:start] + text + body[end:]

    return {
        "NaN": counter(b"NaN"),
        "1e400": counter(b"1e400"),
        "2^53 + 1": counter(b"9007199254740993"),
        "a float counter": counter(str(float(document["counter"])).encode()),
        "a lone surrogate": body[:-1] + b',"x":"\\ud800"}',
        "a lone surrogate, raw": body[:-1] + b',"x":"\xed\xa0\x80"}',
        "a number of 5000 digits": counter(b"9" * 5000),
        "60 k nested lists": body[:-1] + b',"x":' + b"[" * 60_000 + b"}",
    }


CASES = sorted(numbers(b'{"counter":1,"x":1}'))


@pytest.mark.parametrize("case", CASES)
def test_07_numbers_and_nesting_that_languages_disagree_on(world, victim, case):
    """Even signed by the director they are refused, before any value is used."""
    text = numbers(payload_of(order(world, victim)))[case]
    victim.refuses(world.desired(sealed(world, text)), "malformed")


def cost(act: Callable[[], object]) -> tuple[float, int]:
    """Return seconds (best of five) and peak bytes of something that must be refused."""

    def refused() -> None:
        with pytest.raises(EdgeFleetError):
            act()

    best = 9.9
    for _ in range(5):
        begun = time.perf_counter()
        refused()
        best = min(best, time.perf_counter() - begun)
    tracemalloc.start()
    try:
        refused()
        return best, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_07_refusing_costs_no_time_and_no_memory(world, victim):
    """Reading what the director signed costs under 50 ms and 5 MiB, whatever is in it."""
    targets = Metadata[Targets].from_bytes(world.files[f"{world.targets.version}.targets.json"])
    bodies = numbers(payload_of(order(world, victim)))
    envelopes = {name: sealed(world, text) for name, text in bodies.items()}
    deep = json.loads(envelopes["NaN"])
    deep["payload"] = base64.b64encode(b"[" * 200_000).decode()
    envelopes["200 k nested lists"] = json.dumps(deep).encode()
    for name, envelope in envelopes.items():
        seconds, peak = cost(
            lambda envelope=envelope: open_assignment(
                envelope, targets.signed, victim.identity.who, floor=0, now=datetime.now(UTC)
            )
        )
        assert seconds < SECONDS, (name, seconds)
        assert peak < BYTES, (name, peak)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 200_000,
        b'{"v":1,"x":' * 20_000,
        b'{"v":NaN}',
        b'{"v":"' + b"\\ud800" * 40_000 + b'"}',
    ],
    ids=["nested lists", "nested objects", "NaN", "surrogates"],
)
def test_07_the_outer_document_costs_no_more(victim, text):
    """What anybody may write, unsigned, is refused as cheaply, and the device goes on."""
    seconds, peak = cost(lambda: victim.agent.daemon._parts.acceptance.accept(text))
    assert seconds < SECONDS, seconds
    assert peak < BYTES, peak
    victim.refuses(text, "malformed")


def bomb() -> bytes:
    """Return a small bundle that inflates to 1 GiB."""
    packer, mebibyte = zlib.compressobj(9), bytes(1 << 20)
    first = packer.compress(mebibyte) + packer.flush(zlib.Z_FULL_FLUSH)
    # Flushed in full, a block stands by itself and may be repeated.
    return first + 1023 * (packer.compress(mebibyte) + packer.flush(zlib.Z_FULL_FLUSH))


@pytest.fixture(scope="module")
def gibibyte():
    """Made once."""
    made = bomb()
    assert len(zlib.decompressobj().decompress(made[: 64 * 1024])) > 60 << 20
    return made


def test_08_a_bundle_that_inflates_to_a_gibibyte_is_cut(world, victim, gibibyte):
    """It is inflated to its cap of 4 MiB and no further, and refused by its own code."""
    seconds, peak = cost(lambda: bundle.decode(gibibyte))
    assert seconds < SECONDS, seconds
    assert peak < 3 * bundle.MAX_BYTES  # zlib joins what it has inflated
    document = json.loads(world.desired(order(world, victim)))
    document["bundle"] = base64.b64encode(gibibyte[: 150 * 1024]).decode()
    victim.refuses(json.dumps(document).encode(), "bundle_too_large")
    document["bundle"] = base64.b64encode(gibibyte).decode()  # over the document's own cap
    victim.refuses(json.dumps(document).encode(), "malformed")


def test_09_what_was_verified_is_what_is_used(world, victim, monkeypatch):
    """A buffer that changes after the signature was checked changes nothing: it is one object."""
    targets = Metadata[Targets].from_bytes(world.files[f"{world.targets.version}.targets.json"])
    buffer = bytearray(order(world, victim))
    checked: list[bytes] = []
    used: list[bytes] = []
    real_pae, real_decode = dsse.Envelope.pae, strict_json.decode

    def pae(envelope):
        checked.append(envelope.payload)
        try:
            return real_pae(envelope)
        finally:
            buffer[:] = b"x" * len(buffer)  # the attacker's moment

    def decode(data, kind, **given):
        if kind is Assignment:
            used.append(data)
        return real_decode(data, kind, **given)

    monkeypatch.setattr(dsse.Envelope, "pae", pae)
    monkeypatch.setattr(trust_rules.strict_json, "decode", decode)
    found = open_assignment(
        bytes(buffer), targets.signed, victim.identity.who, floor=0, now=datetime.now(UTC)
    )
    assert found.device == victim.identity.device
    assert len(checked) == len(used) == 1
    assert checked[0] is used[0]
    assert isinstance(used[0], bytes)  # nobody can write into it


def test_09_the_worker_reads_the_file_that_was_hashed(world, victim):
    """A blob that changes its name's file after the hash is not what the gateway was handed."""
    store = victim.agent.daemon._parts.tools.store
    data = b"verified " * 1000
    digest = sha256_digest(data)
    store.partial(digest).write_bytes(data)
    store.commit(digest)
    fd = store.open_verified(digest, len(data))
    path = store.path(digest)
    path.unlink()
    path.write_bytes(b"swapped!!" * 1000)
    with os.fdopen(fd, "rb") as file:
        assert file.read() == data
    with pytest.raises(EdgeFleetError):
        store.open_verified(digest, len(data))


def test_after_it_all_an_honest_assignment_is_taken(victim):
    """Nothing of rows 1 to 9 has poisoned the device."""
    victim.serves_on()

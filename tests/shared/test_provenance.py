"""Model Signing bundles: ours hold, and nothing else does."""

from __future__ import annotations

import base64
import json

import pytest
from securesystemslib.signer import CryptoSigner

from edgefleet_shared import provenance
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry, Manifest, RuntimeNeed, TensorSpec, Variant

SIGNER = CryptoSigner.generate_ecdsa()
FILES = {"b/weights.bin": "11" * 32, "a.onnx": "22" * 32}
BUNDLE = provenance.seal(FILES, "digits-1.0.0", SIGNER)


def test_a_bundle_vouches_for_its_files():
    """What was signed comes back, for whoever has the key, read from the key's PEM too."""
    assert provenance.open_bundle(BUNDLE, SIGNER.public_key) == FILES
    key = provenance.read_public_key(provenance.public_pem(SIGNER.public_key))
    assert provenance.open_bundle(BUNDLE, key) == FILES


def _changed(change) -> bytes:
    document = json.loads(BUNDLE)
    change(document)
    return json.dumps(document).encode()


def _payload(change, *, sign=True) -> bytes:
    """Return a bundle whose statement was changed, and signed again or not."""
    document = json.loads(BUNDLE)
    envelope = document["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    envelope["payload"] = base64.b64encode(payload).decode()
    if sign:
        kind = provenance.PAYLOAD_TYPE
        signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        signature = bytes.fromhex(SIGNER.sign(signed).signature)
        envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(document).encode()


def _resource(**fields):
    return lambda statement: statement["predicate"]["resources"][0].update(fields)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", "malformed"),
        (b"[]", "malformed"),
        (_changed(lambda d: d.update(mediaType="x")), "provenance_unsupported"),
        (_changed(lambda d: d["dsseEnvelope"].update(payloadType="x")), "provenance_unsupported"),
        (_changed(lambda d: d["dsseEnvelope"].update(signatures=[])), "provenance"),
        (_changed(lambda d: d["dsseEnvelope"]["signatures"].append({"sig": "AA=="})), "provenance"),
        (_changed(lambda d: d["dsseEnvelope"]["signatures"][0].update(sig="!")), "malformed"),
        (_payload(_resource(digest="33" * 32), sign=False), "provenance"),
        (_payload(_resource(digest="33" * 32)), "provenance"),
        (_payload(_resource(digest="x")), "malformed"),
        (_payload(_resource(algorithm="blake3")), "malformed"),
        (_payload(_resource(name="b/weights.bin")), "malformed"),
        (_payload(lambda s: s.update(subject=[])), "malformed"),
        (_payload(lambda s: s.update(predicateType="x")), "provenance_unsupported"),
        (
            _payload(lambda s: s["predicate"]["serialization"].update(method="shards")),
            "provenance_unsupported",
        ),
    ],
)
def test_nothing_else_is_believed(data, code):
    """Every part that is missing, changed or of another kind is refused by name."""
    with pytest.raises(EdgeFleetError) as caught:
        provenance.open_bundle(data, SIGNER.public_key)
    assert caught.value.code == code


def test_another_key_is_not_believed():
    """A bundle says which key it is by; the verifier's own key decides."""
    with pytest.raises(EdgeFleetError) as caught:
        provenance.open_bundle(BUNDLE, CryptoSigner.generate_ecdsa().public_key)
    assert caught.value.code == "provenance"


@pytest.mark.parametrize("pem", [b"", b"no key"])
def test_what_is_no_p256_key_is_refused(pem):
    """The mode `key` of Model Signing knows elliptic curves alone."""
    with pytest.raises(EdgeFleetError) as caught:
        provenance.read_public_key(pem)
    assert caught.value.code == "provenance_key"
    with pytest.raises(EdgeFleetError):
        provenance.public_pem(CryptoSigner.generate_ed25519().public_key)


def test_every_file_has_one_name():
    """A path that means two files is named by its variant, and so is one called manifest.json."""

    def variant(name: str, weights: bytes) -> Variant:
        files = [
            FileEntry("model.onnx", sha256_digest(b"same"), 4, "onnx"),
            FileEntry("weights.bin", sha256_digest(weights), 1, "onnx_external"),
            FileEntry("manifest.json", sha256_digest(b"{}"), 2, "json"),
        ]
        spec = [TensorSpec("x", "FP32", [1])]
        return Variant(name, [name], "cpu", RuntimeNeed("onnxruntime"), files, spec, spec)

    manifest = Manifest(
        1, "digits", "1.0.0", 1, 0, "2026-01-01T00:00:00Z", [variant("a", b"1"), variant("b", b"2")]
    )
    assert set(provenance.resources_of(manifest, b"bytes")) == {
        "manifest.json", "model.onnx", "a/weights.bin", "b/weights.bin",
        "a/manifest.json", "b/manifest.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    "files", [{"a.onnx": "22" * 32}, {**FILES, "c": "00" * 32}, {**FILES, "a.onnx": "00" * 32}]
)
def test_exactly_the_files_are_vouched_for(files):
    """One that is missing, one too many, or other bytes: none of it passes."""
    provenance.check_files(FILES, dict(FILES))
    with pytest.raises(EdgeFleetError) as caught:
        provenance.check_files(FILES, files)
    assert caught.value.code == "provenance"

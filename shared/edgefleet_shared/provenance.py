"""OpenSSF Model Signing bundles: who vouches for a package's files, in a form that others verify.

A Sigstore bundle (v0.3, JSON) around a DSSE envelope around an in-toto statement that names every
file with its sha256. A device never looks at one: its trust is TUF. Source: model_signing_format.md
of sigstore/model-transparency (model-signing 1.1.1), mode `key`, serialization `files`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.package import Manifest

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
BUNDLE_MAX_BYTES = 4 * 1024 * 1024
MANIFEST_NAME = "manifest.json"
SINGLE_FILE = "."
"""How a signature over one file, not a folder, names it."""

Resources = Mapping[str, str]
"""The sha256 of each file, in hexadecimal, by its path in the signed folder."""


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Serialization(msgspec.Struct):
    method: str
    hash_type: str = "sha256"


class _Predicate(msgspec.Struct):
    serialization: _Serialization
    resources: list[_Resource]


class _Subject(msgspec.Struct):
    name: str
    digest: dict[str, str]


class _Statement(msgspec.Struct, rename={"kind": "_type", "predicate_type": "predicateType"}):
    kind: Literal["https://in-toto.io/Statement/v1"]
    subject: list[_Subject]
    predicate_type: str
    predicate: _Predicate


class _Sig(msgspec.Struct):
    sig: str


class _Envelope(msgspec.Struct, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[_Sig]


class _Bundle(msgspec.Struct, rename="camel"):
    media_type: str
    dsse_envelope: _Envelope


def resources_of(manifest: Manifest, data: bytes) -> Resources:
    """Return what a package's bundle names: the manifest, and every file by its path.

    A path that means different files in different variants is named `<variant>/<path>`.
    """
    found = {MANIFEST_NAME: hashlib.sha256(data).hexdigest()}
    digests: dict[str, set[str]] = {MANIFEST_NAME: {"", found[MANIFEST_NAME]}}
    for variant in manifest.variants:
        for entry in variant.files:
            digests.setdefault(entry.path, set()).add(entry.digest)
    for variant in manifest.variants:
        for entry in variant.files:
            alone = len(digests[entry.path]) == 1
            name = entry.path if alone else f"{variant.id}/{entry.path}"
            found[name] = entry.digest.removeprefix("sha256:")
    return found


def can_sign(key: Key) -> bool:
    """Return whether verifiers of Model Signing know this kind of key: ECDSA over P-256."""
    return key.scheme == "ecdsa-sha2-nistp256"


def seal(resources: Resources, subject: str, signer: Signer) -> bytes:
    """Return a bundle over files.

    Args:
        resources: The files.
        subject: What they are, for people.
        signer: A P-256 key (`can_sign`).
    """
    items = [
        {"name": name, "algorithm": "sha256", "digest": resources[name]}
        for name in sorted(resources)
    ]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject, "digest": {"sha256": _root(items)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
            "resources": items,
        },
    }
    payload = strict_json.encode(statement)
    signature = signer.sign(Envelope(payload, PAYLOAD_TYPE, {}).pae())
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": hint(signer.public_key)},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {"sig": base64.b64encode(bytes.fromhex(signature.signature)).decode(), "keyid": ""}
            ],
        },
    }
    return strict_json.encode(bundle)


def open_bundle(data: bytes, key: Key) -> Resources:
    """Return the files that a bundle vouches for, if `key` signed it.

    Raises:
        InvalidInputError: Not a bundle of this kind (code `malformed` or `provenance_unsupported`).
        TrustError: The key did not sign it, or it contradicts itself (code `provenance`).
    """
    bundle = _decode(data, _Bundle)
    envelope = bundle.dsse_envelope
    if bundle.media_type != BUNDLE_TYPE or envelope.payload_type != PAYLOAD_TYPE:
        raise _unsupported(f"it is a {bundle.media_type[:80]} of {envelope.payload_type[:80]}")
    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [base64.b64decode(each.sig, validate=True) for each in envelope.signatures]
    except ValueError as error:
        raise _malformed(str(error)) from error
    signed = Envelope(payload, PAYLOAD_TYPE, {}).pae()
    if len(signatures) != 1 or not _holds(key, signatures[0], signed):
        raise TrustError("The key did not sign this bundle.", code="provenance")
    return _read(_decode(payload, _Statement))


def check_files(vouched: Resources, files: Resources) -> None:
    """Check that a bundle vouches for exactly these files.

    Raises:
        TrustError: For another file, or not for all, or not for these bytes (code `provenance`).
    """
    wrong = sorted(name for name in {*vouched, *files} if vouched.get(name) != files.get(name))
    if wrong:
        raise TrustError(
            f"The bundle does not vouch for this {wrong[0]!r}.",
            code="provenance",
            hint="Sign the very files that come; nothing may be missing or be added.",
        )


def public_pem(key: Key) -> bytes:
    """Return a key as PEM, in the one spelling that Model Signing takes the hash of.

    Raises:
        InvalidInputError: It is no P-256 key (code `provenance_key`).
    """
    return _load(key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hint(key: Key) -> str:
    """Return how a bundle names its key: sha256 of its PEM, hexadecimal."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def read_public_key(pem: bytes) -> Key:
    """Return the P-256 key in a PEM file.

    Raises:
        InvalidInputError: It is none (code `provenance_key`).
    """
    from securesystemslib.signer import SSlibKey

    try:
        key = SSlibKey.from_crypto(load_pem_public_key(pem))
    except (ValueError, TypeError) as error:
        raise _no_key(str(error)) from error
    if not can_sign(key):
        raise _no_key(f"it is for {key.scheme}")
    return key


def _read(statement: _Statement) -> Resources:
    predicate = statement.predicate
    serialization = predicate.serialization
    if statement.predicate_type != PREDICATE_TYPE:
        raise _unsupported(f"its predicate is {statement.predicate_type[:80]}")
    if (serialization.method, serialization.hash_type) != ("files", "sha256"):
        raise _unsupported(
            f"it holds {serialization.hash_type[:40]} of {serialization.method[:40]}"
        )
    found = {resource.name: resource.digest for resource in predicate.resources}
    same = {resource.algorithm for resource in predicate.resources} == {"sha256"}
    if not same or len(found) != len(predicate.resources) or len(statement.subject) != 1:
        raise _malformed("its files are not named once each, with a sha256")
    try:
        root = _root([{"digest": resource.digest} for resource in predicate.resources])
    except ValueError as error:
        raise _malformed(str(error)) from error
    if statement.subject[0].digest.get("sha256") != root:
        raise TrustError("The bundle contradicts itself.", code="provenance")
    return found


def _root(items: list[dict[str, str]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(item["digest"]) for item in items)).hexdigest()


def _holds(key: Key, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify_signature(Signature(key.keyid, signature.hex()), signed)
    except UnverifiedSignatureError:
        return False
    return True


def _load(key: Key) -> ec.EllipticCurvePublicKey:
    text: Any = key.keyval.get("public")
    if not can_sign(key) or not isinstance(text, str):
        raise _no_key(f"it is for {key.scheme}")
    loaded = load_pem_public_key(text.encode())
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    return loaded


def _decode(data: bytes, kind: type[msgspec.Struct]) -> Any:
    return strict_json.decode(data, kind, max_bytes=BUNDLE_MAX_BYTES, what="signature bundle")


def _malformed(why: str) -> InvalidInputError:
    return InvalidInputError(f"The signature bundle cannot be read: {why}.", code="malformed")


def _unsupported(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The signature bundle is of a kind that is not verified here: {why}.",
        code="provenance_unsupported",
        hint="`model_signing sign key` with sha256 over files makes one that is.",
    )


def _no_key(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The key cannot verify a signature bundle: {why}.",
        code="provenance_key",
        hint="Expected is an ECDSA P-256 public key in PEM.",
    )

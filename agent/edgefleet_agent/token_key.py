"""A device key that lies on a PKCS#11 token, a TPM for example: made there, used there, never read.

Named by an RFC 7512 URI; needs the extra `pkcs11`. It takes the place of a key in a file: what
signs certificate requests and reports asks it for a signature and knows no difference.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self
from urllib.parse import unquote, unquote_to_bytes

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from edgefleet_shared.errors import InvalidInputError, UnavailableError

PATH_NAMES = frozenset({"token", "serial", "object", "id", "type"})
QUERY_NAMES = frozenset({"module-path", "pin-source", "pin-value"})
DEFAULT_LABEL = "edgefleet"


class TokenUri(NamedTuple):
    """A parsed URI. `id` is bytes or None; what is not said is ''."""

    module: str
    token: str
    serial: str
    label: str
    id: bytes | None
    pin: str


def parse(uri: str) -> TokenUri:
    """Read a URI as RFC 7512 has it, and the PIN that it points to.

    Raises:
        InvalidInputError: It cannot be read, names no module or no token, or its PIN file cannot be
            read (code `token`).
    """
    scheme, _, rest = uri.partition(":")
    if scheme != "pkcs11":
        raise _bad(f"{uri[:80]!r} is no pkcs11: URI")
    path, _, query = rest.partition("?")
    said = _attributes(path, ";", PATH_NAMES)
    how = _attributes(query, "&", QUERY_NAMES)
    if said.get("type", "private") != "private":
        raise _bad("type must be private")
    if "module-path" not in how:
        raise _bad("it has no module-path")
    if not said.get("token") and not said.get("serial"):
        raise _bad("it names neither token nor serial")
    return TokenUri(
        unquote(how["module-path"]),
        unquote(said.get("token", "")),
        unquote(said.get("serial", "")),
        unquote(said.get("object", "")) or DEFAULT_LABEL,
        unquote_to_bytes(said["id"]) if "id" in said else None,
        _pin(how),
    )


class TokenKey(ec.EllipticCurvePrivateKey):
    """An ECDSA P-256 key on a token; safe to share between threads.

    Args:
        uri: Where it lies.
        make: Whether to make it if the token has none of this name.

    Raises:
        InvalidInputError: The URI is bad, or there is no such key (code `token`).
        UnavailableError: The token does not answer (code `token_unavailable`).
    """

    def __init__(self, uri: TokenUri, *, make: bool = False) -> None:
        self._uri = uri
        self._turn = threading.Lock()
        self._session: Any = None
        self._private: Any = None
        with self._turn:
            self._public = self._connect(make=make)

    @classmethod
    def open(cls, uri: str, *, make: bool = False) -> Self:
        """Return the key that a URI names; raises as the class."""
        return cls(parse(uri), make=make)

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """256 bits."""
        return self._public.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return an ECDSA signature, DER.

        Raises:
            UnavailableError: The token does not answer.
        """
        digest = _digest(bytes(data), signature_algorithm)
        with self._turn:
            raw = self._sign(digest)
        half = len(raw) // 2
        return utils.encode_dss_signature(
            int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        )

    def exchange(self, *_: Any) -> bytes:
        """Refuse: the key signs and does nothing else."""
        _refuse()

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """Refuse: the key never leaves its token."""
        _refuse()

    def private_bytes(self, *_: Any, **__: Any) -> bytes:
        """Refuse: the key never leaves its token."""
        _refuse()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def _sign(self, digest: bytes) -> bytes:
        """Sign; a session that the token has ended meanwhile is opened once more."""
        import pkcs11

        for last in (False, True):
            try:
                if self._private is None:
                    self._connect(make=False)
                signed: bytes = self._private.sign(digest, mechanism=pkcs11.Mechanism.ECDSA)
            except (pkcs11.PKCS11Error, RuntimeError) as error:
                self._session = self._private = None
                if last:
                    raise _unavailable(self._uri, error) from error
            else:
                return signed
        raise AssertionError

    def _connect(self, *, make: bool) -> ec.EllipticCurvePublicKey:
        try:
            import pkcs11
        except ImportError as error:
            raise InvalidInputError(
                "A key on a token needs python-pkcs11, which is not installed.",
                code="token",
                hint="pip install 'edgefleet-agent[pkcs11]'",
            ) from error
        try:
            token = _token(pkcs11.lib(self._uri.module), self._uri)
            self._session = _log_in(pkcs11, token, self._uri.pin, make=make)
            found = self._find(pkcs11.ObjectClass.PRIVATE_KEY)
            if found is None and make:
                _generate(pkcs11, self._session, self._uri)
                found = self._find(pkcs11.ObjectClass.PRIVATE_KEY)
            public = self._find(pkcs11.ObjectClass.PUBLIC_KEY)
        except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
            raise _unavailable(self._uri, error) from error
        if found is None or public is None:
            raise _bad(f"token {self._uri.token!r} has no key pair {self._uri.label!r}")
        self._private = found
        return _public(public)

    def _find(self, kind: Any) -> Any:
        import pkcs11

        wanted: dict[Any, Any] = {pkcs11.Attribute.CLASS: kind}
        if self._uri.id is not None:
            wanted[pkcs11.Attribute.ID] = self._uri.id
        else:
            wanted[pkcs11.Attribute.LABEL] = self._uri.label
        found = list(self._session.get_objects(wanted))
        if len(found) > 1:
            raise _bad(f"{len(found)} keys on the token fit; name one by id")
        return found[0] if found else None


def _log_in(pkcs11: Any, token: Any, pin: str, *, make: bool) -> Any:
    try:
        return token.open(rw=make, user_pin=pin or None)
    except pkcs11.exceptions.UserAlreadyLoggedIn:
        # A login holds for all of a process, so that a second session needs none.
        return token.open(rw=make)


def _token(library: Any, uri: TokenUri) -> Any:
    wanted: dict[str, Any] = {}
    if uri.token:
        wanted["token_label"] = uri.token
    if uri.serial:
        wanted["token_serial"] = uri.serial.encode()
    return library.get_token(**wanted)


def _generate(pkcs11: Any, session: Any, uri: TokenUri) -> None:
    from pkcs11.util.ec import encode_named_curve_parameters

    parameters = session.create_domain_parameters(
        pkcs11.KeyType.EC,
        {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
        local=True,
    )
    parameters.generate_keypair(
        store=True,
        label=uri.label,
        id=uri.id or uri.label.encode(),
        # Said by nobody, the token's own word holds: tpm2-pkcs11 refuses what is not as it has it.
        public_template=dict.fromkeys(
            (pkcs11.Attribute.ENCRYPT, pkcs11.Attribute.WRAP, pkcs11.Attribute.VERIFY),
            pkcs11.constants.DEFAULT,
        ),
        private_template=dict.fromkeys(
            (
                pkcs11.Attribute.DECRYPT,
                pkcs11.Attribute.UNWRAP,
                pkcs11.Attribute.DERIVE,
                pkcs11.Attribute.SIGN,
            ),
            pkcs11.constants.DEFAULT,
        ),
    )


def _public(found: Any) -> ec.EllipticCurvePublicKey:
    from pkcs11.util.ec import encode_ec_public_key

    key = serialization.load_der_public_key(encode_ec_public_key(found))
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad("the key on the token is not ECDSA P-256")
    return key


def _digest(data: bytes, algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
    chosen = algorithm.algorithm
    if isinstance(chosen, utils.Prehashed):
        return data
    hasher = hashes.Hash(chosen)
    hasher.update(data)
    return hasher.finalize()


def _attributes(text: str, between: str, known: frozenset[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(between)):
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in found:
            raise _bad(f"its attribute {name[:40]!r} is unknown or said twice")
        found[name] = value
    return found


def _pin(how: Mapping[str, str]) -> str:
    if "pin-value" in how and "pin-source" in how:
        raise _bad("it has both pin-value and pin-source")
    if "pin-source" not in how:
        return unquote(how.get("pin-value", ""))
    path = Path(unquote(how["pin-source"]).removeprefix("file:"))
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"its pin-source {path} cannot be read: {error}") from error


def _refuse() -> NoReturn:
    raise InvalidInputError("The device's key never leaves its token.", code="token")


def _bad(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The key on a token cannot be used: {why}.",
        code="token",
        hint="[identity] key = 'pkcs11:token=NAME;object=LABEL?module-path=/PATH.so&"
        "pin-source=file:/PATH'",
    )


def _unavailable(uri: TokenUri, error: Exception) -> UnavailableError:
    said = str(error) or type(error).__name__
    return UnavailableError(
        f"The token {uri.token or uri.serial!r} does not answer: {said}.",
        code="token_unavailable",
        hint="Is it plugged in, its PIN right, and module-path readable for this user?",
    )

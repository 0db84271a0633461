"""A device key on a PKCS#11 token: SoftHSM, and a TPM 2.0 (swtpm) through tpm2-pkcs11."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgefleet_agent.token_key import parse
from edgefleet_shared.errors import InvalidInputError

pytest.importorskip("pkcs11", reason="python-pkcs11 (extra pkcs11) is not installed")

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
TPM_MODULES = list(Path("/usr/lib").glob("*/pkcs11/libtpm2_pkcs11.so"))
# A PKCS#11 module is loaded once in a process and reads its settings then, so that each test speaks
# to its token in a process of its own.
USE = """
import sys
from cryptography import x509
from edgefleet_agent.identity import load_or_make_key, load_key, request
from edgefleet_shared import dsse
from securesystemslib.signer import CryptoSigner, SSlibKey
from pathlib import Path
uri = sys.argv[1]
key = load_or_make_key(Path("."), uri)
again = load_key(Path("."), uri)
assert key.public_key() == again.public_key()
csr = x509.load_pem_x509_csr(request(again, "cam-1").encode())
assert csr.is_signature_valid and csr.public_key() == key.public_key()
public = SSlibKey.from_crypto(key.public_key())
sealed = dsse.seal(b"{}", "text/plain", CryptoSigner(again, public))
assert dsse.open_sealed(sealed, "text/plain", public) == b"{}"
for refused in (key.private_numbers, key.private_bytes, key.exchange):
    try:
        refused()
    except Exception as error:
        assert getattr(error, "code", "") == "token", error
    else:
        raise SystemExit("the key left its token")
print("works")
"""


def use(uri: str, environ: dict[str, str]) -> str:
    """Make a key on the token, find it again, sign with it; return what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", USE, uri],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.strip() or done.stderr


@pytest.fixture
def softhsm(tmp_path, monkeypatch):
    """A SoftHSM token `edge`, PIN in a file; its settings are in the environment."""
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    settings = tmp_path / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(settings))
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "edge", "--pin", "1234",
         "--so-pin", "5678"],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "pin").write_text("1234\n")
    return f"pkcs11:token=edge;object=device?module-path={SOFTHSM}&pin-source=file:{tmp_path}/pin"


@pytest.mark.softhsm2
def test_a_key_is_made_on_a_token_and_signs_there(softhsm):
    """Requests and reports are signed on it; nothing but the public half ever leaves."""
    assert use(softhsm, {}) == "works"
    assert use(softhsm, {}) == "works"


@pytest.mark.softhsm2
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("token=edge", "token=another"), "No token matching"),
        (("pin-source=file:", "x="), "attribute 'x' is unknown"),
        (("pin-source=file:", "pin-source=file:/no"), "pin-source /no"),
        ((str(SOFTHSM), "/no/such.so"), "/no/such.so"),
    ],
)
def test_a_token_that_does_not_answer_is_told(softhsm, change, words):
    """Another token, an unknown attribute or no module are told in one sentence with a hint."""
    said = use(softhsm.replace(*change), {})
    assert words in said.splitlines()[-1]


@pytest.fixture
def tpm(tmp_path):
    """A software TPM with a token `edge` in tpm2-pkcs11's store; yields its environment."""
    folder = tmp_path / "tpm"
    folder.mkdir()
    port = _free_pair()
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags",
         "not-need-init,startup-clear", "--server", f"type=tcp,port={port},bindaddr=127.0.0.1",
         "--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    tcti = f"swtpm:host=127.0.0.1,port={port}"
    environ = {
        "TPM2_PKCS11_STORE": str(tmp_path),
        "TPM2_PKCS11_TCTI": tcti,
        "TPM2TOOLS_TCTI": tcti,
    }
    tool = ["pkcs11-tool", "--module", str(TPM_MODULES[0]), "--so-pin", "5678"]
    try:
        _wait(port)
        for command in (
            [*tool, "--slot-index", "0", "--init-token", "--label", "edge"],
            [*tool, "--token-label", "edge", "--init-pin", "--pin", "1234"],
        ):
            _run(command, environ)
            flush(environ)
        yield environ
    finally:
        process.terminate()
        process.wait(10)


def flush(environ: dict[str, str]) -> None:
    """Free what a process has left in the TPM; on a device the kernel's /dev/tpmrm0 does."""
    for what in ("-t", "-l", "-s"):
        _run(["tpm2_flushcontext", what], environ)


def _run(command: list[str], environ: dict[str, str]) -> None:
    found = {**os.environ, **environ}
    subprocess.run(command, env=found, check=True, capture_output=True, timeout=60)


@pytest.mark.swtpm
def test_a_tpm_makes_and_uses_the_key(tpm):
    """TPM 2.0 through tpm2-pkcs11: the same URI, the same key over two processes."""
    uri = f"pkcs11:token=edge;object=device?module-path={TPM_MODULES[0]}&pin-value=1234"
    assert use(uri, tpm) == "works"
    flush(tpm)
    assert use(uri, tpm) == "works"


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:token=edge",
        "pkcs11:?module-path=/x.so",
        "pkcs11:token=a;token=b?module-path=/x.so",
        "pkcs11:token=a;type=public?module-path=/x.so",
        "pkcs11:token=a?module-path=/x.so&pin-value=1&pin-source=/y",
        "file:/x",
    ],
)
def test_an_address_that_cannot_be_is_refused(uri):
    """Without a module or token, with something said twice or unknown: no address of a key."""
    with pytest.raises(InvalidInputError) as caught:
        parse(uri)
    assert caught.value.code == "token"


def test_an_address_is_read_as_its_standard_has_it(tmp_path):
    """Percent signs, an id of bytes and a PIN in a file (RFC 7512 section 2.3)."""
    (tmp_path / "pin").write_text("12 34\n")
    uri = parse(
        f"pkcs11:token=my%20token;id=%01%ff?module-path=/a%2Fb.so&pin-source=file:{tmp_path}/pin"
    )
    assert (uri.token, uri.id, uri.module, uri.pin) == ("my token", b"\x01\xff", "/a/b.so", "12 34")


def _free_pair() -> int:
    """Return a port that is free together with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _wait(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port + 1)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("swtpm did not start")

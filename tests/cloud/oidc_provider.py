"""A real OpenID provider on this machine: npm's certified `oidc-provider`, run by node."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

VERSION = "9.13.3"
OLDEST_NODE = 20
AUDIENCE, OTHER_AUDIENCE = "urn:edgefleet:demo", "urn:something:else"
SCRIPT = Path(__file__).with_suffix(".mjs")


def installed() -> Path:
    """Return the folder where the provider lies, installed by the first who asks.

    Skips the test, with the reason, where node or npm is missing or the registry is out of reach.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"the OpenID provider needs {program}, which is not on PATH")
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(told.strip().lstrip("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"the OpenID provider needs node {OLDEST_NODE} or newer, this is {told}")
    place = Path.home() / ".cache" / "edgefleet-tests" / f"oidc-provider-{VERSION}"
    if not (place / "node_modules" / "oidc-provider").is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=place.parent))
        (fresh / "package.json").write_text('{"private": true}')
        words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            [*words, f"oidc-provider@{VERSION}"], cwd=fresh, capture_output=True, text=True,
            timeout=100, check=False,
        )  # fmt: skip
        if done.returncode:
            shutil.rmtree(fresh)
            pytest.skip(f"npm could not install the OpenID provider: {done.stderr[-300:]}")
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
    return place


def new_key(alg: str, kid: str) -> tuple[Any, dict[str, Any]]:
    """Return a private key, and the same as a JWK."""
    if alg == "RS256":
        key = rsa.generate_private_key(65537, 2048)
        entry = RSAAlgorithm.to_jwk(key, as_dict=True)
    elif alg == "ES256":
        key = ec.generate_private_key(ec.SECP256R1())
        entry = ECAlgorithm.to_jwk(key, as_dict=True)
    else:
        key = ed25519.Ed25519PrivateKey.generate()
        entry = OKPAlgorithm.to_jwk(key, as_dict=True)
    entry.pop("key_ops", None)
    return key, {**entry, "kid": kid, "use": "sig", "alg": alg}


class OidcProvider:
    """One provider; stopped and started again it may show other keys at the same address.

    Args:
        claims: Client id to what its tokens say beside the standard claims.
    """

    def __init__(self, claims: dict[str, dict[str, Any]]) -> None:
        self._place = installed()
        self._claims = claims
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.issuer = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self, alg: str, kid: str, keys: list[dict[str, Any]], life_s: int = 600) -> None:
        """Start with these keys (private JWKs), signing access tokens by one of them."""
        script = self._place / f"provider-{self._port}.mjs"
        shutil.copy(SCRIPT, script)
        clients = [
            {
                "client_id": name, "client_secret": f"secret-of-{name}", "redirect_uris": [],
                "response_types": [], "grant_types": ["client_credentials"],
            }
            for name in self._claims
        ]  # fmt: skip
        clients.append({
            "client_id": "edgefleet-cli", "token_endpoint_auth_method": "none",
            "redirect_uris": [], "response_types": [],
            "grant_types": ["urn:ietf:params:oauth:grant-type:device_code"],
        })  # fmt: skip
        wish = {
            "issuer": self.issuer, "port": self._port, "keys": keys, "alg": alg, "kid": kid,
            "life_s": life_s, "audience": AUDIENCE, "clients": clients, "claims": self._claims,
        }  # fmt: skip
        self._process = subprocess.Popen(
            ["node", str(script), json.dumps(wish)], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._process.stdout
        said = []
        while (line := self._process.stdout.readline()).strip() != "ready":
            said.append(line)
            assert self._process.poll() is None, "".join(said)
        script.unlink()

    def stop(self) -> None:
        """Stop it; again is fine."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=20)
            self._process = None

    def token(self, client: str, audience: str = AUDIENCE) -> str:
        """Return an access token that the provider gives a client for itself."""
        answer = httpx.post(
            f"{self.issuer}/token",
            data={"grant_type": "client_credentials", "scope": "fleet", "resource": audience},
            auth=(client, f"secret-of-{client}"),
        )
        assert answer.status_code == 200, answer.text
        found: str = answer.json()["access_token"]
        return found

    def shown(self) -> list[dict[str, Any]]:
        """Return the keys that it shows."""
        found: list[dict[str, Any]] = httpx.get(f"{self.issuer}/jwks").json()["keys"]
        return found

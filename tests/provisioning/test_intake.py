"""A signature by the model's maker, demanded before a model is even read."""

from __future__ import annotations

import json

import pytest
from securesystemslib.signer import CryptoSigner

from edgefleet_provisioning.variant_build import hash_file
from edgefleet_shared import provenance
from tests.provisioning import bad_models as bad
from tests.provisioning.test_provenance import official
from tests.provisioning.test_publish import arguments, big_model

__all__ = ["official"]


class Maker:
    """Somebody who signs the models in a folder."""

    def __init__(self, folder) -> None:
        self.signer = CryptoSigner.generate_ecdsa()
        self.folder = folder
        self.key = folder.parent / "maker.pub"
        self.key.write_bytes(provenance.public_pem(self.signer.public_key))

    def sign(self, **changes) -> None:
        """Sign every file of the folder into its model.sig."""
        files = {
            path.relative_to(self.folder).as_posix(): hash_file(path)[0][7:]
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != "model.sig"
        }
        bundle = provenance.seal({**files, **changes}, "theirs", self.signer)
        (self.folder / "model.sig").write_bytes(bundle)


@pytest.fixture
def model(tmp_path):
    """A good model in a folder of its own."""
    return bad.save(bad.good(), tmp_path / "theirs")


@pytest.fixture
def maker(model):
    """Its maker."""
    return Maker(model.parent)


def _layout(cli, model, maker, tmp_path, *more, code=0):
    options = ("--require-signature", maker.key, "--output", tmp_path / "layout", *more)
    return cli.run(*arguments(model), *options, code=code)


def test_a_signed_model_is_packaged_and_its_signature_noted(cli, model, maker, tmp_path):
    """The manifest says which signature by whose key was found."""
    maker.sign()
    _layout(cli, model, maker, tmp_path)
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    texts = [path.read_bytes() for path in blobs.iterdir()]
    (manifest,) = [json.loads(t) for t in texts if t.lstrip().startswith(b'{\n "schema": 1')]
    assert provenance.hint(maker.signer.public_key) in manifest["provenance"]["signed"]


def test_a_signature_over_the_folder_above_counts(cli, model, maker, tmp_path):
    """Makers sign whole repositories; the model lies somewhere inside."""
    inner = model.parent / "onnx" / model.name
    inner.parent.mkdir()
    model.rename(inner)
    maker.sign()
    _layout(cli, inner, maker, tmp_path, "--signature", maker.folder / "model.sig")


def test_what_is_not_what_was_signed_is_refused(cli, model, maker, tmp_path):
    """A changed model, a stranger's key, a missing or garbled signature: nothing is packaged."""
    error = lambda *more: cli.error(  # noqa: E731
        *arguments(model), "--output", tmp_path / "layout", "--require-signature", maker.key, *more,
        code=None,
    )  # fmt: skip
    assert error()["code"] == "missing_file"
    maker.sign()
    data = model.read_bytes()
    model.write_bytes(data + b"\0")
    assert "was changed since" in error()["message"]
    model.write_bytes(data)
    stranger = Maker(tmp_path / "theirs")
    stranger.key = maker.key
    stranger.sign()  # under a new key, but the file now holds that key's public half
    maker.key.write_bytes(provenance.public_pem(maker.signer.public_key))
    assert error()["code"] == "provenance"
    (model.parent / "model.sig").write_text("{}")
    assert error()["code"] == "malformed"
    maker.key.write_text("no key")
    assert error()["code"] == "provenance_key"
    assert not (tmp_path / "layout").exists()


def test_a_broken_model_without_signature_is_not_even_read(cli, model, maker, tmp_path):
    """Whether bytes are a model is asked after whose they are."""
    maker.sign()
    model.write_bytes(b"no model at all")
    error = cli.error(
        *arguments(model), "--output", tmp_path / "l", "--require-signature", maker.key, code=None
    )
    assert error["code"] == "provenance"


def test_external_data_must_be_signed_too(cli, tmp_path):
    """Weights beside the model are part of what was signed, or nothing is."""
    model = big_model(tmp_path)
    maker = Maker(model.parent)
    maker.sign()
    weights = model.parent / "heavy.bin"
    _layout(cli, model, maker, tmp_path)
    with weights.open("r+b") as file:
        file.write(b"\1")
    error = cli.error(
        *arguments(model), "--output", tmp_path / "l2", "--require-signature", maker.key, code=None
    )
    assert (error["code"], weights.name in error["message"]) == ("provenance", True)


def test_the_official_signer_s_bundles_are_understood(cli, model, maker, tmp_path, official):
    """What `model_signing sign key` makes, over a folder or one file, is accepted on intake."""
    alone = tmp_path / "alone" / model.name  # the official signer refuses symbolic links
    alone.parent.mkdir()
    model = model.rename(alone)
    key = tmp_path / "maker.pem"
    key.write_bytes(maker.signer.private_bytes)
    for signed, name in ((model.parent, "folder.sig"), (model, "file.sig")):
        path = tmp_path / name
        made = official("sign", "key", signed, "--private_key", key, "--signature", path)
        assert made.returncode == 0, made.stderr
        options = ("--require-signature", maker.key, "--signature", path)
        cli.run(*arguments(model), *options, "--output", tmp_path / f"layout-{name}")

"""`edgefleet model publish`: what is signed, sent, repeated, interrupted and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tuf.api.metadata import Metadata
from tuf.ngclient import Updater

from edgefleet_provisioning import keys
from edgefleet_provisioning.api import Api
from edgefleet_provisioning.errors import UnreachableError
from edgefleet_provisioning.settings import Connection
from edgefleet_provisioning.upload import PART_BYTES, upload
from edgefleet_provisioning.variant_build import hash_file
from edgefleet_shared import safetensors_file
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import decode_manifest, target_path
from tests.fakes.fleet_api import FleetApi
from tests.provisioning import bad_models as bad


@pytest.fixture
def model(tmp_path):
    """A good model in a folder of its own."""
    return bad.save(bad.good(), tmp_path / "m")


@pytest.fixture
def sample(tmp_path):
    """Twenty training rows."""
    path = tmp_path / "sample.npz"
    np.savez(path, x=np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32))
    return path


def arguments(model, version="1.0.0", *more):
    """The command without the options that say where."""
    return ("model", "publish", model, "--name", "digits", "--version", version, *more)


def as_a_device(api, fleet, tmp_path, version):
    """Return the catalog's entry as a TUF client sees it that trusts the first root alone."""
    cache = tmp_path / f"device-{version}"
    cache.mkdir()
    root = (fleet / "offline" / "metadata" / "1.root.json").read_bytes()
    fetcher = BundleFetcher(dict(api.repository.files))
    client = Updater(str(cache), "https://tuf/", fetcher=fetcher, bootstrap=root)
    client.refresh()
    return client.get_targetinfo(target_path("digits", version))


def test_a_device_finds_and_verifies_what_was_published(
    operator, api, fleet, tmp_path, model, sample
):
    """The TUF entry has the manifest's digest, length and counters; every blob is on the server."""
    (tmp_path / "labels.txt").write_text("even\nodd\n")
    told = operator.json(
        *arguments(model), "--sample", sample, "--labels", tmp_path / "labels.txt",
        "--license", "Apache-2.0", "--description", "Sums", "--hardware", "rpi5",
        "--memory-mb", 300, "--load-s", 9,
    )  # fmt: skip
    target = as_a_device(api, fleet, tmp_path, "1.0.0")
    data = api.blobs[told["manifest"]]
    target.verify_length_and_hashes(data)
    assert target.custom == {"release_counter": 1, "security_floor": 0, "hardware": ["rpi5"]}
    manifest = decode_manifest(data)
    variant = manifest.variants[0]
    assert {entry.role for entry in variant.files} == {"onnx", "golden", "labels"}
    assert all(sha256_digest(api.blobs[e.digest]) == e.digest for e in variant.files)
    assert (variant.limits.memory_mb, variant.limits.load_s) == (300, 9)
    assert (manifest.labels, manifest.license) == (["even", "odd"], "Apache-2.0")
    assert [spec.shape for spec in variant.inputs] == [[-1, 4]]
    assert len(manifest.reference) == 4
    assert not told["already_published"]


def test_golden_answers_are_what_the_model_answers(operator, api, model, sample):
    """The safetensors file holds cases whose outputs are the product that the model computes."""
    told = operator.json(*arguments(model), "--sample", sample)
    manifest = decode_manifest(api.blobs[told["manifest"]])
    golden = manifest.variants[0].golden
    tensors = safetensors_file.decode(api.blobs[manifest.variants[0].file("golden").digest])
    assert golden.cases == 4
    for case in range(golden.cases):
        given = np.frombuffer(tensors[f"{case}.input.x"].data, "<f4").reshape(-1, 4)
        answer = np.frombuffer(tensors[f"{case}.output.y"].data, "<f4").reshape(-1, 2)
        assert np.allclose(answer, given.sum(axis=1, keepdims=True), rtol=1e-5)


def test_counters_grow_and_the_floor_never_sinks(operator, api, fleet, tmp_path, model):
    """Each version has the next counter; a floor once set is kept, and cannot be lowered."""
    assert operator.json(*arguments(model, "1.0.0"))["release_counter"] == 1
    second = operator.json(*arguments(model, "2.0.0", "--security-floor", 2))
    assert (second["release_counter"], second["security_floor"]) == (2, 2)
    assert operator.json(*arguments(model, "3.0.0"))["security_floor"] == 2
    for floor in (1, 9):
        failed = operator.error(*arguments(model, "4.0.0", "--security-floor", floor))
        assert failed["code"] == "security_floor"
    custom = as_a_device(api, fleet, tmp_path, "3.0.0").custom
    assert custom["release_counter"] == 3


def test_publishing_the_same_again_changes_nothing(operator, api, model, sample):
    """The second time says so, exits 0, and sends nothing to the server."""
    first = operator.json(*arguments(model), "--sample", sample)
    before = dict(api.repository.files)
    api.asked.clear()
    again = operator.json(*arguments(model), "--sample", sample)
    assert again["already_published"]
    assert again["manifest"] == first["manifest"]
    assert api.repository.files == before
    assert {method for method, _, _ in api.asked} == {"GET"}
    assert "published before" in operator.run(*arguments(model), "--sample", sample).stdout


def test_the_same_version_with_other_bytes_is_refused(operator, api, tmp_path, model):
    """Another model, or other settings, under a published version is an error that names them."""
    operator.run(*arguments(model))
    other = bad.save(
        bad.with_function([bad.helper.make_node("Relu", ["a"], ["b"])]), tmp_path / "o"
    )
    failed = operator.error(*arguments(other))
    assert (failed["code"], "model.onnx" in failed["message"]) == ("version_taken", True)
    failed = operator.error(*arguments(model, "1.0.0", "--memory-mb", 77))
    assert (failed["code"], "settings" in failed["message"]) == ("version_taken", True)
    assert len(api.versions) == 1


def big_model(tmp_path):
    """A model whose weights take three parts of an upload."""
    elements = 2 * PART_BYTES // 4 + 1000
    folder = tmp_path / "big"
    model = bad.good()
    tensor = bad.external("heavy.bin", length=elements * 4, name="v")
    tensor.dims[:] = [elements]
    model.graph.initializer.append(tensor)
    path = bad.save(model, folder)
    rng = np.random.default_rng(3)
    (folder / "heavy.bin").write_bytes(rng.bytes(elements * 4))
    return path


def test_external_data_travels_with_the_model(operator, api, tmp_path):
    """A file beside the model becomes a blob of its own role, whole."""
    path = big_model(tmp_path)
    told = operator.json(*arguments(path))
    entry = next(file for file in told["files"] if file["role"] == "onnx_external")
    assert entry["path"] == "heavy.bin"
    assert api.blobs[entry["digest"]] == (path.parent / "heavy.bin").read_bytes()


def sent(api):
    """Bytes that the server took in parts of uploads."""
    return sum(len(body) for method, _, body in api.asked if method == "PATCH")


@pytest.mark.parametrize("cut", [0, 1000, PART_BYTES, PART_BYTES + 12345, 2 * PART_BYTES + 100])
def test_a_cut_connection_goes_on_where_it_stopped(operator, api, tmp_path, cut):
    """When the line breaks at an offset, what the server has is not sent again."""
    path = big_model(tmp_path)
    api.cuts = [cut]
    told = operator.json(*arguments(path))
    assert api.cuts == []
    digest, size = hash_file(path.parent / "heavy.bin")
    assert sha256_digest(api.blobs[digest]) == digest
    others = sum(file["size"] for file in told["files"] if file["digest"] != digest)
    assert sent(api) < size + others + 100_000 + told["size"]


def test_an_interrupted_run_is_finished_by_the_next(operator, api, fleet, tmp_path):
    """A publisher that dies midway leaves its parts; the next run sends only the rest."""
    path = big_model(tmp_path)
    digest, size = hash_file(path.parent / "heavy.bin")

    class DiedError(Exception):
        pass

    def die(done):
        if done >= PART_BYTES:
            raise DiedError

    with Api(Connection(api.url, api.token)) as client, pytest.raises(DiedError):
        upload(client, digest, size, path.parent / "heavy.bin", die)
    api.asked.clear()
    operator.run(*arguments(path))
    parts = [len(body) for method, _, body in api.asked if method == "PATCH"]
    assert PART_BYTES <= sum(parts) < size - PART_BYTES + 200_000
    assert api.blobs[digest]


def test_a_server_that_stays_away_is_given_up():
    """After the retries an upload ends as unreachable, having paused longer each time."""
    pauses = []
    with (
        Api(Connection("http://127.0.0.1:9", "")) as client,
        pytest.raises(UnreachableError, match="does not answer"),
    ):
        upload(client, sha256_digest(b"x"), 1, b"x", lambda done: None, pauses.append)
    assert pauses == sorted(pauses)
    assert len(pauses) == 5


def test_progress_tells_each_file_once(operator, model):
    """Without a terminal each file is one line on standard error, and the result on the other."""
    result = operator.run(*arguments(model))
    assert "model.onnx: " in result.stderr
    assert "manifest.json: " in result.stderr
    assert "digits 1.0.0 is published" in result.stdout


def test_a_server_with_another_fleets_catalog_is_not_believed(operator, api, cli, tmp_path, model):
    """Metadata that the local root does not vouch for stops everything before a signature."""
    cli.run("init", tmp_path / "evil", "--fleet", "evil", "--family", "digits",
            "--insecure-no-passphrase")  # fmt: skip
    folder = tmp_path / "evil" / "online" / "metadata"
    api.repository.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert operator.error(*arguments(model), code=1)["code"] == "untrusted_catalog"
    assert api.uploads == {}


def test_an_older_catalog_is_not_believed(operator, api, model):
    """A server that goes back to an earlier catalog is found out by what was seen before."""
    before = dict(api.repository.files)
    operator.run(*arguments(model))
    operator.run(*arguments(model, "2.0.0"))  # now the newer catalog has been seen
    api.repository.files = before
    assert operator.error(*arguments(model, "3.0.0"), code=1)["code"] == "untrusted_catalog"


def test_a_changed_publisher_role_is_not_signed_over(operator, api, model):
    """A flipped bit in the publisher's role stops the next publish."""
    operator.run(*arguments(model))
    name = "2.publisher%2Fdigits.json"
    role = json.loads(api.repository.files[name])
    role["signed"]["targets"] = {}
    api.repository.files[name] = json.dumps(role).encode()
    assert operator.error(*arguments(model, "2.0.0"), code=1)["code"] == "untrusted_catalog"


def test_a_manifest_that_the_server_exchanged_is_found_out(operator, api, model):
    """Asked for a published version, a server must give the bytes that were signed."""
    told = operator.json(*arguments(model))
    api.blobs[told["manifest"]] = b"{}"
    assert operator.error(*arguments(model), code=1)["code"] == "manifest_differs"


def test_another_publishers_key_is_refused_before_anything_is_sent(operator, api, fleet, model):
    """A key that the targets role does not name signs nothing."""
    pem = keys.encode_private(keys.generate("publisher-1", "publisher").signer, None)
    (fleet / "offline" / "keys" / "publisher-1.pem").write_bytes(pem)
    assert operator.error(*arguments(model), code=1)["code"] == "wrong_key"
    assert api.uploads == {}


def test_the_passphrase_comes_from_a_file(cli, tmp_path, model):
    """With encrypted keys the file opens them; a wrong one or none is said clearly."""
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    secret.write_text("correct horse battery\n")
    wrong.write_text("incorrect horse\n")
    folder = tmp_path / "locked"
    cli.run("init", folder, "--fleet", "f", "--family", "digits", "--passphrase-file", secret)
    with FleetApi(folder / "online") as server:
        cli.arguments = ["--fleet", str(folder), "--server", server.url]
        assert cli.error(*arguments(model))["code"] == "passphrase_needed"
        failed = cli.error(*arguments(model), "--passphrase-file", wrong)
        assert failed["code"] == "passphrase_wrong"
        cli.run(*arguments(model), "--passphrase-file", secret)
        cli.run("trust", "delegate", "second", "--passphrase-file", secret)


def test_an_oci_layout_can_be_written_without_a_fleet(cli, tmp_path, model, sample):
    """--output writes index, image manifest and blobs whose digests are their names."""
    folder = tmp_path / "oci"
    told = cli.json(*arguments(model), "--sample", sample, "--output", folder)
    for path in (folder / "blobs" / "sha256").iterdir():
        assert sha256_digest(path.read_bytes()) == f"sha256:{path.name}"
    index = json.loads((folder / "index.json").read_text())
    image_digest = index["manifests"][0]["digest"]
    image = json.loads((folder / "blobs/sha256" / image_digest.split(":")[1]).read_text())
    assert image["config"]["digest"] == told["manifest"]
    manifest = decode_manifest((folder / "blobs/sha256" / told["manifest"][7:]).read_bytes())
    entries = {entry.digest: entry.size for entry in manifest.variants[0].files}
    assert {layer["digest"]: layer["size"] for layer in image["layers"]} == entries
    assert cli.error(*arguments(model), "--output", folder)["code"] == "exists"


BAD = {
    "a version that is none": (["--version", "1.0"], "invalid_version"),
    "a model name that is none": (["--name", "A B"], "invalid_name"),
    "a family of nobody": (["--name", "other"], "no_family"),
    "a licence that is none": (["--license", "do what you want!"], "invalid_license"),
    "a hardware id that is none": (["--hardware", "a b"], "invalid_hardware"),
    "no memory": (["--memory-mb", "0"], "usage"),
    "labels that are missing": (["--labels", "/nowhere"], "bad_labels"),
    "labels that are not text": (["--labels", "/bin/true"], "bad_labels"),
    "golden that is missing": (["--golden", "/nowhere.npz"], "missing_file"),
    "golden that is no npz": (["--golden", "/bin/true"], "bad_npz"),
    "sample that is missing": (["--sample", "/nowhere.npz"], "missing_file"),
    "a fleet folder that is none": (["--fleet", "/tmp"], "missing_file"),
    "a server that is no address": (["--server", "not an address"], "invalid_address"),
    "a token that cannot be sent": (["--token", "a b\n"], "bad_token"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_publishes_nothing(operator, api, model, case):
    """Each is one paragraph and exit code 2, and the server holds nothing of it."""
    more, code = BAD[case]
    operator.arguments = []
    base = ["--fleet", api_fleet(api), "--server", api.url]
    assert operator.error(*arguments(model), *base, *more)["code"] == code
    assert api.uploads == {}
    assert api.versions == {}


def test_one_array_without_a_name_is_no_golden_file(operator, api, model, tmp_path):
    """What numpy.save writes is refused with the way to name it."""
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 4), np.float32))
    told = operator.error(*arguments(model, "1.0.0", "--golden", tmp_path / "x.npy"))
    assert (told["code"], "numpy.savez" in told["hint"]) == ("bad_npz", True)
    assert api.uploads == {}


def api_fleet(api):
    """The folder that an API stands over."""
    return str(api.online.parent)


def test_a_bad_model_is_refused_before_the_server_is_asked(operator, api, tmp_path):
    """Lint comes first: nothing is signed or sent."""
    path = bad.save(bad.with_external("../secret"), tmp_path / "bad")
    assert operator.error(*arguments(path))["code"] == "external_data_path"
    assert api.asked == []


def test_no_server_is_exit_code_three(cli, fleet, model):
    """An address where nobody listens is said so."""
    cli.arguments = ["--fleet", str(fleet), "--server", "http://127.0.0.1:9"]
    assert cli.error(*arguments(model), code=3)["code"] == "server_unreachable"


def test_a_wrong_token_says_how_to_give_one(operator, api, model):
    """401 becomes one paragraph that names the three ways."""
    failed = operator.error(*arguments(model), "--token", "wrong", code=1)
    assert "EDGEFLEET_TOKEN" in failed["hint"]


def test_a_catalog_that_forgot_a_release_is_not_signed_again(operator, api, model):
    """A server that took a version and then shows what was before gets no second list."""
    before = dict(api.repository.files)
    operator.run(*arguments(model))
    api.repository.files = before
    error = operator.error(*arguments(model, "2.0.0"), code=1)
    assert error["code"] == "untrusted_catalog"


def test_trust_delegate_lets_a_second_family_be_published(operator, api, fleet, tmp_path, model):
    """Two targets keys sign a new family, TUF clients accept it, and its first version goes up."""
    told = operator.json("trust", "delegate", "audio")
    assert told["files"] == ["1.publisher%2Faudio.json", "2.targets.json"]
    assert told["signed_by"] == ["publisher-1", "targets-1", "targets-2"]
    targets = Metadata.from_bytes(api.repository.files["2.targets.json"]).signed
    assert list(targets.delegations.roles) == [
        "audit", "publisher/digits", "publisher/audio", "director",
    ]  # fmt: skip
    operator.run("model", "publish", model, "--name", "audio", "--version", "1.0.0")
    assert as_a_device(api, fleet, tmp_path, "9.9.9") is None
    roles = {role["role"]: role for role in operator.json("trust", "show")}
    assert roles["publisher/audio"]["version"] == 2
    assert roles["publisher/audio"]["releases"] == 1
    assert roles["targets"]["version"] == 2
    assert "targets-1" in operator.run("trust", "show").stdout
    assert operator.error("trust", "delegate", "audio")["code"] == "family_exists"


def test_trust_delegate_needs_enough_keys(operator, api, fleet):
    """With one of the two targets keys that must sign, nothing is sent."""
    for number in (2, 3):
        (fleet / "offline" / "keys" / f"targets-{number}.pem").unlink()
    assert operator.error("trust", "delegate", "audio")["code"] == "threshold"
    assert not [entry for entry in api.asked if entry[0] == "POST"]

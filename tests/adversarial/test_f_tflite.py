"""Section F for TFLite: the device's own reader sees every trap before a runtime sees the file."""

from __future__ import annotations

import os
import re
import struct
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.ipc.frames import Order
from edgefleet_agent.worker import compose, lint, opening
from edgefleet_shared import flatbuffer, tflite_file, tflite_rules, tflite_schema
from edgefleet_shared.errors import IncompatibleError
from edgefleet_shared.package import Limits
from tests import tflite_models as light
from tests.adversarial.hostile_tflite import VARIANTS
from tests.agent.gateways import Gateway, fp32
from tests.models import Package, linear, package

GOOD = {
    "linear": light.linear, "mlp": light.mlp, "conv": light.conv, "int8": light.quantised,
    "logarithm": light.logarithm, "loop": light.slow, "text": light.echo_text,
    "unsigned": lambda: light.mlp(signed=False),
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A real gateway that serves a good model."""
    one = Gateway()
    one.control.serve(package(tmp_path_factory.mktemp("good"), linear(2.0)))
    yield one
    one.close()


def described(folder: Path, data: bytes) -> Package:
    """A package of any bytes, described as the good TFLite model is."""
    good = package(folder, light.mlp(), limits=Limits(memory_mb=512))
    good.paths[0].write_bytes(data)
    entry = good.spec.files[0]
    entry = msgspec.structs.replace(entry, size=len(data))
    return Package(msgspec.structs.replace(good.spec, files=[entry]), good.paths)


def refused(one: Package) -> str:
    """Return the code by which the lint refuses a package, '' if it lets it pass."""
    (fd,) = one.open()
    try:
        lint.check(one.spec, [fd])
    except IncompatibleError as error:
        assert "before it is loaded" in error.message
        return error.code
    finally:
        os.close(fd)
    return ""


@pytest.mark.parametrize("name", VARIANTS)
def test_48_what_leads_a_runtime_astray_is_refused(tmp_path, name):
    """Every way out of the file, past an end or around the order has its code."""
    assert refused(described(tmp_path, VARIANTS[name].build())) == VARIANTS[name].code


@pytest.mark.parametrize("name", GOOD)
def test_48_good_tflite_models_pass(tmp_path, name):
    """What converters write is let pass: signatures or none, quantised, loops, text."""
    assert refused(described(tmp_path, GOOD[name]())) == ""


def test_48_no_runtime_is_asked_about_a_hostile_tflite_file(monkeypatch, tmp_path):
    """The lint comes first: a runtime that must not be opened is not."""

    class Untouchable:
        def open(self, *_):
            raise AssertionError("the runtime was asked")

    monkeypatch.setattr(compose, "runtime", lambda _: Untouchable())
    for hostile in VARIANTS.values():
        one = described(tmp_path, hostile.build())
        order = Order(one.spec, prove=True, threads=1, parent=os.getpid())
        found = opening.open_model(order, one.open())
        assert (found.report.code, found.session) == (hostile.code, None)


def test_49_a_real_worker_refuses_foreign_tflite_operators(gateway, tmp_path):
    """Custom, Flex and delegate operators are refused by the worker, which says why."""
    for name in ("custom operator", "Flex operator", "delegate in a file", "another file"):
        outcome = gateway.control.prove(described(tmp_path, VARIANTS[name].build()))
        assert (outcome.ok, outcome.code) == (False, VARIANTS[name].code), outcome
    assert gateway.infer(fp32("x", [1] * 4, [1, 4]))[0] == 200


def test_49_an_accelerators_own_operator_is_for_it_alone(tmp_path):
    """The Edge TPU's operator is let pass for accelerator `npu`, and for no other."""
    data = VARIANTS["another accelerator's operator"].build()
    one = described(tmp_path, data)
    one.spec = msgspec.structs.replace(one.spec, accelerator="npu")
    assert refused(one) == ""


def test_48_the_tflite_schema_is_the_librarys():
    """Every table, field, type and number is the one in the schema that ai-edge-litert ships."""
    theirs = Shipped()
    assert dict(enumerate(tflite_schema.SCHEMA.unions["BuiltinOptions"])) == theirs.union(
        "BuiltinOptions"
    )
    assert dict(enumerate(tflite_schema.SCHEMA.unions["BuiltinOptions2"])) == theirs.union(
        "BuiltinOptions2"
    )
    for name in ("QuantizationDetails", "SparseIndexVector"):
        assert dict(enumerate(tflite_schema.SCHEMA.unions[name])) == theirs.union(name)
    ours = {
        name: [field.kind.partition(":")[0] for field in fields]
        for name, fields in tflite_schema.SCHEMA.tables.items()
    }
    assert ours == {name: theirs.kinds(name) for name in ours}
    for code in ("CUSTOM", "DELEGATE", "STABLEHLO_CUSTOM_CALL"):
        assert getattr(tflite_schema, code) == getattr(light.s.BuiltinOperator, code)
    numbers = [v for k, v in vars(light.s.BuiltinOperator).items() if k[0] != "_"]
    assert max(numbers) == tflite_schema.LAST_OPERATOR
    kinds = [v for k, v in vars(light.s.TensorType).items() if k[0] != "_"]
    assert max(kinds) == len(tflite_schema.ELEMENT_BITS) - 1


LETTERS = {
    "Bool": "?", "Int8": "b", "Uint8": "B", "Int32": "i", "Uint32": "I", "Float32": "f",
    "Int64": "q", "Uint64": "Q",
}  # fmt: skip
WIDTHS = {"1": "[B]", "2": "[H]", "4": "[i]", "8": "[q]"}


class Shipped:
    """The schema in the generated code of the library, read from its text."""

    def __init__(self) -> None:
        path = find_spec("ai_edge_litert.schema_py_generated").origin
        self.text = Path(path).read_text()
        parts = re.split(r"^class (\w+)\(object\):\n", self.text, flags=re.MULTILINE)
        self.classes = dict(zip(parts[1::2], parts[2::2], strict=True))

    def union(self, name: str) -> dict[int, str]:
        named = vars(getattr(light.s, name))
        found = {v: k for k, v in named.items() if isinstance(v, int) and k[0] != "_"}
        return {**found, 0: ""}

    def kinds(self, table: str) -> list[str]:
        found: dict[int, str] = {}
        pattern = rf"^def {table}Add(\w+)\(builder, \w+\):\n\s+builder\.Prepend(\w+?)Slot\((\d+),"
        for field, kind, slot in re.findall(pattern, self.text, re.MULTILINE):
            letter = LETTERS.get(kind)
            found[int(slot)] = letter or self._offset(table, field)
        return [found.get(slot, "-") for slot in range(max(found, default=-1) + 1)]

    def _offset(self, table: str, field: str) -> str:
        code = re.split(rf"    def {field}\(self", self.classes[table], maxsplit=1)[1]
        code = code.split("    # ")[0]
        if "Union(" in code:
            return "u"
        if made := re.search(r"obj = (\w+)\(\)", code):
            return made[1] if code.startswith("):") else f"[{made[1]}]"
        if "String(" in code:
            return "s"
        start = rf"{table}Start{field}Vector\(builder, numElems\):\n.*StartVector\((\d+),"
        return WIDTHS[re.search(start, self.text)[1]]


@given(st.binary(max_size=300), st.booleans())
def test_48_any_bytes_get_a_verdict_as_tflite(data, headed):
    """The reader ends with a model or with its own error, never with another."""
    body = data[:4] + b"TFL3" + data[4:] if headed else data
    try:
        flatbuffer.read(memoryview(body), tflite_schema.SCHEMA, "Model", b"TFL3")
    except flatbuffer.FlatbufferError:
        return
    raise AssertionError("random bytes are no model")


def test_48_every_number_of_a_file_may_be_wrong(tmp_path):
    """Each aligned number of a model set to each of seven values: a verdict, never a crash."""
    data = light.linear()
    for at in range(0, len(data) - 3, 4):
        for value in (0, 1, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(data)):
            body = bytearray(data)
            struct.pack_into("<I", body, at, value)
            try:
                model = tflite_file.read(memoryview(body))
            except tflite_file.ModelError:
                continue
            list(tflite_rules.check(model, max_bytes=2**30, custom=()))


def tower(levels: int, width: int) -> bytes:
    """Tables each of which holds a vector of `width` times the same next one."""
    data = bytearray(struct.pack("<I4s", 16, b"TFL3"))
    data += struct.pack("<HHHH", 6, 8, 4, 0)  # one vtable for all: a table of 8 bytes, one field
    for _ in range(levels):
        at = len(data)
        data += struct.pack("<iII", at - 8, 4, width)
        begin, end = len(data), len(data) + 4 * width
        data += b"".join(struct.pack("<I", end - begin - 4 * i) for i in range(width))
    return bytes(data + struct.pack("<iII", len(data) - 8, 4, 0))


def test_48_one_table_named_a_million_times_is_read_once():
    """A file of 40 kB whose tree has 500^20 leaves is read in a moment, and depth has an end."""
    schema = flatbuffer.Schema({"R": (flatbuffer.Field("v", "[R]"),)}, {})
    data = tower(20, 500)
    root = flatbuffer.read(memoryview(data), schema, "R", b"TFL3")
    assert len(root.get("v")) == 500
    assert root.get("v")[0] is root.get("v")[499]
    with pytest.raises(flatbuffer.FlatbufferError, match="without an end"):
        flatbuffer.read(memoryview(tower(40, 1)), schema, "R", b"TFL3")

"""Mutants of a valid model, each proved by the real gateway in a process of its own.

`python -m tests.adversarial.mutants [COUNT [SEED]]` proves 4 000 and prints how each kind ended.
"""

from __future__ import annotations

import collections
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from edgefleet_agent.ipc.control import Outcome
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import Limits
from tests.agent.gateways import Gateway, fp32
from tests.models import Package, golden_bytes, linear, mlp, package

LIMITS = Limits(memory_mb=512, load_s=5)
WORDS = (b"", b"\0", b"\xff" * 8, b"\x80" * 9 + b"\x01", b"\xff\xff\xff\x7f", b"../../etc/passwd")


def mutant(data: bytes, seed: int) -> bytes:
    """Return the model with one to eight wounds, the same for the same seed."""
    dice, body = random.Random(seed), bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 8))):
        if len(body) < 2:
            break
        at = dice.randrange(len(body))
        kind = dice.randrange(8)
        if kind < 3:
            body[at] ^= 1 << dice.randrange(8)
        elif kind == 3:
            body[at] = dice.randrange(256)
        elif kind == 4:
            body[at : at + dice.randrange(1, 5)] = dice.choice(WORDS)
        elif kind == 5:
            body[at:at] = body[at : at + dice.randrange(1, 64)]
        elif kind == 6:
            del body[at : at + dice.randrange(1, 16)]
        else:
            del body[max(1, at) :]
    return bytes(body)


class Bench:
    """A gateway that serves a good model while it proves mutants of another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gateway = Gateway()
        self.gateway.control.serve(package(folder, linear(2.0), name="good"))
        self.model = mlp()
        self.parent = self._parent()
        assert self.gateway.control.prove(self.parent).ok
        self.pid = self.gateway.process.pid
        self.zygote = self.gateway.zygote()

    def _parent(self) -> Package:
        import onnxruntime

        session = onnxruntime.InferenceSession(self.model, providers=["CPUExecutionProvider"])
        x = np.random.default_rng(1).normal(size=(1, 64)).astype(np.float32)
        answers = session.run(None, {"x": x})
        outputs = {o.name: a for o, a in zip(session.get_outputs(), answers, strict=True)}
        golden = golden_bytes([({"x": x}, outputs)])
        return package(self.folder, self.model, golden=golden, cases=1, limits=LIMITS)

    def prove(self, seed: int) -> Outcome:
        """Prove one mutant; the file is gone afterwards."""
        data = mutant(self.model, seed)
        entry, *rest = self.parent.spec.files
        entry = msgspec.structs.replace(entry, digest=sha256_digest(data), size=len(data))
        spec = msgspec.structs.replace(
            self.parent.spec, files=[entry, *rest], digest=sha256_digest(data + b"mutant")
        )
        path = self.folder / "mutant"
        path.write_bytes(data)
        outcome = self.gateway.control.prove(Package(spec, [path, *self.parent.paths[1:]]))
        assert isinstance(outcome, Outcome)
        return outcome

    def sound(self) -> bool:
        """Whether gateway and zygote are those of the beginning, and the good model answers."""
        alive = self.gateway.process.poll() is None and self.gateway.process.pid == self.pid
        answered = self.gateway.infer(fp32("x", [1] * 4, [1, 4]), "good")[0] == 200
        return alive and answered and self.gateway.zygote() == self.zygote

    def close(self) -> None:
        """End the gateway."""
        self.gateway.close()


def main() -> int:
    """Prove as many as the command line says."""
    given = [int(argument) for argument in sys.argv[1:3]]
    count, first = given + [4000, 0][len(given) :]
    kinds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        begun = time.monotonic()
        try:
            for seed in range(first, first + count):
                outcome = bench.prove(seed)
                kinds["proved" if outcome.ok else outcome.code] += 1
                if outcome.code in {"crashed", "sandbox_violation"}:
                    print(f"seed {seed}: {outcome.message}", file=sys.stderr)
            sound = bench.sound()
        finally:
            bench.close()
    seconds = round(time.monotonic() - begun, 1)
    print(json.dumps({"mutants": count, "seconds": seconds, "sound": sound, **kinds}))
    return 0 if sound and sum(kinds.values()) == count else 1


if __name__ == "__main__":
    sys.exit(main())

"""Mutants of a valid model, each proved by the real gateway in a process of its own.

`python -m tests.adversarial.mutants onnx|tflite [COUNT [SEED]]` proves 4,000 as if each had been
signed, and prints how each kind ended. `pen` does the same much faster, without a gateway.
"""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from edgefleet_agent.ipc.control import Outcome
from edgefleet_shared.identifiers import sha256_digest
from tests.adversarial.breeding import breed
from tests.adversarial.pen import parent
from tests.agent.gateways import Gateway, fp32
from tests.models import Package, linear, package


class Bench:
    """A gateway that serves a good model while it proves mutants of another."""

    def __init__(self, folder: Path, form: str) -> None:
        self.folder, self.form = folder, form
        self.gateway = Gateway()
        self.gateway.control.serve(package(folder, linear(2.0), name="good"))
        self.parent = parent(folder, form)
        assert self.gateway.control.prove(self.parent).ok
        self.pid = self.gateway.process.pid
        self.zygote = self.gateway.zygote()

    def prove(self, seed: int) -> Outcome:
        """Prove one mutant; the file is gone afterwards."""
        data = breed(self.form, seed)
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
    given = [int(argument) for argument in sys.argv[2:4]]
    count, first = given + [4000, 0][len(given) :]
    kinds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), sys.argv[1])
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

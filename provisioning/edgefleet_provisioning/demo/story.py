"""The course of the demo: three versions, three rollouts, one that undoes itself."""

from __future__ import annotations

import time
from typing import Any

from edgefleet_provisioning.demo import measure
from edgefleet_provisioning.demo.digits import VERSIONS, Digits, build
from edgefleet_provisioning.demo.fleet import Fleet
from edgefleet_provisioning.demo.listener import Listener
from edgefleet_provisioning.demo.load import ask_once
from edgefleet_provisioning.demo.narrator import Narrator
from edgefleet_shared.errors import UnavailableError
from edgefleet_shared.states import TOUCHED, RolloutState
from edgefleet_shared.steps import Step
from edgefleet_shared.trust import parse_time

PROBATION_S = 2
STEADY_S = 2.2  # of traffic before and after a swap, so that both can be measured
ROLLOUT_S = 60.0
RECEIPT_S = 10.0
ENDED = {
    RolloutState.COMPLETED, RolloutState.STOPPED, RolloutState.ROLLED_BACK, RolloutState.PAUSED,
}  # fmt: skip


class Story:
    """Tells it over a `Fleet`; `result` is what the last line of `--json` holds."""

    def __init__(self, fleet: Fleet, narrator: Narrator) -> None:
        self._fleet, self._narrator = fleet, narrator
        self._listener: Listener | None = None
        self._rollouts: list[dict[str, Any]] = []

    def tell(self) -> dict[str, Any]:
        """Run the whole course.

        Raises:
            EdgeFleetError: Something did not go as it must; the fleet is still as it then was.
        """
        fleet, say = self._fleet, self._narrator
        say.chapter("Train three digit classifiers on scikit-learn's handwritten digits")
        digits = build(fleet.folder)
        say.say(f"trained on {digits.train_size} digits, {digits.held_out_size} held out")
        say.chapter("Make a fleet")
        fleet.init()
        fleet.start_cloud()
        self._listener = Listener(fleet.api, fleet.names[0], say)
        self._listener.start()
        fleet.start_agents()
        say.chapter("1.0.0: a logistic regression")
        self._publish(digits, "1.0.0")
        self._roll_out("1.0.0")
        self._ask_once(digits)
        say.chapter("Applications begin to ask; 2.0.0, a perceptron, is swapped in under load")
        self._start_load(digits)
        time.sleep(STEADY_S)
        self._publish(digits, "2.0.0")
        self._roll_out("2.0.0")
        time.sleep(STEADY_S)
        say.chapter("3.0.0: signed, passes its proof, and misbehaves in service")
        self._publish(digits, "3.0.0")
        self._roll_out("3.0.0")
        rollback = self._rollback()
        return self._result(rollback)

    def stop_listening(self) -> None:
        """Stop narrating events."""
        if self._listener:
            self._listener.stop()

    def _publish(self, digits: Digits, version: str) -> None:
        self._fleet.publish(
            version, digits.models[version],
            "--golden", str(digits.golden), "--labels", str(digits.labels),
            "--sample", str(digits.sample), "--license", "BSD-3-Clause",
        )  # fmt: skip

    def _roll_out(self, version: str) -> None:
        """Create a rollout, canary first, and wait for its end."""
        begun = time.monotonic()
        canary = self._fleet.names[0]
        created = self._fleet.edgefleet(
            "rollout", "create", "digits", version, "--canary", canary,
            "--probation-s", str(PROBATION_S),
        )  # fmt: skip
        path = f"/v1/rollouts/{created['id']}"
        while True:
            rollout = self._fleet.get(path)
            if rollout["state"] in ENDED:
                break
            if time.monotonic() - begun > ROLLOUT_S:
                raise UnavailableError(
                    f"The rollout of {version} is {rollout['state']!r} after {ROLLOUT_S:.0f} s.",
                    code="demo_rollout",
                    hint=str(rollout["waves"]),
                )
            time.sleep(0.1)
        seconds = time.monotonic() - begun
        devices = self._fleet.get(f"{path}/device-deployments", page_size="500")["items"]
        self._rollouts.append(
            {
                "model": "digits",
                "version": version,
                "state": rollout["state"],
                "devices_succeeded": sum(d["state"] == "succeeded" for d in devices),
                "devices_rolled_back": sum(d["state"] == "rolled_back" for d in devices),
                "devices_untouched": self._untouched(rollout["manifest"], devices),
                "seconds": round(seconds, 2),
            }
        )
        self._narrator.say(f"rollout of {version} {rollout['state']} in {seconds:.1f} s")
        self._tell_receipt()

    def _untouched(self, digest: str, devices: list[dict[str, Any]]) -> int:
        """Count the devices that never took the version up: by state, and by their own history."""
        by_state = {d["device"]: d["state"] for d in devices}
        count = 0
        for name in self._fleet.names:
            history = self._fleet.get(f"/v1/devices/{name}/history", slot="digits")["items"]
            ran = any(entry["digest"] == digest for entry in history)
            count += not ran and by_state.get(name, "") not in TOUCHED
        return count

    def _tell_receipt(self) -> None:
        """Tell what the canary's newest swap did to requests, in its own words."""
        receipts = self._receipts()
        if receipts:
            last = receipts[-1]
            self._narrator.say(
                f"{self._fleet.names[0]}  its receipt: from {last['from_version'] or 'nothing'} "
                f"to {last['to_version']} with {last['in_flight']} requests under way, "
                f"{last['failed']} of them lost",
                Step.REPORT,
            )

    def _receipts(self) -> list[dict[str, Any]]:
        """Return the canary's swap receipts, oldest first."""
        found = self._fleet.get("/v1/receipts", device=self._fleet.names[0], slot="digits")
        return sorted(found["items"], key=lambda receipt: str(receipt["ts"]))

    def _ask_once(self, digits: Digits) -> None:
        """Ask the canary about one held-out digit, and tell what it says."""
        answer = ask_once(str(self._fleet.infer_socket(self._fleet.names[0])), digits.held_out)
        self._narrator.say(
            f"{self._fleet.names[0]}  digits {answer.version} says {answer.answered} to a "
            f"held-out {answer.asked}",
            Step.INFER,
        )

    def _start_load(self, digits: Digits) -> None:
        sockets = [str(self._fleet.infer_socket(name)) for name in self._fleet.names]
        self._fleet.processes.start(
            "load",
            ["-m", "edgefleet_provisioning.demo.load", "--model", "digits",
             "--held-out", str(digits.held_out),
             "--output", str(self._fleet.folder / "load.npz"), *sockets],
        )  # fmt: skip
        self._narrator.say(f"{len(sockets)} applications ask held-out digits over Unix sockets")

    def _rollback(self) -> dict[str, Any]:
        """Return what the canary's own receipts say of its way back."""
        canary, bad = self._fleet.names[0], VERSIONS[2]
        deadline = time.monotonic() + RECEIPT_S
        while time.monotonic() < deadline:
            receipts = self._receipts()
            there = [r for r in receipts if r["to_version"] == bad]
            back = [r for r in receipts if r["from_version"] == bad and r["kind"] == "rollback"]
            if there and back:
                seconds = parse_time(back[-1]["ts"]) - parse_time(there[-1]["ts"])
                return {
                    "from": bad,
                    "to": back[-1]["to_version"],
                    "trigger": back[-1]["trigger"],
                    "seconds": round(seconds.total_seconds(), 3),
                }
            time.sleep(0.1)
        raise UnavailableError(
            f"{canary} did not report that it went back from {bad}.", code="demo_rollback"
        )

    def _result(self, rollback: dict[str, Any]) -> dict[str, Any]:
        self._fleet.processes.end("load")
        traffic = measure.read(self._fleet.folder / "load.npz")
        return {
            "transport": self._fleet.transport,
            "broker": self._fleet.ready["broker_kind"],
            "devices": self._fleet.names,
            "rollouts": self._rollouts,
            "inference": measure.inference(traffic),
            "swap": measure.swap(traffic, VERSIONS[0], VERSIONS[1]),
            "rollback": rollback,
            "words": [step.value for step in self._narrator.heard],
            "seconds": round(self._narrator.seconds, 1),
        }

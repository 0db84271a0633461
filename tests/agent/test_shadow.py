"""A version in the shadow of the one that serves: copies, comparison, verdict."""

from __future__ import annotations

import json
import struct

import msgspec
import numpy as np
import pytest

from edgefleet_agent.client import Client
from edgefleet_agent.gateway.agreement import Answer, compare
from edgefleet_agent.ipc import control, fast
from edgefleet_agent.ipc.frames import NO_JSON
from edgefleet_shared.messages import Policy
from tests import batch_models, models
from tests.agent.gateways import Gateway, fp32, wait_for
from tests.agent.running import Agent
from tests.agent.world import World, until

TOLERANCE = (1e-3, 1e-4)


def said(data, shape=None, datatype: str = "FP32", name: str = "y") -> Answer:
    """Return an answer in JSON."""
    shape = shape or [1, len(data)]
    output = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return Answer(json.dumps({"outputs": [output]}).encode(), NO_JSON, framed=False)


def binary(data) -> Answer:
    """Return the same with the tensor behind the JSON."""
    raw = struct.pack(f"<{len(data)}f", *data)
    output = {"name": "y", "datatype": "FP32", "shape": [1, len(data)],
              "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
    head = json.dumps({"outputs": [output]}).encode()
    return Answer(head + raw, len(head), framed=False)


def framed(data) -> Answer:
    """Return the same as a frame of the fast path."""
    raw = struct.pack(f"<{len(data)}f", *data)
    tensor = fast.Tensor("y", "FP32", (1, len(data)), fast.INLINE, 0, len(raw))
    head = fast.encode_head(fast.Head("m", "1", (tensor,)))
    return Answer(head + raw, len(head), framed=True)


@pytest.mark.parametrize(
    ("live", "tried", "agree"),
    [
        (said([0.1, 0.9]), said([0.4, 0.6]), True),
        (said([0.1, 0.9]), said([0.6, 0.4]), False),
        (said([0.1, 0.9, 0.8, 0.2], [2, 2]), said([0.1, 0.9, 0.2, 0.8], [2, 2]), False),
        (said([[0.1, 0.9], [0.8, 0.2]], [2, 2]), said([0.2, 0.8, 0.7, 0.3], [2, 2]), True),
        (said([1.0], [1]), said([1.0005], [1]), True),
        (said([1.0], [1]), said([1.1], [1]), False),
        (said([1.0, 2.0], [2]), said([1.0], [1]), False),
        (said([0.1, 0.9]), said([None, 0.9]), False),
        (said([1, 2], datatype="INT64"), said([1, 2], datatype="INT64"), True),
        (said([1, 2], datatype="INT64"), said([1, 3], datatype="INT64"), False),
        (said(["cat"], datatype="BYTES"), said(["dog"], datatype="BYTES"), False),
        (said([1.0], [1]), said([1.0], [1], name="z"), False),
        (said([0.1, 0.9]), Answer(b"no JSON", NO_JSON, framed=False), False),
        (said([0.1, 0.9]), Answer(b'{"outputs":[{}]}', NO_JSON, framed=False), False),
        (said([0.1, 0.9]), Answer(b'{"outputs":7}', NO_JSON, framed=False), False),
        (binary([0.1, 0.9]), binary([0.4, 0.6]), True),
        (binary([0.1, 0.9]), binary([0.6, 0.4]), False),
        (framed([0.1, 0.9]), framed([0.4, 0.6]), True),
        (framed([0.1, 0.9]), framed([0.6, 0.4]), False),
        (framed([0.1, 0.9]), Answer(b"nonsense", 8, framed=True), False),
    ],
)
def test_what_agrees(live, tried, agree):
    """Rows of scores by their largest, other numbers within tolerance, all else if equal."""
    assert compare(live, tried, *TOLERANCE).agree is agree


def test_the_largest_difference_is_told():
    """Also where the answers agree."""
    assert compare(said([0.25, 0.5]), said([0.25, 1.0]), *TOLERANCE).largest == 0.5


@pytest.fixture
def pair(tmp_path):
    """Start a gateway that serves one version; a test loads the one in its shadow."""
    gateway = Gateway()
    gateway.folder, gateway.connections = tmp_path, []
    gateway.control.serve(models.package(tmp_path, models.linear(1.0), version="1.0.0"))
    yield gateway
    for connection in gateway.connections:
        connection.close()
    gateway.close()


def cast(gateway, model: bytes, pct: int = 100):
    """Load a version and put it into the shadow."""
    package = models.package(gateway.folder, model, version="2.0.0")
    assert gateway.control.load(package).ok
    gateway.two = package.spec
    return shown(gateway, pct)


def shown(gateway, pct: int = 100) -> control.Shadowed:
    """Return what it has shown so far."""
    return gateway.control.ask(control.Shadow, "m", gateway.two.digest, pct)


def ask_until(gateway, ask, condition, pct: int = 100) -> control.Shadowed:
    """Ask until what the shadow has shown is as it should be; every answer is the live one's."""

    def there():
        assert ask() == 4.0
        found = shown(gateway, pct)
        return found if condition(found) else None

    return wait_for(there, f"the shadow; {shown(gateway, pct)}")


def over_http(gateway, scale: float = 1.0):
    """Return what asks over one HTTP connection."""
    connection = gateway.connect()
    gateway.connections.append(connection)
    body = json.dumps(fp32("x", [scale] * 4, [1, 4]))

    def ask() -> float:
        connection.request("POST", "/v2/models/m/infer", body)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == 200
        return answer["outputs"][0]["data"][0]

    return ask


def test_copies_are_answered_and_compared(pair):
    """Both versions answer alike; the new one's own counters stay at none: nobody got them."""
    cast(pair, models.linear(1.0))
    found = ask_until(pair, over_http(pair), lambda s: s.compared >= 5)
    assert (found.agreed, found.errors, found.max_difference_ppm) == (found.compared, 0, 0)
    assert sum(found.compute.values()) == found.requests
    assert pair.control.stats()[pair.two.digest].requests == 0


@pytest.mark.parametrize(
    ("model", "agrees", "ppm"),
    [(models.linear(2.0), True, 4_000_000), (batch_models.centred(), False, 0)],
    ids=["the same largest", "another shape"],
)
def test_another_answer_is_counted_and_no_client_sees_it(pair, model, agrees, ppm):
    """Scores twice as large agree, their difference is told; four columns for two never do."""
    cast(pair, model)
    found = ask_until(pair, over_http(pair), lambda s: s.compared >= 5)
    assert (found.agreed, found.max_difference_ppm) == (found.compared * agrees, ppm)


def test_the_fast_path_is_copied_too(pair):
    """A frame whose tensor came inline, compared as a frame."""
    cast(pair, models.linear(1.0))
    with Client(pair.uds) as client:
        x = np.ones((1, 4), np.float32)
        found = ask_until(
            pair, lambda: float(client.infer("m", {"x": x})["y"][0][0]), lambda s: s.compared >= 3
        )
    assert found.agreed == found.compared


def test_a_share_of_none_copies_nothing_and_half_copies_half(pair):
    """Of forty requests with half of them due, twenty are copied or dropped."""
    cast(pair, models.linear(1.0), pct=50)
    ask = over_http(pair)
    for _ in range(40):
        assert ask() == 4.0
    found = wait_for(
        lambda: (s := shown(pair, 50)) and s.requests + s.dropped == 20 and s, str(shown(pair, 50))
    )
    assert found.requests >= 1


SHADOW = Policy(probation_s=0, min_requests=10, standby_s=0, drain_s=0, shadow_s=20, shadow_pct=50)


@pytest.fixture
def agent():
    """A running agent over a fake gateway, serving 1.0.0."""
    world = World()
    agent = Agent(world).start()
    agent.one = world.publish("1.0.0")
    agent.assign(agent.one)
    agent.reaches("succeeded")
    yield agent
    agent.close()
    world.close()


def try_out(agent, policy: Policy = SHADOW, **shown):
    """Assign a version that gets copies, and shows so much."""
    agent.gateway.answer("digits", 200)
    agent.gateway.shown = {"compute": {20: 50}, **shown}
    new = msgspec.structs.replace(agent.world.publish("2.0.0"), policy=policy)
    agent.assign(new)
    until(lambda: (new.manifest, policy.shadow_pct) in agent.gateway.shadows, "the shadow")
    return new


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ({"requests": 50, "errors": 50}, "shadow_error_rate"),
        ({"requests": 50, "nonfinite": 50}, "shadow_nonfinite"),
        ({"requests": 500, "compute": {60: 500}}, "shadow_latency"),
    ],
)
def test_a_breach_refuses_the_version_before_anybody_saw_it(agent, shown, reason):
    """Its own code; it has never been routed, and is released."""
    try_out(agent, **shown)
    assert agent.reaches("failed")["reason"] == reason
    until(lambda: agent.gateway.loaded() == {agent.one.manifest: "active"}, "the release")
    assert agent.event("shadow_failed")["data"]["shadow"]["verdict"] == "fail"


def test_too_little_agreement_refuses_it(agent):
    """At the end of the window, if the policy asks for some."""
    policy = msgspec.structs.replace(SHADOW, shadow_s=1, min_agreement_pct=90)
    try_out(agent, policy, requests=50, compared=50, agreed=40)
    report = agent.reaches("failed")
    assert (report["reason"], report["detail"]) == (
        "shadow_agreement", "40 of 50 answers agree; 90 % must.",
    )  # fmt: skip


def test_a_worker_that_has_ended_fails_it(agent):
    """It crashed on a copy: no client has noticed, and it is refused."""
    new = try_out(agent, requests=1)
    agent.gateway.die(new.manifest)
    assert agent.reaches("failed")["reason"] == "shadow_crashes"


def test_after_the_shadow_comes_the_share_and_then_the_swap(agent):
    """Both windows in turn; the receipt has what each has shown."""
    policy = msgspec.structs.replace(SHADOW, shadow_s=1, canary_s=1, canary_pct=20)
    new = try_out(agent, policy, requests=50, compared=50, agreed=49, dropped=7)
    until(lambda: (new.manifest, 20) in agent.gateway.shares, "the share")
    assert agent.record().deployment.shadow.verdict == "pass"
    agent.reaches("succeeded")
    receipt = until(lambda: len(r := agent.transport.items("receipts")) == 2 and r[-1])
    assert (receipt["shadow"]["agreed"], receipt["shadow"]["dropped"]) == (49, 7)
    assert receipt["canary"]["verdict"] == "inconclusive"

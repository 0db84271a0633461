"""What people type becomes what the API wants, or a clear refusal."""

from __future__ import annotations

import pytest

from edgefleet_provisioning.commands import arguments
from edgefleet_shared.errors import InvalidInputError


def test_a_policy_holds_what_was_said_and_no_more():
    """Limits come by name; what nobody named is left to the server."""
    assert arguments.policy(None, []) == {}
    assert arguments.policy(None, [], "drain") == {"swap": "drain"}
    assert arguments.policy(5, ["max_latency_pct=1000", "min_requests=0"]) == {
        "probation_s": 5,
        "max_latency_pct": 1000,
        "min_requests": 0,
    }


@pytest.mark.parametrize(
    "texts", [["speed=1"], ["drain_s"], ["drain_s=soon"], ["drain_s=-1"], ["drain_s=1"] * 2]
)
def test_what_is_no_policy_is_refused(texts):
    """An unknown key, no number, a negative one, the same twice."""
    with pytest.raises(InvalidInputError) as caught:
        arguments.policy(None, texts)
    assert caught.value.code == "policy"

"""Topics: what is built parses back, what is foreign does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_shared import topics
from edgefleet_shared.identifiers import NAME
from edgefleet_shared.topics import Topic

names = st.from_regex(NAME, fullmatch=True)


@given(names, names)
def test_every_topic_parses_back(device, stream):
    """Each topic that we can spell comes back as its parts."""
    assert topics.parse(topics.desired(device)) == Topic(device, "dn", "desired", "")
    assert topics.parse(topics.get(device)) == Topic(device, "up", "get", "")
    assert topics.parse(topics.reported(device)) == Topic(device, "up", "reported", "")
    assert topics.parse(topics.presence(device)) == Topic(device, "up", "presence", "")
    assert topics.parse(topics.stream(device, stream)) == Topic(device, "up", "ev", stream)


def test_the_grammar_is_the_contract():
    """The spellings that devices in the field rely on."""
    assert topics.desired("cam-1") == "f1/cam-1/dn/desired"
    assert topics.down("cam-1") == "f1/cam-1/dn/#"
    assert topics.get("cam-1") == "f1/cam-1/up/get"
    assert topics.reported("cam-1") == "f1/cam-1/up/reported"
    assert topics.stream("cam-1", "telemetry") == "f1/cam-1/up/ev/telemetry"
    assert topics.presence("cam-1") == "f1/cam-1/up/presence"
    assert topics.all_up() == "f1/+/up/#"
    assert topics.acl_patterns() == (("write", "f1/%u/up/#"), ("read", "f1/%u/dn/#"))


@pytest.mark.parametrize(
    "topic",
    ["", "f1", "f1/cam-1", "f1/cam-1/up", "f2/cam-1/up/get", "f1/cam-1/sideways/get",
     "f1//up/get", "f1/+/up/get", "f1/#", "f1/Cam/up/get", "f1/../up/get", "/f1/cam-1/up/get",
     "$SYS/broker/up/get", "f1/a b/up/get"],
)  # fmt: skip
def test_foreign_topics_are_none(topic):
    """What is not of our grammar, or names no possible device, is not a topic of ours."""
    assert topics.parse(topic) is None


def test_what_follows_the_kind_is_kept_whole():
    """Further levels stand in `rest`, slashes and all."""
    assert topics.parse("f1/cam-1/up/ev/a/b") == Topic("cam-1", "up", "ev", "a/b")

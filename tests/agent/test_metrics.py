"""Statistics and metrics: read by clients that others wrote, and equal to what was asked."""

from __future__ import annotations

import http.client
import json

import pytest
import tritonclient.http as triton
from prometheus_client.parser import text_string_to_metric_families

from edgefleet_agent.gateway.endpoints import deadline_parameter
from edgefleet_agent.gateway.metrics import Page
from edgefleet_agent.ipc.frames import NO_JSON
from tests.agent.gateways import Gateway, fp32, wait_for
from tests.models import linear, logarithm, package, slow

GOOD, BAD = fp32("x", [1.0, 2, 3, 4], [1, 4]), fp32("x", [1.0], [1, 1])


@pytest.fixture(scope="module")
def asked(shared_gateway, tmp_path_factory):
    """A gateway that answered `m` five times, refused it twice, and swapped to a second version."""
    for _ in range(5):
        assert shared_gateway.infer(GOOD)[0] == 200
    for _ in range(2):
        assert shared_gateway.infer(BAD)[0] == 400
    second = package(tmp_path_factory.mktemp("second"), linear(3.0), version="2.0.0")
    shared_gateway.control.serve(second)
    assert shared_gateway.infer(GOOD)[0] == 200
    return shared_gateway


def scrape(gateway: Gateway, path: str = "/metrics", *, tcp: bool = False):
    """The page's samples: (name, labels) to value, as Prometheus' own parser reads it."""
    connection = http.client.HTTPConnection(gateway.address) if tcp else gateway.connect()
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.getheader("Content-Type", "").startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(response.read().decode()))
    connection.close()
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def key(name: str, **labels: str):
    """How `scrape` names a sample."""
    return name, tuple(sorted(labels.items()))


ONE = {"model": "m", "version": "1.0.0"}


@pytest.mark.parametrize("tcp", [False, True])
def test_metrics_count_what_was_asked(asked, tcp):
    """Requests by outcome, seconds as histograms, the swap, the workers: on both doors."""
    found = scrape(asked, tcp=tcp)
    requests = "edgefleet_inference_requests_total"
    assert found[key(requests, **ONE, outcome="ok")] == 5
    assert found[key(requests, **ONE, outcome="client_error")] == 2
    assert found[key(requests, model="m", version="2.0.0", outcome="ok")] == 1
    assert found[key("edgefleet_swaps_total", model="m")] == 1
    assert found[key("edgefleet_worker_up", **ONE, role="standby")] == 1
    assert found[key("edgefleet_worker_memory_bytes", **ONE)] > 100_000
    assert found[key("edgefleet_gateway_connections")] >= 1
    for name in ("duration", "compute"):
        whole = f"edgefleet_inference_{name}_seconds"
        assert found[key(f"{whole}_count", **ONE)] == 5
        assert 0 < found[key(f"{whole}_sum", **ONE)] < 60
        rows = [(k, v) for k, v in found.items() if k[0] == f"{whole}_bucket"]
        steps = sorted(
            (float(dict(k[1])["le"]), v) for k, v in rows if ONE.items() <= dict(k[1]).items()
        )
        counts = [value for _, value in steps]
        assert counts == sorted(counts)
        assert (steps[-1], len(steps)) == ((float("inf"), 5), 29)
    spent = found[key("edgefleet_inference_compute_seconds_sum", **ONE)]
    waited = found[key("edgefleet_inference_queue_seconds_total", **ONE)]
    whole = found[key("edgefleet_inference_duration_seconds_sum", **ONE)]
    assert spent + waited == pytest.approx(whole)


def test_triton_names_come_on_demand(asked):
    """A dashboard made for Triton finds its counters, in its units; others do not see them."""
    assert not [k for k in scrape(asked) if k[0].startswith("nv_")]
    connection = asked.connect()
    connection.request("GET", "/metrics?compat=triton")
    assert b'\nnv_inference_count{model="m",version="1.0.0"} 5\n' in connection.getresponse().read()
    connection.close()
    # The parser gives every counter the ending _total, as OpenMetrics has it.
    found = scrape(asked, "/metrics?compat=triton")
    for name in ("request_success", "count", "exec_count"):
        assert found[key(f"nv_inference_{name}_total", **ONE)] == 5
    assert found[key("nv_inference_request_failure_total", **ONE, reason="OTHER")] == 2
    assert found[key("nv_inference_pending_request_count", **ONE)] == 0
    spent = found[key("nv_inference_compute_infer_duration_us_total", **ONE)]
    queued = found[key("nv_inference_queue_duration_us_total", **ONE)]
    whole = found[key("nv_inference_request_duration_us_total", **ONE)]
    assert 0 < whole - spent - queued < 3 or whole == spent + queued


def test_statistics_reach_tritons_client(asked):
    """The statistics extension as tritonclient asks for it: a version, a model, all."""
    client = triton.InferenceServerClient(asked.address)
    (one,) = client.get_inference_statistics("m", "1.0.0")["model_stats"]
    assert (one["name"], one["version"]) == ("m", "1.0.0")
    assert (one["inference_count"], one["execution_count"]) == (5, 5)
    parts = one["inference_stats"]
    assert (parts["success"]["count"], parts["fail"]["count"]) == (5, 2)
    assert parts["success"]["ns"] == parts["queue"]["ns"] + parts["compute_infer"]["ns"]
    assert parts["fail"]["ns"] > 0
    assert one["last_inference"] > 1_700_000_000_000
    assert len(client.get_inference_statistics("m")["model_stats"]) == 2
    assert len(client.get_inference_statistics()["model_stats"]) == 2
    client.close()
    assert asked.request("GET", "/v2/models/none/stats")[0] == 404
    assert asked.request("POST", "/metrics", b"")[0] == 405


def test_reading_disturbs_no_gap(gateway, tmp_path):
    """The longest gap between answers stays agentd's to take: metrics do not begin it afresh."""
    gateway.control.serve(package(tmp_path, slow()))
    rounds = {"name": "rounds", "datatype": "INT64", "shape": [1], "data": [300]}
    assert gateway.infer({"inputs": [rounds]})[0] == 200
    scrape(gateway)
    gateway.request("GET", "/v2/models/stats")
    (stats,) = gateway.control.stats().values()
    assert stats.max_gap_us > 0


def test_nan_and_crashes_are_counted(gateway, tmp_path):
    """What judges a version can be seen by whoever watches it."""
    gateway.control.serve(package(tmp_path, logarithm()))
    assert gateway.infer(fp32("x", [-1.0]))[0] == 200
    labels = {"model": "m", "version": "1.0.0"}
    assert scrape(gateway)[key("edgefleet_inference_nonfinite_total", **labels)] == 1


def test_requests_on_a_kept_connection_are_counted(gateway, tmp_path):
    """What a worker answers by itself, on a connection lent to it, is in the sums."""
    gateway.control.serve(package(tmp_path, linear(2.0)))
    connection = gateway.connect()
    for _ in range(40):
        connection.request("POST", "/v2/models/m/infer", json.dumps(GOOD))
        assert connection.getresponse().read().startswith(b'{"model_name":"m"')
    count = key("edgefleet_inference_requests_total", **ONE, outcome="ok")
    wait_for(lambda: scrape(gateway)[count] == 40, "a worker counts once it has answered")
    found = scrape(gateway)
    assert found[key("edgefleet_inference_duration_seconds_count", **ONE)] == 40
    whole = found[key("edgefleet_inference_duration_seconds_sum", **ONE)]
    spent = found[key("edgefleet_inference_compute_seconds_sum", **ONE)]
    assert 0 < spent <= whole
    connection.close()


def test_a_config_key_shows_tritons_names_unasked(tmp_path):
    """`inference.triton_metrics` is the gateway's option."""
    one = Gateway("--triton-metrics")
    try:
        one.control.serve(package(tmp_path, linear(1.0)))
        assert one.infer(GOOD)[0] == 200
        wait_for(lambda: scrape(one)[key("nv_inference_count_total", **ONE)] == 1, "the count")
    finally:
        one.close()


def test_labels_are_escaped():
    """Quotes, backslashes and lines in a label cannot break the page."""
    page, odd = Page(), 'a"b\\c\nd'
    page.family("x_total", "counter", "Help.", [({"k": odd}, 1)])
    (family,) = text_string_to_metric_families(page.text().decode())
    assert family.samples[0].labels == {"k": odd}


DEADLINES = {
    "none": (b'{"inputs":[]}', 0),
    "before the tensors": (b'{"parameters":{"deadline_ms": 250},"inputs":[]}', 250),
    "behind them": (b'{"inputs":[],"parameters":{"a":1,"deadline_ms":9}}', 9),
    "no number": (b'{"parameters":{"deadline_ms":"soon"}}', 0),
    "a fraction": (b'{"parameters":{"deadline_ms":1.5}}', 0),
    "in a text": (b'{"data":["\\"deadline_ms\\":5,"]}', 0),
}


@pytest.mark.parametrize("where", DEADLINES)
def test_the_deadline_parameter_is_found_where_it_may_stand(where):
    """It is looked for without parsing, and within the JSON part alone."""
    body, milliseconds = DEADLINES[where]
    assert deadline_parameter(body, NO_JSON) == milliseconds * 1_000_000
    assert deadline_parameter(body + body, len(body)) == milliseconds * 1_000_000
    assert deadline_parameter(b"{}" + body, 2) == 0


def test_a_request_gives_its_own_deadline(gateway, tmp_path):
    """`deadline_ms` among the parameters ends a wait with 504, as the header does."""
    gateway.control.serve(package(tmp_path, slow()))
    rounds = {"name": "rounds", "datatype": "INT64", "shape": [1], "data": [30_000]}
    body = {"inputs": [rounds], "parameters": {"deadline_ms": 50}}
    status, answer, _ = gateway.infer(body)
    assert (status, answer["code"]) == (504, "deadline")

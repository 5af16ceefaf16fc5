"""/metrics as vLLM's dashboards read it, and the OpenAPI page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine, says
from fake_server import MODEL, FakeServer, fake_server
from prometheus_client.parser import text_string_to_metric_families

from m2serve.engine.request import EngineStats

LABELS = {"model_name": MODEL, "engine": "0"}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    counters = EngineStats(
        num_running_reqs=3,
        num_waiting_reqs=2,
        num_preemptions=1,
        kv_cache_usage=0.25,
        prefix_cache_queries=100,
        prefix_cache_hits=40,
        prompt_tokens=1000,
        generation_tokens=500,
        busy_s=40.0,
        native_s=38.0,
    )
    engine = FakeEngine(says("</think>Hello"), counters=counters, num_cached_tokens=16)
    with fake_server(engine) as running:
        yield running


def samples(server: FakeServer) -> dict[str, list[tuple[dict[str, str], float]]]:
    result: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            result.setdefault(sample.name, []).append((sample.labels, sample.value))
    return result


def value(server: FakeServer, name: str, **labels: str) -> float:
    wanted = {**LABELS, **labels}
    return sum(value for found, value in samples(server)[name] if found == wanted)


def test_the_engines_numbers_under_vllms_names(server: FakeServer) -> None:
    assert value(server, "vllm:num_requests_running") == 3
    assert value(server, "vllm:num_requests_waiting") == 2
    assert value(server, "vllm:kv_cache_usage_perc") == 0.25
    assert value(server, "vllm:num_preemptions_total") == 1
    assert value(server, "vllm:prefix_cache_queries_total") == 100
    assert value(server, "vllm:prefix_cache_hits_total") == 40
    assert value(server, "vllm:prompt_tokens_total") == 1000
    assert value(server, "vllm:generation_tokens_total") == 500


def test_the_share_of_native_code_is_one_scrape_away(server: FakeServer) -> None:
    assert value(server, "m2:engine_busy_seconds_total") == 40
    assert value(server, "m2:engine_native_seconds_total") == 38
    assert value(server, "m2:native_busy_ratio") == 0.95


def test_requests_are_counted_by_how_they_ended(server: FakeServer) -> None:
    server.chat(n=2)
    server.complete(stop="Hel")
    server.engine.script = says("abc", finish_reason="length")
    server.complete(max_tokens=2)
    reasons = {"stop": 3.0, "length": 1.0, "abort": 0.0, "error": 0.0}
    for reason, count in reasons.items():
        assert value(server, "vllm:request_success_total", finished_reason=reason) == count
    assert value(server, "vllm:time_to_first_token_seconds_count") == 4
    assert value(server, "vllm:e2e_request_latency_seconds_count") == 4
    assert value(server, "vllm:request_prompt_tokens_count") == 4
    assert value(server, "vllm:inter_token_latency_seconds_count") > 4
    assert value(server, "vllm:prompt_tokens_cached_total") == 4 * 16
    assert value(server, "vllm:request_params_n_sum") == 4
    assert value(server, "vllm:request_params_max_tokens_count") == 4


def test_generation_tokens_are_what_usage_says(server: FakeServer) -> None:
    used = server.chat(n=2).json()["usage"]["completion_tokens"]
    assert value(server, "vllm:request_generation_tokens_sum") == used


def test_vllms_buckets(server: FakeServer) -> None:
    server.chat()
    buckets = {
        labels["le"] for labels, _ in samples(server)["vllm:time_to_first_token_seconds_bucket"]
    }
    assert {"0.001", "0.25", "2560.0", "+Inf"} <= buckets
    tokens = {labels["le"] for labels, _ in samples(server)["vllm:request_prompt_tokens_bucket"]}
    assert {"1.0", "2.0", "5.0", "200000.0", "1e+06"} <= tokens


def test_labels_no_client_can_choose(server: FakeServer) -> None:
    for i in range(20):
        server.get(f"/{i}")
        server.get(f"/v1/models/{i}")
        server.client.request("PROPFIND", "/health")
        server.chat(model=f"m{i}")
    requests = samples(server)["http_requests_total"]
    assert {labels["handler"] for labels, _ in requests} == {
        "other",
        "/v1/models/{model}",
        "/health",
        "/v1/chat/completions",
    }
    assert {labels["method"] for labels, _ in requests} <= {"GET", "POST", "other"}
    assert {labels["status"] for labels, _ in requests} <= {"2xx", "4xx"}
    names = [labels for family in samples(server).values() for labels, _ in family]
    assert {labels["model_name"] for labels in names if "model_name" in labels} == {MODEL}


def test_two_applications_do_not_share_a_registry(server: FakeServer) -> None:
    server.chat()
    with fake_server() as other:
        assert value(other, "vllm:time_to_first_token_seconds_count") == 0


def test_openapi_announces_every_status_we_send(server: FakeServer) -> None:
    page = server.get("/openapi.json").json()
    posts = [path["post"] for path in page["paths"].values() if "post" in path]
    assert len(posts) == 4
    for operation in posts:
        statuses = set(operation["responses"])
        assert {"200", "400", "401", "404", "408", "413", "415", "431", "500", "503"} <= statuses
        assert "422" not in statuses
    fields = page["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "tools", "top_k", "min_p", "cache_salt", "return_token_ids"} <= set(fields)

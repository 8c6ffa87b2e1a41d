"""Figures of the server, as Prometheus reads them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Running, running, write_speaker, write_talker

from mmrt.serving.record import Histogram


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    models = {
        "talker": write_talker(tmp_path / "t.gguf"),
        'a "b"': write_speaker(tmp_path / "s.gguf", b"ab"),
    }
    with running(models) as found:
        yield found


def figures(server: Running, model: str = "talker") -> dict[str, float]:
    """By name and labels but for the model's."""
    reply = server.get("/metrics")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/plain")
    found = {}
    for line in reply.body.decode().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(
                r'([a-z0-9_:]+)\{model_name="((?:[^"\\]|\\.)*)",?(.*)\} (\S+)', line
            )
            assert match, line
            if match[2] == model:
                found[match[1] + match[3]] = float(match[4])
    return found


def test_figures_of_texts(server: Running) -> None:
    before = figures(server)
    assert before["vllm:generation_tokens_total"] == 0
    for _ in range(2):
        server.chat("a" * 200, model="talker", max_tokens=5)
    server.chat("b", model="talker", max_tokens=5, n=2)
    after = figures(server)
    assert after["vllm:generation_tokens_total"] == 20
    assert after['vllm:request_success_totalfinished_reason="length"'] == 4
    assert after["vllm:prefix_cache_queries_total"] == after["vllm:prompt_tokens_total"] > 200
    assert after["vllm:prefix_cache_hits_total"] >= 90
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert 0 < after["vllm:kv_cache_usage_perc"] < 1
    assert after["vllm:time_to_first_token_seconds_count"] == 4
    assert after["vllm:inter_token_latency_seconds_count"] == 16
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert after[f'vllm:{name}_seconds_bucketle="+Inf"'] == 4
    assert after["vllm:e2e_request_latency_seconds_sum"] > 0
    assert 0 < after["mmrt:kv_bytes"] <= after["mmrt:kv_logical_bytes"]
    assert after["mmrt:steps_total"] >= 15 and after["mmrt:evaluated_tokens_total"] > 100
    assert after["vllm:spec_decode_num_draft_tokens_total"] == 0  # all weights are in memory
    assert figures(server, r"a \"b\"")["vllm:generation_tokens_total"] == 0


def test_every_metric_has_one_head(server: Running) -> None:
    lines = server.get("/metrics").body.decode().splitlines()
    heads = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads)) > 20
    names = {re.sub(r"\{.*", "", line) for line in lines if not line.startswith("#")}
    ends = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert set(heads) <= names | ends


def test_histograms_count_by_size() -> None:
    histogram = Histogram([1, 2])
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1] and histogram.sum == 12

"""`mmrt bench`."""

import json
import os
import shutil
from pathlib import Path

import pytest
from command import call
from machine import needs_eviction

LLAMA_BENCH_KEYS = {
    "build_commit", "build_number", "cpu_info", "model_filename", "model_type", "model_size",
    "model_n_params", "n_threads", "n_prompt", "n_gen", "test_time", "avg_ns", "stddev_ns",
    "avg_ts", "stddev_ts", "samples_ns", "samples_ts",
}  # fmt: skip
OUR_KEYS = {
    "isa", "cache_state", "majflt", "minflt", "read_bytes", "peak_rss", "peak_pss", "rss_anon",
    "rss_file", "page_tables", "memory_limit",
}  # fmt: skip


def test_bench_as_json(smollm2_path: Path) -> None:
    ended = call("bench", "-m", smollm2_path, "-p", 16, "-n", 3, "-r", 2, "-t", 1, "-o", "json")
    rows = json.loads(ended.out)
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(16, 0), (0, 3)]
    for row in rows:
        assert row.keys() >= LLAMA_BENCH_KEYS | OUR_KEYS
        n_tokens = row["n_prompt"] + row["n_gen"]
        assert row["samples_ts"] == pytest.approx([n_tokens * 1e9 / ns for ns in row["samples_ns"]])
        assert len(row["samples_ns"]) == 2
        assert min(row["samples_ns"]) <= row["avg_ns"] <= max(row["samples_ns"])
        assert row["n_threads"] == 1
        assert row["cache_state"] == "warm"
        assert row["peak_pss"] > row["model_size"] // 2
        assert row["peak_rss"] >= row["rss_anon"] > 0
        assert row["page_tables"] > 0


def test_bench_leaves_out_what_is_zero(smollm2_path: Path) -> None:
    lines = call("bench", smollm2_path, "-p", 0, "-n", 2, "-r", 1).out.splitlines()
    assert len(lines) == 3
    assert "| tg2 |" in lines[2]


@pytest.mark.slow
def test_bench_of_several_numbers(smollm2_path: Path) -> None:
    ended = call(
        "bench", smollm2_path, "-p", "5,3", "-n", "2,0", "-d", "0,4", "-r", 1, "-o", "json"
    )
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in json.loads(ended.out)] == [
        (5, 0, 0), (3, 0, 0), (0, 2, 0), (5, 0, 4), (3, 0, 4), (0, 2, 4),
    ]  # fmt: skip
    call("bench", smollm2_path, "-p", "5,x").assert_refused(2, "-p")


def test_bench_at_a_depth(smollm2_path: Path) -> None:
    ended = call("bench", smollm2_path, "-p", 4, "-n", 2, "-d", 70, "-r", 2, "-o", "json")
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in json.loads(ended.out)] == [
        (4, 0, 70), (0, 2, 70),
    ]  # fmt: skip
    call("bench", smollm2_path, "-d", 70, "--cold").assert_refused(2, "--cold")
    lines = call("bench", smollm2_path, "-p", 0, "-n", 2, "-d", 70, "-r", 1).out.splitlines()
    assert "| tg2 @ d70 |" in lines[2]


def test_a_cold_bench_reads_the_file(smollm2_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cold.gguf"
    with open(smollm2_path, "rb") as source, open(copy, "wb") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())  # what is not on the disk yet cannot be evicted
    needs_eviction(copy)
    ended = call("bench", copy, "--cold", "-p", 8, "-n", 0, "-r", 1, "-o", "json")
    (row,) = json.loads(ended.out)
    assert row["cache_state"] == "cold"
    assert row["read_bytes"] > row["model_size"] // 2

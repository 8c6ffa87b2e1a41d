"""What mmrt.os_info() tells of the system, beside what the system itself says."""

import os
import resource
from pathlib import Path

import pytest
from machine import read_ahead

import mmrt
from mmrt.memory import system


def test_it_is_what_the_system_says() -> None:
    info = mmrt.os_info()
    assert info.kernel == os.uname().release
    assert info.page_size == resource.getpagesize()
    assert info.memory == os.sysconf("SC_PHYS_PAGES") * info.page_size
    assert 0 < info.available_memory <= info.memory
    assert info.file_system is None and info.read_ahead is None


def test_every_feature_has_a_state() -> None:
    info = mmrt.os_info()
    assert {"normal", "willneed", "populate_read", "evict", "collapse"} <= set(info.advice)
    assert set(info.calls) >= {"mlock2", "io_uring", "cachestat"}
    for state in (*info.advice.values(), *info.calls.values()):
        assert state == "available" or "Linux has it since" in state or "forbidden" in state
    assert info.advice["willneed"] == "available"
    text = str(info)
    assert info.kernel in text and "willneed" in text and "io_uring" in text


def test_of_a_path(tmp_path: Path) -> None:
    info = mmrt.os_info(tmp_path)
    assert info.file_system
    assert (info.read_ahead or 0) == read_ahead(tmp_path)
    assert f"file system: {info.file_system}" in str(info)
    with pytest.raises(OSError, match="No such file"):
        mmrt.os_info(tmp_path / "missing")


def test_a_cgroup_leaves_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.high").write_text("max\n")
    (inner / "memory.current").write_text("700000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.high").write_text("900000\n")
    (tmp_path / "memory.current").write_text("800000\n")
    (tmp_path / "memory.stat").write_text("anon 1\nactive_file 200\ninactive_file 3000\n")
    monkeypatch.setattr(system, "cgroups", lambda: iter([(inner, 2), (tmp_path, 2)]))
    assert system.available_memory() == 900000 - 800000 + 3200

    (tmp_path / "memory.limit_in_bytes").write_text("600000")
    (tmp_path / "memory.usage_in_bytes").write_text("550000")
    (tmp_path / "memory.stat").write_text("active_file 9\ntotal_active_file 100\n")
    monkeypatch.setattr(system, "cgroups", lambda: iter([(tmp_path, 1)]))
    assert system.available_memory() == 50000 + 100

    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert system.available_memory() > 10**6
    (tmp_path / "memory.limit_in_bytes").write_text("10")
    assert system.available_memory() == 0

"""What the kernel has counted about this process."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from machine import cgroup, evict, memory_cgroup, needs_line

from mmrt import counters
from mmrt.core import _probe
from mmrt.core.mapping import Mapping

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 16 MiB, on disk."""
    path = tmp_path / "weights"
    with path.open("wb") as out:
        for i in range(16):
            out.write(bytes([i]) * MIB)
        out.flush()
        os.fsync(out.fileno())
    return path


def test_faults_and_reads_are_those_of_the_pages_touched(path: Path) -> None:
    needs_line("/proc/self/io", "read_bytes")
    evict(path)
    with Mapping(path) as mapping, memoryview(mapping) as view:
        mapping.advise("random")
        start = counters.reads()
        for at in range(0, 10 * mmap.PAGESIZE, mmap.PAGESIZE):
            assert view[at] == 0
        cold = counters.reads() - start
        assert cold.major_faults >= 1
        assert cold.read_bytes is not None and cold.read_bytes >= 10 * mmap.PAGESIZE

        mapping.advise("normal")
        mapping.advise("populate_read")
        start = counters.reads()
        assert sum(view[:: mmap.PAGESIZE]) == sum(range(16)) * (MIB // mmap.PAGESIZE)
        assert (counters.reads() - start).major_faults == 0


def test_memory_is_split_by_what_it_holds(path: Path) -> None:
    needs_line("/proc/self/status", "RssFile")
    before = counters.footprint()
    with Mapping(path) as mapping:
        mapping.advise("populate_read")
        mapped = counters.footprint() - before
        share = counters.of_file(path)
        ours = mmap.mmap(-1, 8 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        ours.write(b"x" * len(ours))
        grown = counters.footprint() - before
        ours.close()
    after = counters.footprint() - before

    assert None not in (mapped.rss, mapped.rss_file, mapped.rss_shared, mapped.pss, grown.rss_anon)
    # In tmpfs a file's pages count as shared memory.
    assert (mapped.rss_file or 0) + (mapped.rss_shared or 0) >= 15.5 * MIB
    assert (mapped.rss or 0) >= 15.5 * MIB and abs(mapped.rss_anon or 0) < 4 * MIB
    assert (grown.rss_anon or 0) >= 6 * MIB  # each processor's count comes in by the batch
    assert (after.rss_file or 0) < MIB

    assert share.size == share.rss == 16 * MIB
    assert 0 < share.pss <= share.rss and share.huge % (2 * MIB) == 0


def test_a_second_mapping_halves_no_rss_but_pss_counts_a_process_once(path: Path) -> None:
    with Mapping(path) as one, Mapping(path) as two:
        one.advise("populate_read")
        two.advise("populate_read")
        share = counters.of_file(path)
        assert share.rss == 32 * MIB
        assert share.pss == pytest.approx(16 * MIB, rel=0.01)


def test_a_child_that_maps_the_same_file_shares_its_pages(path: Path) -> None:
    with Mapping(path) as mapping:
        mapping.advise("populate_read")
        alone = counters.of_file(path).pss
        read, write = os.pipe()
        done_read, done_write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with Mapping(path) as theirs:
                    theirs.advise("populate_read")
                    os.write(write, b"x")
                    os.read(done_read, 1)
            finally:
                os._exit(0)
        os.read(read, 1)
        shared = counters.of_file(path).pss
        os.write(done_write, b"x")
        os.waitpid(child, 0)
        for end in (read, write, done_read, done_write):
            os.close(end)
    assert alone == pytest.approx(16 * MIB, rel=0.01)
    assert shared < 0.7 * alone


def test_a_file_that_is_not_mapped_has_no_share(path: Path) -> None:
    assert counters.of_file(path) == counters.FileShare(0, 0, 0, 0)
    with pytest.raises(FileNotFoundError):
        counters.of_file(path.with_name("gone"))


def test_what_is_not_told_stays_untold() -> None:
    known, unknown = counters.Reads(3, 2, 100), counters.Reads(1, 1, None)
    assert known - counters.Reads(1, 1, 40) == counters.Reads(2, 1, 60)
    assert (known - unknown).read_bytes is None


@pytest.mark.root
def test_limit_and_charge_are_those_of_the_group() -> None:
    code = (
        "from mmrt import counters; import sys; open(sys.argv[1], 'w').write('0'); "
        "print(counters.memory_limit(), counters.cgroup_charge())"
    )
    with memory_cgroup() as limit:
        limit.write_text(str(256 * MIB))
        join = str(limit.with_name("cgroup.procs"))
        command = [sys.executable, "-c", code, join]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, charge = map(int, done.stdout.split())
    assert found == 256 * MIB and 0 < charge <= found


# ---- cgroups ----


def lists(folder: Path, groups: str, *mounts: tuple[str, str, str, str]) -> tuple[Path, Path]:
    """Files as /proc/self/cgroup and mountinfo are; mounts: (root, point, type, options)."""
    (folder / "cgroup").write_text(groups)
    lines = [
        f"{i} 1 0:{i} {root} {point} rw,relatime shared:{i} - {type} {type} rw,{options}\n"
        for i, (root, point, type, options) in enumerate(mounts, 30)
    ]
    (folder / "mountinfo").write_text("".join(lines))
    return folder / "cgroup", folder / "mountinfo"


def group(folder: Path, **files: str) -> None:
    """A cgroup with these files, `__` standing for the dot in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_the_tightest_quota_around_the_process_counts(tmp_path: Path) -> None:
    top = tmp_path / "cgroup2"
    group(top / "a/b/c", cpu__max="max 100000")
    group(top / "a/b", cpu__max="150000 100000")
    group(top / "a", cpu__max="400000 100000")
    files = lists(tmp_path, "0::/a/b/c\n", ("/", str(top), "cgroup2", "nsdelegate"))
    folders = [str(top / inner) for inner in ("a/b/c", "a/b", "a", "")]
    assert _probe.cgroups("cpu", 2, *files) == folders
    assert _probe.cpu_quota(*files) == 1.5
    group(top / "a", cpu__max="50000 100000")
    assert _probe.cpu_quota(*files) == 0.5
    for inner in ("a", "a/b"):
        group(top / inner, cpu__max="max 100000")
    assert _probe.cpu_quota(*files) is None


def test_quotas_of_version_1_stand_beside_those_of_version_2(tmp_path: Path) -> None:
    one, two = tmp_path / "cpu,cpuacct", tmp_path / "unified"
    group(one / "x", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    group(one, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(two, cpu__max="800000 100000")
    files = lists(
        tmp_path, "5:cpuset:/\n4:cpu,cpuacct:/x\n0::/\n",
        ("/", str(tmp_path / "set"), "cgroup", "cpuset"),
        ("/", str(one), "cgroup", "cpu,cpuacct"),
        ("/", str(two), "cgroup2", "rw"),
    )  # fmt: skip
    assert _probe.cpu_quota(*files) == 3


def test_a_container_that_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    top = tmp_path / "a folder"
    group(top / "inner", cpu__max="200000 100000")
    point = str(top).replace(" ", r"\040")
    mount = ("/docker/1234", point, "cgroup2", "rw")
    files = lists(tmp_path, "0::/docker/1234/inner\n", mount)
    assert _probe.cgroups("cpu", 2, *files) == [str(top / "inner"), str(top)]
    assert _probe.cpu_quota(*files) == 2
    outside = lists(tmp_path, "0::/docker/9\n", mount)
    assert _probe.cgroups("cpu", 2, *outside) == [str(top)]
    assert _probe.cpu_quota(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.root
def test_a_quota_of_a_real_group_bounds_the_threads() -> None:
    code = "from mmrt.core.kernels import Pool; print(Pool(None).threads)"
    with cgroup("cpu", "cpu.cfs_quota_us", "cpu.max") as limit:
        limit.write_text("100000" if limit.name == "cpu.cfs_quota_us" else "100000 100000")
        join = f"open({str(limit.with_name('cgroup.procs'))!r}, 'w').write('0'); "
        found = subprocess.run([sys.executable, "-c", join + code], capture_output=True)
    assert found.stdout == b"1\n", found.stderr

"""Keys and values in files: what a later process finds is what was read, come what may."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from command import HOME

import mmrt
from mmrt.core.state import Cache
from mmrt.run.checkpoints import spare
from mmrt.run.saved import Saved
from mmrt.run.saved_file import sample
from mmrt.run.sequence import Sequence
from mmrt.run.swap import Swap
from mmrt.run.worth import Worth

IDS = [3 + 7 * i % 250 for i in range(1200)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_models.llama(type="Q8_0", context=2048)
    return made.write(tmp_path_factory.mktemp("saved") / "m.gguf")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "kv"


Open = Callable[..., mmrt.Model]


@pytest.fixture
def opened(path: Path, place: Path) -> Iterator[Open]:
    models = []

    def open_(**options: object) -> mmrt.Model:
        models.append(mmrt.Model(path, exact=True, kv_dir=place, **options))  # type: ignore[arg-type]
        return models[-1]

    yield open_
    for model in models:
        model.close()


def saved_of(model: mmrt.Model) -> Saved:
    assert model.saved is not None
    return model.saved


def write(opened: Open, ids: list[int] = IDS, salt: str = "") -> None:
    """Another process's work, as far as files go."""
    with opened() as model:
        cache = Cache(model.store)
        Sequence(model, cache).extend(ids)
        saved_of(model).save(cache, salt)


def files(place: Path) -> list[Path]:
    """Of one text, in its order: the header of each names the one before."""
    by_name = {file.stem: file for file in place.rglob("*.kv")}
    after = {file.read_bytes()[32:48].hex(): file for file in by_name.values()}
    order = [file for name, file in after.items() if name not in by_name]
    while order and order[-1].stem in after:
        order.append(after[order[-1].stem])
    return order if len(order) == len(by_name) else list(by_name.values())


# ---- what is found ----


@pytest.mark.parametrize("length", [1, 31, 256, 257, 700, 1199])
def test_a_later_process_finds_it_to_the_token(opened: Open, length: int) -> None:
    write(opened)
    model = opened()
    other = [*IDS[:length], IDS[length] + 1, 7, 7]
    saved = saved_of(model)
    assert saved.length(other) == length
    cache = Cache(model.store)
    assert saved.attach(cache, other) == length and cache.tokens == IDS[:length]
    assert (cache.nbytes, cache.shared_nbytes, model.store.nbytes) == (0, 0, 0)
    pages = -(-length // 32)
    assert cache.mapped_nbytes == model.store.mapped_nbytes == pages * model.store.page_bytes
    logits = Sequence(model, cache).extend(other[length:])
    assert np.array_equal(logits, model.logits(other)[-1])
    assert saved.length([IDS[0] + 1, *IDS]) == 0
    cache.truncate(0)
    assert model.store.nbytes == model.store.mapped_nbytes == 0


@pytest.mark.parametrize("here", [0, 5, 256, 300, 900])
def test_what_is_in_memory_goes_on_from_files(opened: Open, here: int) -> None:
    write(opened, IDS[:800])
    model = opened()
    cache = Cache(model.store)
    if here:
        Sequence(model, cache).extend(IDS[:here])
    reached = saved_of(model).attach(cache, IDS, most=spare(IDS))
    assert reached == cache.length == max(here, 800)
    assert cache.tokens == IDS[:reached]
    logits = Sequence(model, cache).extend(IDS[reached:])
    assert np.array_equal(logits, model.logits(IDS)[-1])


def test_forks_of_mapped_pages_go_apart(opened: Open) -> None:
    write(opened, IDS[:300])
    model = opened()
    first = Cache(model.store)
    saved_of(model).attach(first, IDS[:300])
    second = first.fork()
    for cache, token in ((first, 9), (second, 11)):
        logits = Sequence(model, cache).extend([token, 5])
        assert np.array_equal(logits, model.logits([*IDS[:300], token, 5])[-1])
    assert model.store.nbytes == 2 * model.store.page_bytes  # each has copied the page it writes in
    second.truncate(0)
    assert first.mapped_nbytes == model.store.mapped_nbytes == 9 * model.store.page_bytes


def test_salts_are_apart(opened: Open) -> None:
    write(opened, salt="a")
    saved = saved_of(opened())
    assert (saved.length(IDS, "a"), saved.length(IDS, "b"), saved.length(IDS)) == (1200, 0, 0)


def test_each_token_is_written_once(opened: Open, place: Path) -> None:
    model = opened()
    saved = saved_of(model)
    cache = Cache(model.store)
    for end in (100, 256, 400, 401, 600):
        Sequence(model, cache).extend(IDS[cache.length : end])
        saved.save(cache)
    assert len(files(place)) == saved.report.files == 3  # the ends of shorter ones are gone
    written = saved.report.written
    saved.save(cache)
    cache.truncate(500)
    saved.save(cache)  # a longer one holds it
    assert saved.report.written == written


def test_another_process_is_seen(opened: Open) -> None:
    saved = saved_of(opened())
    assert saved.length(IDS) == 0
    write(opened)
    assert saved.length(IDS) == 1200


@pytest.mark.parametrize("options", [{"kv_k": "q8_0"}, {"kv_v": "q8_0"}], ids=["kv_k", "kv_v"])
def test_other_layouts_find_nothing(opened: Open, options: dict[str, str]) -> None:
    write(opened)
    assert saved_of(opened(**options)).length(IDS) == 0


def test_another_model_finds_nothing(opened: Open, place: Path, tmp_path: Path) -> None:
    write(opened)
    other = tiny_models.llama(type="Q8_0", context=2048, seed=5).write(tmp_path / "m.gguf")
    with mmrt.Model(other, exact=True, kv_dir=place) as model:
        assert saved_of(model).length(IDS) == 0


# ---- damage ----


def damaged(opened: Open, words: str, ids: list[int] = IDS) -> tuple[int, int]:
    """What is still found, and how many files were left out, with a warning each."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = opened()
        cache = Cache(model.store)
        reached = saved_of(model).attach(cache, ids)
        logits = Sequence(model, cache).extend([*ids, 5][reached:])
    assert np.array_equal(logits, model.logits([*ids, 5])[-1])
    n = saved_of(model).report.damaged
    assert len([one for one in said if words in str(one.message)]) == n
    return reached, n


@pytest.mark.parametrize("place_in_file", [0, 20, 60, 500, 4096, 50_000, -1])
def test_a_wrong_byte_is_noticed(opened: Open, place: Path, place_in_file: int) -> None:
    """In the header, in pages, and in what no page is."""
    write(opened, IDS[:768])
    second = files(place)[1]
    content = bytearray(second.read_bytes())
    content[place_in_file] ^= 1
    second.write_bytes(content)
    assert damaged(opened, "are damaged", IDS[:768]) == (256, 1)
    assert not second.exists()


@pytest.mark.parametrize("size", [0, 100, 5000, -4096])
def test_a_file_cut_short_is_noticed(opened: Open, place: Path, size: int) -> None:
    write(opened)
    third = files(place)[2]
    os.truncate(third, size if size >= 0 else third.stat().st_size + size)
    assert damaged(opened, "are damaged") == (512, 1)


def test_strangers_in_the_directory(opened: Open, place: Path) -> None:
    write(opened, IDS[:300])
    there = files(place)[0].parent
    (there / "README").write_text("hello")
    (there / "zz.kv").write_text("no name of ours")
    (there / ("0" * 32 + ".kv")).write_text("nothing of ours")
    shutil.copy(files(place)[0], there / ("1" * 32 + ".kv"))  # under another's name
    begun = there / f"{'2' * 32}.1.new"
    begun.write_text("by one that was killed")
    os.utime(begun, (1e9, 1e9))
    (there / f"{'2' * 32}.2.new").write_text("by one that goes on")
    assert damaged(opened, "are damaged", IDS[:300]) == (300, 2)
    assert [file.name[32:] for file in there.glob("*.new")] == [".2.new"]
    assert (there / "README").exists()


def test_files_that_go_while_the_model_is_open(opened: Open, place: Path) -> None:
    write(opened)
    model = opened()
    saved = saved_of(model)
    assert saved.length(IDS) == 1200
    cache = Cache(model.store)
    saved.attach(cache, IDS[:600])
    shutil.rmtree(place)
    assert saved.length(IDS) == 0  # but what is mapped stays
    logits = Sequence(model, cache).extend([5])
    assert np.array_equal(logits, model.logits([*IDS[:600], 5])[-1])
    saved.save(cache)  # in a directory that is made again
    assert saved.length(IDS) == 600 and saved.report.refused == 0
    assert files(place)[0].parent.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(place)
    place.write_text("a file")
    assert saved.length(IDS) == 0
    with pytest.warns(UserWarning, match="are not saved"):
        saved.save(cache)
    assert saved.report.refused == 1


def test_a_file_cut_while_it_is_mapped_ends_the_step(opened: Open, place: Path) -> None:
    write(opened, IDS[:256])
    model = opened()
    cache = Cache(model.store)
    saved_of(model).attach(cache, IDS[:256])
    os.truncate(files(place)[0], 4096)
    with pytest.raises(mmrt.FileError, match=r"\.kv"):
        Sequence(model, cache).extend([5])
    assert cache.length == 256


def test_a_full_disk_is_told_once(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened()
    cache = Cache(model.store)
    Sequence(model, cache).extend(IDS)

    def full(fd: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.warns(UserWarning, match="No space left on device") as said:
        for _ in range(3):
            saved_of(model).save(cache)
    assert len(said) == 1 and saved_of(model).report.refused == 3
    monkeypatch.undo()
    saved_of(model).save(cache)
    assert saved_of(model).length(IDS) == 1200
    assert not list(Path(saved_of(model).directory).glob("*.new"))


# ---- room ----


def test_what_was_not_used_for_longest_goes_first(opened: Open, place: Path) -> None:
    texts = [[i, *IDS[:600]] for i in range(4)]
    with opened() as model:
        cache = Cache(model.store)
        Sequence(model, cache).extend(texts[0])
        saved_of(model).save(cache)
        one = saved_of(model).report.bytes
    model = opened(kv_dir_size=int(2.5 * one))
    saved = saved_of(model)
    for ids in texts[1:]:
        cache = Cache(model.store)
        Sequence(model, cache).extend(ids)
        saved.save(cache)
        assert saved.report.bytes <= 2.5 * one
    found = [saved.length(ids) for ids in texts]
    assert found[0] == 0 and 0 < found[1] < 601 and found[2:] == [601, 601]
    assert sum(file.stat().st_blocks * 512 for file in files(place)) == saved.report.bytes


@pytest.mark.parametrize("size", [0, -1, "x", 1.5, True])
def test_sizes_that_are_none(path: Path, place: Path, size: object) -> None:
    with pytest.raises(mmrt.ArgumentError, match="kv_dir_size: "):
        mmrt.Model(path, kv_dir=place, kv_dir_size=size)  # type: ignore[arg-type]


def test_the_directory_is_this_users(opened: Open, place: Path) -> None:
    place.mkdir(mode=0o755)
    write(opened, IDS[:300])
    private = files(place)[0].parent
    assert private.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files(place))
    private.chmod(0o777)
    opened()
    assert private.stat().st_mode & 0o777 == 0o700
    private.rename(
        place.parent / "elsewhere"
    )  # a link may be another user's, to what is not theirs
    private.symlink_to(place.parent / "elsewhere")
    with pytest.raises(mmrt.FileError, match="found a symbolic link"):
        opened()


def test_no_directory(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(mmrt.FileError, match=r"expected a directory to save .*file"):
        mmrt.Model(path, kv_dir=tmp_path / "file")
    with pytest.raises(mmrt.ArgumentError, match="kv_dir"):
        mmrt.Model(path, kv_dir=7)  # type: ignore[arg-type]
    with pytest.raises(mmrt.ArgumentError, match="kv_dir: a path cannot be empty"):
        mmrt.Model(path, kv_dir="")


# ---- whoever writes texts uses them ----


def test_generate_and_chat_go_on_where_another_process_ended(opened: Open) -> None:
    with opened() as model:
        first = model.generate(IDS[:600], max_tokens=20, ignore_eos=True)
    with opened() as model:
        again = model.generate(IDS[:600], max_tokens=20, ignore_eos=True)
        assert again == first and again.cached_tokens == 592
        both = model.generate([*IDS[:600], 8, 8], max_tokens=1)
        assert both.cached_tokens == 594


def test_an_engine_goes_on_after_a_kill(path: Path, place: Path, opened: Open) -> None:
    """What was read is in files as it fills them, not at the end."""
    child = f"""
import os, signal, time, mmrt
with mmrt.Model({str(path)!r}, exact=True, kv_dir={str(place)!r}) as model:
    with model.engine() as engine:
        handle = engine.submit({IDS}, max_tokens=None, ignore_eos=True)
        next(handle)
        while model.saved.length({IDS}) < 1024:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", child], cwd=HOME, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    model = opened()
    with model.engine() as engine:
        handle = engine.submit(IDS, max_tokens=10, ignore_eos=True)
        text = str(handle.text())
    assert handle.cached_tokens >= 1024
    assert text == str(model.generate(IDS, max_tokens=10, ignore_eos=True))


def test_a_forked_child_saves_nothing(opened: Open, place: Path) -> None:
    model = opened()
    pid = os.fork()
    if pid == 0:
        model.generate(IDS[:300], max_tokens=1)
        model.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert files(place) == []


def test_several_threads_save_and_load(opened: Open) -> None:
    model = opened()
    saved = saved_of(model)
    expected = {i: model.logits([i, *IDS[:600], 5])[-1] for i in range(2)}
    wrong: list[object] = []

    def work(i: int) -> None:
        for _ in range(6):
            cache = Cache(model.store)
            ids = [i % 2, *IDS[:600]]
            reached = saved.attach(cache, ids)
            logits = Sequence(model, cache).extend([*ids, 5][reached:])
            if not np.array_equal(logits, expected[i % 2]):
                wrong.append(i)
            saved.save(cache)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and saved.report.damaged == 0


# ---- swap ----


def test_files_of_swap_go_with_it(path: Path, tmp_path: Path) -> None:
    with mmrt.Model(path, exact=True) as model:
        swap = Swap(model.store, str(tmp_path))
        cache = Cache(model.store)
        Sequence(model, cache).extend(IDS)
        swap.save_later(cache)
        swap.close()
        assert list(tmp_path.iterdir()) == []


def test_swap_of_a_process_that_was_killed_is_removed(path: Path, tmp_path: Path) -> None:
    left = tmp_path / "mmrt-swap-left"
    left.mkdir()
    (left / "x").write_text("")
    os.utime(left, (1e9, 1e9))
    (tmp_path / "mine").mkdir()
    with mmrt.Model(path) as model:
        one = Swap(model.store, str(tmp_path))
        other = Swap(model.store, str(tmp_path))
        assert not left.exists() and len(list(tmp_path.iterdir())) == 3
        one.close()
        other.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


# ---- worth ----


def test_rates_decide() -> None:
    worth = Worth()
    for _ in range(20):
        worth.have_written(10**9, 1.0)
        worth.have_read(10**8, 1.0)  # 0.1 GB/s
    assert worth.loading(10**8, 1.1) and not worth.loading(10**8, 0.9)
    # 0.1 s to write, 1 s to read back with a chance of one half; against half of 1.3 s, and of 1.1
    assert worth.saving(10**8, 1.3, 0.5) and not worth.saving(10**8, 1.1, 0.5)
    assert worth.loading(10**12, None)


def test_a_disk_that_was_slow_is_tried_again() -> None:
    worth = Worth()
    worth.have_read(10**6, 100.0)
    assert any(worth.loading(10**6, 0.01) for _ in range(100))
    for _ in range(30):
        worth.have_read(10**8, 0.01)
    assert worth.loading(10**6, 0.01)


# ---- what else may go wrong ----


def test_zeros_of_a_cut_file_are_not_saved(opened: Open, place: Path) -> None:
    write(opened, IDS[:600])
    model = opened()
    saved = saved_of(model)
    cache = Cache(model.store)
    saved.attach(cache, IDS[:600])
    for file in files(place):
        os.truncate(file, 4096)
        file.unlink()
    assert saved.length(IDS) == 0
    with pytest.raises(mmrt.FileError):
        Sequence(model, cache).extend([5])
    assert not cache.is_whole
    with pytest.warns(UserWarning, match="are not saved"):
        saved.save(cache)
    assert saved_of(opened()).length(IDS) == 0


def test_texts_of_a_cut_file_are_read_again_and_others_go_on(opened: Open, place: Path) -> None:
    write(opened, IDS[:600])
    model = opened()
    expected = str(model.generate([*IDS[:600], 1], max_tokens=30, ignore_eos=True))
    alone = str(model.generate([7, 7], max_tokens=200, ignore_eos=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with model.engine() as engine:
            other = engine.submit([7, 7], max_tokens=200, ignore_eos=True)
            one = engine.submit([*IDS[:600], 1], max_tokens=30, ignore_eos=True)
            next(one)
            for file in files(place):
                os.truncate(file, 4096)
            assert expected.endswith(str(one.text()))
            again = engine.submit([*IDS[:600], 1], max_tokens=30, ignore_eos=True)
            assert str(again.text()) == expected
            assert str(other.text()) == alone


def test_warnings_that_are_errors_end_no_thread(opened: Open, place: Path) -> None:
    model = opened()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = saved_of(model)
        shutil.rmtree(saved.directory)
        for _ in range(3):
            cache = Cache(model.store)
            Sequence(model, cache).extend(IDS[:300])
            assert saved.save_later(cache)
        saved.close()
    assert saved.saves_waiting == 0


def test_no_thread_to_be_had(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    model = opened()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert model.generate(IDS[:300], max_tokens=2, ignore_eos=True).tokens == 2
        saved_of(model).close()
    model.generate(IDS[:300], max_tokens=2)
    saved_of(model).close()
    assert saved_of(model).report.files == 2


def test_a_child_that_is_forked_while_the_lock_is_held(opened: Open) -> None:
    model = opened()
    saved = saved_of(model)
    with saved._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            held = threading.Thread(target=lambda: model.generate(IDS[:300], max_tokens=1))
            held.start()
            held.join()
            model.close()
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_fifo_in_the_directory(opened: Open, place: Path) -> None:
    write(opened, IDS[:300])
    there = files(place)[0].parent
    os.mkfifo(there / ("3" * 32 + ".kv"))
    os.mkfifo(there / ("4" * 32 + ".new"))
    assert damaged(opened, "are damaged", IDS[:300]) == (300, 1)


def test_files_that_cannot_be_opened_now_are_not_removed(
    opened: Open, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(opened, IDS[:600])
    n = len(files(place))
    opening = os.open

    def refuse(path: str, flags: int, *more: int, **others: int) -> int:
        if str(path).endswith(".kv"):
            raise OSError(24, "Too many open files")
        return opening(path, flags, *more, **others)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        model = opened()
        assert saved_of(model).length(IDS) == 0 and saved_of(model).report.damaged == 0
    assert len(files(place)) == n


def test_a_text_longer_than_the_room_keeps_its_beginning(opened: Open, place: Path) -> None:
    write(opened, IDS[:256])
    one = files(place)[0].stat().st_blocks * 512
    model = opened(kv_dir_size=int(2.5 * one))
    cache = Cache(model.store)
    Sequence(model, cache).extend(IDS)
    saved = saved_of(model)
    for _ in range(2):
        saved.save(cache)
        assert saved.length(IDS) == len(files(place)) * 256 == 512


def test_a_home_is_a_home(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with mmrt.Model(path, kv_dir="~/kv") as model:
        assert saved_of(model).directory.startswith(str(tmp_path / "kv"))


def test_swap_of_an_engine_that_is_dropped_goes(path: Path, tmp_path: Path) -> None:
    with mmrt.Model(path) as model:
        swap = Swap(model.store, str(tmp_path))
        swap.close()
        swap.close()
        Swap(model.store, str(tmp_path))
        gc.collect()
        assert list(tmp_path.iterdir()) == []


def test_a_sample_tells_how_fast_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.kv"
    path.write_bytes(bytes(3 << 20))
    read, took = sample(str(path), 3 << 20, 1000.0) or (0, 0.0)
    assert read == 1 << 20 and took > 0
    assert (sample(str(path), 3 << 20, 0.0) or (0, 0.0))[0] == 1 << 18  # too slow to go on
    assert (sample(str(path), 3 << 18, 1000.0) or (0, 0.0))[0] == 1 << 18  # with holes
    path.write_bytes(bytes(100))
    assert (sample(str(path), 100, 1000.0) or (0, 0.0))[0] == 100
    assert sample(str(tmp_path / "none"), 100, 1.0) is None

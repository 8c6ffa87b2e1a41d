"""Keys and values take the memory that formulas say, by mmrt's own count and by the kernel's.

A text of L tokens holds A(L) = min(M(L), B): the pages that its tokens need, M(L), and never more
than the B bytes that it may have. n texts more that share one of Size bytes, each with `modified`
of them written anew, save S = n * Size * (1 - modified / Size).
"""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import needs_line

import mmrt
from mmrt.core.state import PAGE_TOKENS, KeyValues
from mmrt.errors import OutOfMemoryError
from mmrt.memory import counters

IDS = [3 + 7 * i % 250 for i in range(800)]

# Parts of pages that are whole pages of the system, and others; layers that see 16 tokens alone.
KINDS: dict[str, tuple[Callable[..., tiny_models.TinyModel], str, int]] = {
    "f16": (tiny_models.llama, "f16", 64),
    "q8_0": (tiny_models.llama, "q8_0", 48),
    "windows": (tiny_models.gemma3, "f16", 64),
}

few = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", autouse=True)
def _no_huge_pages() -> Iterator[None]:
    """2 MiB at once, wherever anything of this process touches a new page."""
    disable, is_disabled, prctl = 41, 42, ctypes.CDLL(None).prctl  # PR_SET_THP_DISABLE, PR_GET_...
    before = max(prctl(is_disabled, 0, 0, 0, 0), 0)
    prctl(disable, 1, 0, 0, 0)
    yield
    prctl(disable, before, 0, 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module", params=KINDS)
def model(folder: Path, request: pytest.FixtureRequest) -> Iterator[mmrt.Model]:
    make, kind, head_dim = KINDS[request.param]
    shape = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": head_dim}
    path = make(context=2048, **shape).write(folder / f"{request.param}.gguf")
    with mmrt.Model(path, threads=1, kv_k=kind, kv_v=kind) as opened:
        yield opened


def pages(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


def anonymous() -> int:
    """What the kernel counts of this process."""
    found = counters.anonymous_share()
    assert found is not None
    return found


def runs(model: mmrt.Model, n_pages: int) -> int:
    """Stretches of memory that lie apart in so many pages, eight to an extent."""
    return -(-n_pages // 8) * sum(
        layer.n_heads for layer in model.store.layers if isinstance(layer, KeyValues)
    )


# ---- A(L) ----


@few
@given(lengths=st.lists(st.integers(0, 700), min_size=1, max_size=4))
def test_texts_hold_the_pages_of_their_tokens(model: mmrt.Model, lengths: list[int]) -> None:
    page, store = model.store.page_bytes, model.store
    texts = [model.sequence() for _ in lengths]
    for text, length in zip(texts, lengths, strict=True):
        if length:
            text.extend(IDS[:length])
        assert text.nbytes == len(text.pages()) * page == pages(length) * page
    assert store.nbytes == sum(map(pages, lengths)) * page
    assert store.sharing.saved == 0
    for text, length in zip(texts, lengths, strict=True):
        text.truncate(length // 2)
        assert text.nbytes == pages(length // 2) * page
    assert store.nbytes == sum(pages(length // 2) for length in lengths) * page
    for text in texts:
        text.close()
    assert store.nbytes == 0


@few
@given(length=st.integers(1, 700), cut=st.integers(0, 700))
def test_the_kernel_counts_the_same(model: mmrt.Model, length: int, cut: int) -> None:
    """Within a page of the system for each run of memory."""
    needs_line("/proc/self/smaps_rollup", "Pss_Anon")
    cut = min(cut, length)
    with model.sequence() as text:
        text.extend(IDS[:length])  # what else a step takes is there from now on
        text.truncate(0)
        before = anonymous()
        for n in (length, cut):
            text.truncate(min(n, len(text)))
            if n > len(text):
                text.extend(IDS[:n])
            counted = anonymous() - before
            assert abs(counted - text.nbytes) <= runs(model, pages(length)) * mmap.PAGESIZE


@few
@given(lengths=st.lists(st.integers(1, 300), min_size=2, max_size=5))
def test_the_kernel_counts_several_texts(model: mmrt.Model, lengths: list[int]) -> None:
    needs_line("/proc/self/smaps_rollup", "Pss_Anon")
    with model.sequence() as text:
        text.extend(IDS[: max(lengths)])
    with ExitStack() as opened:
        texts = [opened.enter_context(model.sequence()) for _ in lengths]
        before, room = anonymous(), 0
        for text, length in zip(texts, lengths, strict=True):
            text.extend(IDS[:length])
            room += (runs(model, pages(length)) + 2) * mmap.PAGESIZE  # lists of tokens, too
            counted = anonymous() - before
            assert abs(counted - model.store.nbytes) <= room
    assert model.store.nbytes == 0 and abs(anonymous() - before) <= room


@few
@given(length=st.integers(1, 400), block=st.integers(1, 16), answer=st.integers(1, 40))
def test_a_text_never_holds_more_than_it_may(
    model: mmrt.Model, length: int, block: int, answer: int
) -> None:
    """Either it ends, with the pages of its tokens, or has no room and says so."""
    page, most = model.store.page_bytes, 0
    run = model.run_step

    def watched(parts: object, logits: object = None) -> None:
        nonlocal most
        run(parts, logits)  # type: ignore[arg-type]
        most = max(most, model.store.nbytes)

    model.run_step = watched
    try:
        with model.engine(kv=block * page, keep=1 << 30) as engine:
            handle = engine.submit(IDS[:length], max_tokens=answer, ignore_eos=True)
            needed = pages(length + answer - 1)
            if needed <= block:
                assert handle.text().tokens == answer
                assert model.store.nbytes == most == needed * page
            else:
                with pytest.raises(OutOfMemoryError, match="has no room in kv="):
                    handle.text()
            assert most <= block * page
    finally:
        model.run_step = run


# ---- S ----


@few
@given(length=st.integers(1, 300), n=st.integers(1, 6), kept=st.floats(0, 1))
def test_what_sharing_saves(model: mmrt.Model, length: int, n: int, kept: float) -> None:
    store, page = model.store, model.store.page_bytes
    keep = int(kept * length)  # tokens that the others do not write anew
    size, modified = pages(length) * page, (pages(length) - keep // PAGE_TOKENS) * page
    with ExitStack() as opened:
        first = opened.enter_context(model.sequence())
        first.extend(IDS[:length])
        copies, kernel = store.sharing.copies, anonymous()
        others = [opened.enter_context(first.fork()) for _ in range(n)]
        assert store.sharing.saved == n * size and store.nbytes == size
        for other in others:
            other.truncate(keep)
            if keep < length:
                other.extend([5] * (length - keep))
        saved = n * size * (1 - modified / size) if keep < length else n * size
        found = store.sharing
        assert found.saved == round(saved)
        assert found.held == store.nbytes == (n + 1) * size - found.saved
        assert found.logical == sum(text.nbytes for text in [first, *others])
        assert found.copies - copies == (n if keep % PAGE_TOKENS and keep < length else 0)
        if counters.anonymous_share() is not None:
            room = runs(model, pages(length)) * (n + 1) * mmap.PAGESIZE
            assert abs(anonymous() - kernel - (store.nbytes - size)) <= room + 65536


def test_the_first_write_copies_one_page_alone(model: mmrt.Model) -> None:
    store = model.store
    with model.sequence() as first:
        first.extend(IDS[:100])
        with first.fork() as other:
            table, before = first.pages(), store.sharing
            assert other.pages() == table and {page.holders for page in table} == {2}
            other.extend([5])
            assert store.sharing.copies == before.copies + 1
            assert store.nbytes == before.held + store.page_bytes
            after = other.pages()
            assert after[:3] == table[:3] == first.pages()[:3]
            assert after[3].number != table[3].number
            assert after[3].holders == first.pages()[3].holders == 1
            other.extend([5] * 20)  # its own by now
            first.extend([5])
            assert store.sharing.copies == before.copies + 1
        assert [page.holders for page in first.pages()] == [1] * 4
        assert "without sharing" not in str(model.memory)
        with first.fork():
            assert model.memory.kv_logical == 2 * model.memory.kv
            assert "without sharing" in str(model.memory)

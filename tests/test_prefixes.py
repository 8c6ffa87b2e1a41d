"""The tree of beginnings: what it finds is what texts share, token by token."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models

import mmrt
from mmrt.core.state import Cache
from mmrt.run.prefixes import Prefixes
from mmrt.run.sequence import Sequence

IDS = [3 + 7 * i % 250 for i in range(600)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mmrt.Model]:
    made = tiny_models.llama(type="Q8_0", context=2048)
    path: Path = made.write(tmp_path_factory.mktemp("prefixes") / "m.gguf")
    with mmrt.Model(path, exact=True) as opened:
        yield opened


@pytest.fixture
def tree(model: mmrt.Model) -> Iterator[Prefixes]:
    made = Prefixes(model.program.store)
    yield made
    made.clear()
    assert model.program.store.nbytes == 0 and len(made) == 0


def read(model: mmrt.Model, ids: list[int], cache: Cache | None = None) -> Cache:
    cache = Cache(model.program.store) if cache is None else cache
    Sequence(model, cache).extend(ids[cache.length :])
    return cache


def kept(model: mmrt.Model, tree: Prefixes, ids: list[int], salt: str = "") -> None:
    tree.release(tree.follow(read(model, ids, tree.take(ids[:-1], salt)), salt))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 100, 299])
def test_a_beginning_is_found_to_the_token(model: mmrt.Model, tree: Prefixes, length: int) -> None:
    kept(model, tree, IDS[:300])
    other = [*IDS[:length], IDS[length] + 1, 7, 7]
    assert tree.shared(other) == length
    cache = tree.take(other)
    assert cache.tokens == IDS[:length]
    logits = Sequence(model, cache).extend(other[length:])
    assert np.array_equal(logits, model.logits(other)[-1])  # and it is the right memory
    assert tree.take([IDS[0] + 1]).length == 0
    assert tree.take(other, most=5).length == min(5, length)


def test_what_texts_share_is_in_memory_once(model: mmrt.Model, tree: Prefixes) -> None:
    store = model.program.store
    for end in range(4):
        kept(model, tree, [*IDS[:256], *[200 + end] * 32])
    assert store.nbytes == (8 + 4) * store.page_bytes
    assert tree.found_tokens == 3 * 256


def test_a_text_that_others_begin_with_is_not_kept_twice(model: mmrt.Model, tree: Prefixes) -> None:
    for length in (10, 50, 90, 90):  # turn after turn of a conversation
        kept(model, tree, IDS[:length])
        assert len(tree) == 1
    assert model.program.store.nbytes == 3 * model.program.store.page_bytes


def test_salts_share_nothing(model: mmrt.Model, tree: Prefixes) -> None:
    kept(model, tree, IDS[:100], "a")
    assert tree.shared(IDS[:100], "a") == 100
    assert tree.shared(IDS[:100], "b") == tree.shared(IDS[:100]) == 0


def test_the_text_used_longest_ago_gives_its_end_back_first(
    model: mmrt.Model, tree: Prefixes
) -> None:
    store = model.program.store
    old, new = IDS[:600], [9, *IDS[:300]]
    kept(model, tree, old)
    kept(model, tree, new)
    before = store.nbytes
    given = tree.give_back(1)
    assert given == before - store.nbytes > 0
    assert tree.shared(old) == 512 and tree.shared(new) == 301
    tree.take(old[:200])  # now the other one is older
    tree.give_back(1)
    assert tree.shared(old) == 512 and tree.shared(new) == 256
    held = store.nbytes
    assert tree.give_back(1 << 40) == held
    assert len(tree) == 0


def test_what_many_go_on_from_outlives_what_was_asked_once(
    model: mmrt.Model, tree: Prefixes
) -> None:
    """Between two texts that share a beginning come more others than there is room for: if what was
    used longest ago went first, it would never be found."""
    store, draw = model.program.store, random.Random(3)
    room = 64 * store.page_bytes
    shared = [[9 + i, *IDS[:255]] for i in range(2)]
    for i in range(6):
        kept(model, tree, [*shared[i % 2], 7, i])
    for i in range(60):
        kept(model, tree, [draw.randrange(3, 250) for _ in range(200)])
        tree.give_back(store.nbytes - room)
        if i % 6 == 5:
            assert tree.shared(shared[i // 6 % 2]) == 256
            kept(model, tree, [*shared[i // 6 % 2], 8, i])
            tree.give_back(store.nbytes - room)
        assert store.nbytes <= room


def test_what_is_asked_no_more_goes_at_last(model: mmrt.Model, tree: Prefixes) -> None:
    store, draw = model.program.store, random.Random(4)
    for i in range(20):
        kept(model, tree, [*IDS[:128], 5, i])
    for _ in range(100):
        kept(model, tree, [draw.randrange(3, 250) for _ in range(128)])
        tree.give_back(store.nbytes - 16 * store.page_bytes)
    assert tree.shared(IDS[:128]) == 0


def test_ends_go_before_what_they_follow(model: mmrt.Model, tree: Prefixes) -> None:
    store = model.program.store
    for i in range(6):
        kept(model, tree, [*IDS[:200], 5 + i, 6, 7])
    for left in range(6, 0, -1):  # six whole pages, and a last one of each
        assert store.nbytes == (6 + left) * store.page_bytes
        assert tree.shared(IDS[:200]) == 200  # which the others were forked from
        tree.give_back(1)
    assert tree.shared(IDS) == 0


def test_texts_in_use_are_found_as_they_grow_and_never_cut(
    model: mmrt.Model, tree: Prefixes
) -> None:
    cache = read(model, IDS[:40])
    text = tree.follow(cache)
    assert tree.shared(IDS) == 40
    read(model, IDS[:100], cache)
    tree.grow(text)
    assert tree.shared(IDS) == 100
    assert tree.give_back(1 << 40) == 0 and cache.length == 100
    tree.drop(text)
    assert tree.shared(IDS) == 0


def test_any_order_of_taking_keeping_and_giving_back(model: mmrt.Model, tree: Prefixes) -> None:
    """Against a list of texts that is searched from end to end."""
    draw = random.Random(6)
    store = model.program.store
    for _ in range(15):
        known: list[list[int]] = []
        for _ in range(25):
            if known and draw.random() < 0.7:
                base = draw.choice(known)
                base = base[: draw.randrange(len(base) + 1)]
            else:
                base = []
            ids = [*base, *(draw.randrange(3) for _ in range(draw.randrange(1, 90)))]
            longest = max((common(ids, other) for other in known), default=0)
            assert tree.shared(ids) == longest
            kept(model, tree, ids)
            known.append(ids)
            if draw.random() < 0.2:
                tree.give_back(draw.randrange(20) * store.page_bytes)
                known = [known_text for known_text in known if tree.shared(known_text)]
                known = [text[: tree.shared(text)] for text in known]
        tree.clear()
        assert store.nbytes == 0


def common(a: list[int], b: list[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )

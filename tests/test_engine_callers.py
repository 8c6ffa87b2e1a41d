"""What callers of an engine may get wrong, and that it harms no other text."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import mmrt
from mmrt.errors import ArgumentError, InUseError, MmrtError
from mmrt.run.cost import StepCost
from mmrt.run.engine import Engine
from mmrt.run.step import take_part
from mmrt.run.writing import Writing
from mmrt.text.channels import Undivided

IDS = [3 + 7 * i % 250 for i in range(600)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(type="Q8_0", context=1024)
    return model.write(tmp_path_factory.mktemp("callers") / "m.gguf")


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with mmrt.Model(path, exact=True, threads=2) as model:
        with model.engine() as opened:
            yield opened
        assert model.store.nbytes == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("salt", value, "salt: expected a str") for value in (None, 1, b"x", ["x"])),
        *(("channels", value, "channels: expected") for value in (1, "x", Path)),
        *(
            ("priority", value, "priority: .* is not a whole")
            for value in (0.5, "0", None, 1 << 32)
        ),
        *(("parse_special", value, "parse_special: expected True or False") for value in (1, None)),
        ("on_prefill", 1, "on_prefill: 1 cannot be called"),
        ("nothing", 1, "there is no option 'nothing'"),
    ],
)
def test_arguments_of_a_text(engine: Engine, name: str, value: Any, words: str) -> None:
    good = engine.submit(IDS[:40], max_tokens=5)
    with pytest.raises(ArgumentError, match=words):
        engine.submit(IDS[:40], **{name: value})
    assert good.text().tokens == 5


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_gap", (0, -1, float("nan"), float("inf"), "1", True)),
        ("kv", (0, -1, 1.5, "1GiB", True)),
        ("keep", (-1, 1.5, "0", True)),
        ("waiting", (0, 1.5, None, True)),
        ("sight", (1, "", True, "/nowhere/at/all")),
    ],
)
def test_arguments_of_an_engine(path: Path, name: str, values: tuple[Any, ...]) -> None:
    with mmrt.Model(path) as model:
        for value in values:
            with pytest.raises(MmrtError, match=name if name != "sight" else "sight|/nowhere"):
                model.engine(**{name: value})


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_a_callback_raises_ends_its_own_text(
    engine: Engine, error: type[BaseException]
) -> None:
    def fail(done: int, total: int) -> None:
        raise error("from the caller")

    good = engine.submit(IDS[:40], max_tokens=20, ignore_eos=True)
    bad = engine.submit(IDS[:300], max_tokens=5, on_prefill=fail)
    with pytest.raises(error, match="from the caller"):
        bad.text()
    assert good.text().tokens == 20
    assert engine.submit(IDS[:50], max_tokens=2, ignore_eos=True).text().tokens == 2


def test_a_fault_over_one_text_ends_that_one(engine: Engine) -> None:
    class Broken(Undivided):
        def feed(self, text: str, mark: str = "") -> Any:
            raise AttributeError("a fault of its own")

    good = engine.submit(IDS[:40], max_tokens=20, ignore_eos=True)
    bad = engine.submit(IDS[:40], max_tokens=5, channels=Broken())
    with pytest.raises(AttributeError, match="a fault of its own"):
        bad.text()
    assert good.text().tokens == 20


def test_callbacks_use_the_engine(engine: Engine) -> None:
    others = []

    def use(done: int, total: int) -> None:
        others.append(engine.submit(IDS[:20], max_tokens=1, ignore_eos=True))
        if len(others) > 1:
            others[0].cancel()
        assert len(engine.snapshot().texts) >= 1

    assert (
        engine.submit(IDS[:300], max_tokens=3, on_prefill=use, ignore_eos=True).text().tokens == 3
    )
    assert others and all(other.text().tokens <= 1 for other in others)


def test_a_callback_cannot_wait_for_another_text(engine: Engine) -> None:
    def wait(done: int, total: int) -> None:
        engine.submit(IDS[:20], max_tokens=1).text()

    async def wait_in_a_loop() -> None:
        await engine.submit(IDS[:20], max_tokens=1).text_async()

    for use in (wait, lambda *_: asyncio.run(wait_in_a_loop())):
        with pytest.raises(InUseError, match="which calls on_prefill, cannot wait"):
            engine.submit(IDS[:300], max_tokens=3, on_prefill=use).text()


def test_a_callback_closes_the_engine(engine: Engine) -> None:
    text = engine.submit(IDS[:300], max_tokens=3, on_prefill=lambda *_: engine.close())
    with pytest.raises(ArgumentError, match="the engine was closed"):
        text.text()
    with pytest.raises(ArgumentError, match="the engine is closed"):
        engine.submit(IDS[:3])


def test_200_texts_at_once(engine: Engine) -> None:
    prompts = [[5 + i % 200, 6, 7 + i % 90] * 5 for i in range(200)]
    texts: list[mmrt.Text | None] = [None] * len(prompts)

    def ask(i: int) -> None:
        options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
        texts[i] = engine.submit(prompts[i], **options).text()

    threads = [threading.Thread(target=ask, args=[i]) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model = engine._model
    assert isinstance(model, mmrt.Model)
    for i in range(0, 200, 23):
        alone = model.generate(prompts[i], max_tokens=6, temperature=0, ignore_eos=True)
        assert texts[i] == alone
    assert all(text is not None and text.tokens == 6 for text in texts)


# ---- who takes part ----


def known(w: float, a: float) -> StepCost:
    """Steps take w and a for each token."""
    cost = StepCost()
    for i in range(200):
        n = 1 + 37 * i % 100
        cost.observe([(n, 11 * i % 300)], w + a * n)
    return cost


class Text(Writing):
    """As take_part() sees it."""

    def __init__(self, name: str, rank_class: int, writes: bool, to_read: int = 1) -> None:
        self.name, self.rank_class, self.writes, self.left = name, rank_class, writes, to_read

        self.had = 0.0

    length = 0

    @property
    def to_read(self) -> int:
        return self.left

    def cut(self, n: int) -> int:
        return n


def chosen(jobs: list[Text], cost: StepCost, gap: float) -> dict[str, int]:
    part = take_part(list(jobs), cost, gap, 1 << 16, lambda job, earlier: True)
    return {job.name: n for job, n in part if isinstance(job, Text)}


def test_those_that_write_go_before_a_prompt_of_their_class() -> None:
    writers = [Text(f"w{i}", 0, True) for i in range(4)]
    found = chosen([*writers, Text("prompt", 0, False, 1000)], known(0.1, 1e-3), 0.2)
    assert [found[f"w{i}"] for i in range(4)] == [1] * 4
    assert 90 <= found["prompt"] <= 96


def test_a_prompt_of_a_better_class_goes_before_those_that_write() -> None:
    """As many that write as fill a step: else it would be read a token a step beside them."""
    writers = [Text(f"w{i}", 1, True) for i in range(200)]
    found = chosen([Text("prompt", 0, False, 1000), *writers], known(0.1, 1e-3), 0.2)
    assert 94 <= found["prompt"] <= 100 and len(found) <= 2
    found = chosen([Text("prompt", 0, False, 50), *writers], known(0.1, 1e-3), 0.2)
    assert found["prompt"] == 50 and 44 <= len(found) <= 51
    found = chosen([Text("writer", 0, True), Text("prompt", 1, False, 1000)], known(0.1, 1e-3), 0.2)
    assert found["writer"] == 1 and found["prompt"] > 80


def test_no_step_is_taken_for_quicker_than_any_was() -> None:
    """Where noise leaves nothing of the factors, all would take part in a step of no time."""
    cost = StepCost()
    for seconds in (0.5, 1e-3, 0.2, 1e-3, 0.4):
        cost.observe([(1, 100)], seconds)
        assert cost.predict([(1, 0)]) >= min(seconds, 1e-3)
        assert cost.predict([(1, 0), (1, 5)]) >= 1e-3

"""The bench of the engine: its figures are of what it says, and sharing is what it has to be."""

from pathlib import Path

import pytest
import tiny_models

import mmrt
from bench import serving
from mmrt.run.feedback import Job


def test_figures(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=8192).write(tmp_path / "m.gguf")
    with mmrt.Model(path, threads=2) as model:
        found = serving.run(model, ["batch", "gap", "share", "system"], 1, 8, prompt=2048)
        assert found["batch 1"]["ratio"] == 1
        for made in (found[f"batch {n}"] for n in (1, 4, 8, 16)):
            assert made["tokens_per_second"] > 0 and made["own_share"] < 1
        assert found["gap"]["worst_gap"] > 0
        share = found["share"]
        assert share["turn_tokens_beyond_new"] <= 32
        assert share["branches_work"] <= 1.05 and share["answers_pages"] <= 1.1
        assert share["prompt_tokens"] == 2048
        assert share["fork_seconds"] > 0 and share["fork_bytes"] == 0
        system = found["system"]
        assert (system["conversation_tokens"], system["system_tokens"]) == (2560, 512)
        assert system["cached_tokens"] == 512 and system["evaluated_tokens"] == 24
        assert system["first_token_seconds"] > 0
        gap = found["gap"]
        ratios = "worst_gap / max_gap", "prompt_beside / prompt_alone"
        for ratio, (a, b) in zip(ratios, (name.split(" / ") for name in ratios), strict=True):
            assert gap[ratio] == pytest.approx(gap[a] / gap[b])
        mixed = serving.run(model, ["mixed"], 1, 8, texts=8)["mixed"]
        feedback, first, better = (mixed.pop(key) for key in list(mixed))
        assert all(made["median_short"] <= made["p99"] for made in (feedback, first))
        assert better == pytest.approx(
            {
                "median_short": first["median_short"] / feedback["median_short"],
                "mean_short": first["mean_short"] / feedback["mean_short"],
                "p99": first["p99"] / feedback["p99"],
                "tokens_per_second": feedback["tokens_per_second"] / first["tokens_per_second"],
            }
        )


def test_flips(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=512).write(tmp_path / "m.gguf")
    with mmrt.Model(path, threads=2, exact=True) as model:
        for figures in serving.flips(model, 6, 8).values():
            assert figures == {"texts": 6, "differ": 0, "flips_a_token": 0}
    assert serving.compared([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 9, 9]]) == {
        "texts": 2,
        "differ": 1,
        "flips_a_token": 1 / 5,
    }
    assert serving.compared([[]], [[]])["flips_a_token"] == 0


def test_first_come_first_served() -> None:
    rule = serving.FirstCome(10)
    first, second = Job(), Job()
    rule.join(first, 0)
    rule.join(second, 1)
    for time in range(10, 100, 10):
        rule.charge(first, 10)
        rule.advance(time)
        assert rule.ready() == [first, second] and first.p == 0


@pytest.mark.parametrize("n", [1, 100])
def test_prompts_are_all_different(tmp_path: Path, n: int) -> None:
    path = tiny_models.llama().write(tmp_path / "m.gguf")
    with mmrt.Model(path) as model:
        assert len({tuple(serving.words(model, n, seed)) for seed in range(20)}) > 10

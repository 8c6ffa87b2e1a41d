"""What `mmrt inspect --memory` shows: the plan of a memory budget, and what others would give."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmrt.cli.output import print_table, printable, write_file
from mmrt.core.streaming import READERS
from mmrt.memory.sizes import human
from mmrt.run.model import Model
from mmrt.sight import forecast, routing
from mmrt.sight.forecast import Forecast
from mmrt.sight.pictures import curves, drawing

_CURVE = 48  # budgets of the picture


class Plans:
    """Of one model and budget, measured once."""

    def __init__(self, path: str, memory: int, trace: Path | None = None) -> None:
        with Model(path, memory=memory) as model:
            self.path = model.path
            machine = forecast.measure(model)
            self.chosen = forecast.forecast(model, machine)
            self.routed = None
            if trace is not None:
                read = routing.read(trace)
                self.routed = forecast.routed(model, self.chosen, read, str(trace))
            self.layers = self.chosen.by_layer(model)
            self.others = forecast.others(model, machine)
            self.curve = forecast.others(model, machine, _CURVE)

    def print(self) -> None:
        plan, machine = self.chosen.plan, self.chosen.machine
        ring = plan.ring // plan.request
        known = [
            ("budget", human(self.chosen.budget)),
            ("the least", human(self.others[0].budget)),
            ("a token reads", human(plan.total + plan.chosen)),
            ("kept in memory", f"{human(plan.kept)} ({plan.kept / plan.total:.1%})"),
        ]
        if plan.streamed:
            known += [
                ("streamed", f"{human(plan.streamed)} a token"),
                ("reader", f"{machine.reader}: {READERS[machine.reader]}"),
                ("requests", f"at most {human(plan.request)}, {ring} ahead"),
            ]
        if plan.cache:
            known += [
                ("experts", f"{plan.n_experts}, {human(plan.experts)}, read on demand"),
                ("slots", f"for {plan.slots} of them, {human(plan.cache)}"),
                ("missed", f"{human(round(plan.missed))} a token, if it chooses all alike"),
            ]
        if self.routed:
            known += [
                ("found", f"{self.routed.hit_rate:.1%} of the experts that the trace chooses"),
                ("missed then", f"{human(round(self.routed.missed))} a token"),
                ("tokens a second", f"{self.routed.rate:.3g} at best"),
            ]
        known += [
            ("disk", _speed(machine.disk)),
            ("memory", _speed(machine.memory)),
            ("a token takes", f"{self.chosen.seconds:.3g} s at best ({_bound_by(self.chosen)})"),
        ]
        print_table(("", ""), known)
        print()
        print_table(
            ("layer", "kept", "streamed", "kept part"),
            [
                (printable(name), human(kept), human(streamed), f"{kept / (kept + streamed):.0%}")
                for name, kept, streamed in self.layers
            ],
            "Layers, experts apart" if plan.experts else "Layers",
        )
        print()
        print_table(
            ("budget", "kept", "streamed", "seconds a token", "tokens/s"),
            [
                (
                    human(other.budget),
                    f"{other.plan.kept / other.plan.total:.0%}",
                    human(other.plan.streamed),
                    f"{other.seconds:.3g}",
                    f"{other.rate:.3g}",
                )
                for other in self.others
            ],
            "Other budgets, from the least to one that holds all",
        )

    def report(self) -> dict[str, Any]:
        machine = self.chosen.machine
        return {
            "reader": machine.reader,
            "disk_bytes_per_second": round(machine.disk),
            "memory_bytes_per_second": round(machine.memory),
            "chosen": _row(self.chosen),
            "routed": asdict(self.routed) if self.routed else None,
            "layers": [
                {"name": name, "kept": kept, "streamed": streamed}
                for name, kept, streamed in self.layers
            ],
            "others": [_row(other) for other in self.others],
        }

    def draw(self, path: Path) -> None:
        gib = 1 << 30
        machine = self.chosen.machine
        picture = curves.draw(
            f"{os.path.basename(self.path)}: speed by memory budget",
            f"budget, GiB (disk {machine.disk / 1e9:.2f} GB/s)",
            "tokens a second at best",
            [
                curves.Curve("predicted", [(f.budget / gib, f.rate) for f in self.curve], False),
                curves.Curve("this budget", [(self.chosen.budget / gib, self.chosen.rate)]),
            ],
            [curves.Mark(self.others[-1].budget / gib, "all weights fit")],
        )
        write_file(path, drawing.png(picture))


def _row(f: Forecast) -> dict[str, Any]:
    return {
        "budget": f.budget,
        "kept": f.plan.kept,
        "streamed": f.plan.streamed,
        "ring": f.plan.ring,
        "experts": f.plan.experts,
        "expert_slots": f.plan.slots,
        "expert_cache": f.plan.cache,
        "seconds_per_token": f.seconds,
    }


def _speed(n_bytes: float) -> str:
    if not n_bytes:
        return "not measured: another process keeps the file in memory"
    return f"{n_bytes / 1e9:.2f} GB/s, measured"


def _bound_by(f: Forecast) -> str:
    return "the disk" if f.disk_seconds > f.compute_seconds else "memory"

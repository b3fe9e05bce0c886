"""Two implementations in turns: what others do on the machine hits both, and ratios are taken pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn; `bare_s` is those of the native products alone, None where there are none."""

    native_s: float
    hf_s: float
    bare_s: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the result: medians over turns, and of the ratio the quartiles as well."""

    name: str
    native_s: float
    hf_s: float
    bare_s: float | None
    speed: float
    speed_low: float
    speed_high: float

    @classmethod
    def of(cls, name: str, turns: Iterable[Turn]) -> Row:
        """The row of some turns, of which the first one only warms up."""
        _, *counted = turns
        speeds = sorted(turn.hf_s / turn.native_s for turn in counted)
        low, middle, high = statistics.quantiles(speeds * 2 if len(speeds) == 1 else speeds, n=4, method="inclusive")
        native, hf = (statistics.median(getattr(turn, side) for turn in counted) for side in ("native_s", "hf_s"))
        bare = [turn.bare_s for turn in counted if turn.bare_s is not None]
        return cls(name, native, hf, statistics.median(bare) if bare else None, middle, low, high)

    def line(self) -> str:
        """The row in words."""
        bare = "" if self.bare_s is None else f"   bare {self.bare_s:8.4f} s, native {self.native_s / self.bare_s:.2f}x"
        speed = f"{self.speed:5.2f}x ({self.speed_low:.2f} to {self.speed_high:.2f})"
        return f"{self.name:42} native {self.native_s:8.4f} s   hf {self.hf_s:8.4f} s   {speed}{bare}"


class Products(TorchFunctionMode):
    """Keeps every matrix product and attention call that is made, to make it again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note the calls that count and make every call."""
        kwargs = kwargs or {}
        if func in (functional.linear, functional.scaled_dot_product_attention):
            self.calls.append(partial(func, *args, **kwargs))
        return func(*args, **kwargs)


def products(work: Callable[[], object]) -> list[Callable[[], Any]]:
    """The products and attention calls of some work."""
    noted = Products()
    with noted:
        work()
    return noted.calls


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call: of the processor where there is one thread, which others cannot slow by much."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def again(calls: list[Callable[[], Any]], times: int = 1) -> None:
    """Make some calls again. Results are dropped at once: memory that is fresh each time would cost more."""
    for _ in range(times):
        for call in calls:
            call()


def take_turn(works: Mapping[str, Callable[[], object]], *, backwards: bool) -> dict[str, float]:
    """Seconds of each work, one after another; every other time backwards, so that none always comes first."""
    names = list(works)[::-1] if backwards else list(works)
    return {name: seconds(works[name]) for name in names}


def compare(name: str, native: Callable[[], object], hf: Callable[[], object], repeats: int) -> Row:
    """Both and the bare products in turns."""
    calls = products(native)
    works = {"native_s": native, "hf_s": hf} | ({"bare_s": partial(again, calls)} if calls else {})
    return Row.of(name, [Turn(**take_turn(works, backwards=turn % 2 == 1)) for turn in range(repeats + 1)])

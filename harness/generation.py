"""Stage `generation`: each subject goes on with a prompt, and every subject scores each continuation. Layer 3.

Nothing is compared token against token: engines that agree to 1e-8 nats part at the first tie, and from there on
their texts say nothing. So each different continuation goes to every subject twice, behind the prompt in one pass
(`prefill`) and token by token (`decode`), and `comparators/generation.py` compares the distributions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from harness.comparators import load_side
from harness.comparators.generation import Round
from harness.schema import Observation, Request

Ask = Callable[[str, Request], Future[Observation]]
"""Hand a subject a request."""


def play(request: Request, names: Sequence[str], ask: Ask) -> list[Round]:
    """Let every subject write, then every subject score what each wrote; equal continuations are scored once."""
    asked = request.case.continuation
    assert asked is not None

    def with_path(name: str, end: str, **fields: object) -> Future[Observation]:
        own = replace(request, arrays_path=f"{request.arrays_path}.{name}.{end}", **fields)  # type: ignore[arg-type]
        return ask(name, own)

    writing = {name: with_path(name, "written", generate=asked.tokens) for name in names}
    written = [load_side(future.result()) for future in writing.values()]
    rounds = [Round("write", (), (), tuple(written))]
    authors: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for side in written:
        if "continuation" in side.arrays and len(side.arrays["continuation"]):
            authors[tuple(side.arrays["continuation"].tolist())].append(side.name)
    scoring = [
        (way, tokens, [with_path(n, f"{k}.{way}", continuation=tokens, singly=way == "decode") for n in names])
        for k, tokens in enumerate(authors)
        for way in ("prefill", "decode")
    ]
    for way, tokens, futures in scoring:
        sides = tuple(load_side(future.result()) for future in futures)
        rounds.append(Round(way, tuple(authors[tokens]), tokens, sides))
    return rounds

"""A finished case as rows of the store's tables, and the per-position arrays of an example. Layer 2."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from harness.comparators import Comparison, Side
from harness.comparators.base import Array
from harness.comparators.estimators import measured
from harness.comparators.forecast import forecast
from harness.comparators.kl import Divergence
from harness.render import is_expanded
from harness.schema import ROLES, Case, Finding, Part, to_json
from harness.spec import is_exact_ratio, soft_tokens

Rows = dict[str, list[dict[str, Any]]]


def rows_of(
    case: Case, sides: Sequence[Side], comparison: Comparison, found: Sequence[Finding]
) -> tuple[Rows, dict[str, Any]]:
    """Rows by table, and arrays by name.

    These are `prompt_ids/SUBJECT`, `kl/LEFT/RIGHT` and `roles/LEFT/RIGHT` (indices into `ROLES`), and the first pair's
    roles as `roles`.
    """
    keys = {"case_id": case.id, "model": case.model}
    plain = [side for side in sides if not side.observation.probe and "logprobs" in side.arrays]
    own = {side.name: side.arrays["logprobs"] for side in plain}
    rows: Rows = {
        "cases": [keys | _case_row(case)],
        "images": [keys | row for row in _image_rows(case)],
        "audios": [keys | {"index": k} | dataclasses.asdict(audio) for k, audio in enumerate(case.audios)],
        "videos": [keys | row for row in _video_rows(case)],
        "observations": [keys | _observation_row(side) for side in sides],
        "verdicts": [keys | dataclasses.asdict(verdict) for verdict in comparison.verdicts],
        "divergences": [keys | row for row in _divergence_rows(comparison, own)],
        "forecasts": [keys | row for row in _forecast_rows(comparison, own)],
        "findings": [dataclasses.asdict(f) | {"subjects": json.dumps(f.subjects)} for f in found],
    }
    return rows, _arrays(sides, comparison)


def _case_row(case: Case) -> dict[str, Any]:
    texts = [part.text for part in case.parts if part.text]
    companion = case.probe.companion if case.probe else ()
    return {
        "form": case.form,
        "system": bool(case.system),
        "tool": bool(case.tool),
        "max_soft_tokens": case.max_soft_tokens,
        "images": len(case.images),
        "audios": len(case.audios),
        "videos": len(case.videos),
        "order": _order(case.parts),
        "expanded": is_expanded(case),
        "expanded_parts": sum(part.expanded for part in case.parts),
        "text_bytes": sum(len(text.encode()) for text in texts),
        "ascii": all(text.isascii() for text in texts),
        "special_tokens": any("<" in text for text in texts),
        "probe": case.probe.kind if case.probe else "",
        "probe_at": case.probe.at if case.probe else None,
        "companion": _order(companion),
        "dtype": case.dtype,
        "case": to_json(case),
    }


def _order(parts: Sequence[Part]) -> str:
    """Parts in prompt order, a letter each: t, i, a, v for text, image, recording, video."""
    return "".join((part.medium or "text")[0] for part in parts)


def _video_rows(case: Case) -> Iterator[dict[str, Any]]:
    for index, video in enumerate(case.videos):
        numbers = video.indices or ()
        row = dataclasses.asdict(video) | {"index": index, "given": bool(numbers)}
        yield row | {"indices": json.dumps(numbers), "last_index": numbers[-1] if numbers else video.frames - 1}


def _image_rows(case: Case) -> Iterator[dict[str, Any]]:
    for index, image in enumerate(case.images):
        answer = soft_tokens(image.width_px, image.height_px, case.max_soft_tokens)
        yield {
            "index": index,
            **dataclasses.asdict(image),
            "max_soft_tokens": case.max_soft_tokens,
            "reference": answer.reference,
            "contract": answer.contract,
            "exact_ratio": is_exact_ratio(image.width_px, image.height_px, case.max_soft_tokens),
        }


def _observation_row(side: Side) -> dict[str, Any]:
    row = dataclasses.asdict(side.observation)
    ids = side.arrays.get("prompt_ids")
    return row | {
        "counts": json.dumps(row["counts"]),
        "digests": json.dumps(row["digests"]),
        "tokens": None if ids is None else len(ids),
    }


LogProbs = Mapping[str, Array]
"""Subject -> its own log-probabilities of the prompt's tokens but the first, (T-1,)."""


def _scored(pair: tuple[str, str], positions: int, own: LogProbs) -> tuple[Array, Array] | None:
    """Both subjects' own log-probabilities of the same tokens, if both have one for each."""
    found = [own[name] for name in pair if name in own and len(own[name]) == positions - 1]
    return (found[0], found[1]) if len(found) == 2 else None


def _divergence_rows(comparison: Comparison, own: LogProbs) -> Iterator[dict[str, Any]]:
    """Rows by role. A token's log-probability has the role of the position before it, which predicts it."""
    for (left, right), divergence in comparison.divergences.items():
        roles = np.array(divergence.roles)
        scored = _scored((left, right), len(roles), own)
        for role in ("all", *ROLES):
            chosen = np.ones(len(roles), dtype=bool) if role == "all" else roles == role
            if chosen.any():
                row = {"left": left, "right": right, "role": role, **summary(divergence, chosen)}
                gen, train = (side[chosen[:-1]] for side in scored) if scored else (np.empty(0), np.empty(0))
                yield row | {"tokens": len(gen), **(measured(gen, train) if len(gen) else {})}


def _forecast_rows(comparison: Comparison, own: LogProbs) -> Iterator[dict[str, Any]]:
    for (left, right), divergence in comparison.divergences.items():
        if scored := _scored((left, right), len(divergence.roles), own):
            yield from ({"left": left, "right": right, **row} for row in forecast(*scored))


_PERCENTILES = {"p0_1": 0.1, "p1": 1, "p5": 5, "p10": 10, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99_9": 99.9}
"""Those that llama.cpp's perplexity tool prints of the KL of each position, interpolated as it does."""


def summary(divergence: Divergence, chosen: Any) -> dict[str, Any]:
    """Statistics of KL(left || right) over the chosen positions, in nats, under the names of docs/metrics.md.

    Percentile p is the value at place p (n - 1) of the sorted KLs, interpolated linearly, as llama.cpp's
    `tools/perplexity/perplexity.cpp` has its `99.9%` to `0.1%` KLD; `same_top1` is its `Same top p`, as a share of 1:
    the positions at which both rank the same token first. `top5_shared` is the share of left's five likeliest tokens
    that are among right's.
    """
    kl, js = divergence.kl_left_right[chosen], divergence.js[chosen]
    tops = divergence.top_left[chosen], divergence.top_right[chosen]
    return {
        "n": len(kl),
        "mean": kl.mean(),
        **dict(zip(_PERCENTILES, np.percentile(kl, list(_PERCENTILES.values())), strict=True)),
        "min": kl.min(),
        "max": kl.max(),
        "js_mean": js.mean(),
        "js_max": js.max(),
        "same_top1": divergence.same_top1[chosen].mean(),
        "reverse_mean": divergence.kl_right_left[chosen].mean(),
        "entropy_left": divergence.entropy_left[chosen].mean(),
        "entropy_right": divergence.entropy_right[chosen].mean(),
        "top5_shared": (tops[0][:, :, None] == tops[1][:, None, :]).any(axis=2).mean(),
    }


def _arrays(sides: Sequence[Side], comparison: Comparison) -> dict[str, Any]:
    arrays: dict[str, Any] = {f"kl/{a}/{b}": d.kl_left_right for (a, b), d in comparison.divergences.items()}
    for side in sides:
        if "prompt_ids" in side.arrays and not side.observation.probe:
            arrays[f"prompt_ids/{side.name}"] = side.arrays["prompt_ids"]
    for (left, right), divergence in comparison.divergences.items():
        roles = np.array([ROLES.index(role) for role in divergence.roles], dtype=np.int8)
        arrays[f"roles/{left}/{right}"] = roles
        arrays.setdefault("roles", roles)
    return arrays

"""A finished case as rows of the store's tables, and the per-position arrays of an example. Layer 2."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness.comparators import Comparison, Side
from harness.comparators.kl import Divergence
from harness.render import is_expanded
from harness.schema import ROLES, Case, Finding, Part, to_json
from harness.spec import is_exact_ratio, soft_tokens

Rows = dict[str, list[dict[str, Any]]]


def rows_of(
    case: Case, sides: Sequence[Side], comparison: Comparison, found: Sequence[Finding]
) -> tuple[Rows, dict[str, Any]]:
    """Rows by table, and arrays by name: `prompt_ids`, `roles` (indices into `ROLES`), `kl/LEFT/RIGHT`."""
    keys = {"case_id": case.id, "model": case.model}
    rows: Rows = {
        "cases": [keys | _case_row(case)],
        "images": [keys | row for row in _image_rows(case)],
        "audios": [keys | {"index": k} | dataclasses.asdict(audio) for k, audio in enumerate(case.audios)],
        "videos": [keys | row for row in _video_rows(case)],
        "observations": [keys | _observation_row(side) for side in sides],
        "verdicts": [keys | dataclasses.asdict(verdict) for verdict in comparison.verdicts],
        "divergences": [keys | row for row in _divergence_rows(comparison)],
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


def _divergence_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for (left, right), divergence in comparison.divergences.items():
        roles = np.array(divergence.roles)
        for role in ("all", *ROLES):
            chosen = np.ones(len(roles), dtype=bool) if role == "all" else roles == role
            if chosen.any():
                yield {"left": left, "right": right, "role": role, **summary(divergence, chosen)}


def summary(divergence: Divergence, chosen: Any) -> dict[str, Any]:
    """Statistics of KL(left || right) in nats over the chosen positions, with JS and the same-top-1 share."""
    kl, js = divergence.kl_left_right[chosen], divergence.js[chosen]
    p50, p99, p99_9 = np.percentile(kl, (50, 99, 99.9))
    return {
        "n": len(kl),
        "mean": kl.mean(),
        "p50": p50,
        "p99": p99,
        "p99_9": p99_9,
        "max": kl.max(),
        "js_mean": js.mean(),
        "js_max": js.max(),
        "same_top1": divergence.same_top1[chosen].mean(),
    }


def _arrays(sides: Sequence[Side], comparison: Comparison) -> dict[str, Any]:
    arrays: dict[str, Any] = {f"kl/{a}/{b}": d.kl_left_right for (a, b), d in comparison.divergences.items()}
    for side in sides:
        if "prompt_ids" in side.arrays and not side.observation.probe:
            arrays[f"prompt_ids/{side.name}"] = side.arrays["prompt_ids"]
    for divergence in comparison.divergences.values():
        arrays["roles"] = np.array([ROLES.index(role) for role in divergence.roles], dtype=np.int8)
    return arrays

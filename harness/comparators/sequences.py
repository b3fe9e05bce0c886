"""P10 and P11 within one subject: recordings and videos beside the integer rules of `harness.spec`.

Stage `counts`, unit soft tokens: predicted = placeholders = feature rows <= declared maximum, and for a recording the
rule's own number. Stage `frames`, unit frames: each video has a run of placeholders for every frame that is shown.
Stage `timestamps`, unit frames: the text in front of a frame ends in its time. Limits 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.comparators.base import Context, Side, absent, judge
from harness.schema import AudioSpec, Case, Property, Verdict
from harness.spec import (
    AUDIO_RATE_HZ,
    VIDEO_FRAMES,
    audio_tokens,
    placeholder_runs,
    shown_frames,
    timestamp,
    waveform_tokens,
)


def check_audio(case: Case, side: Side, context: Context) -> Iterator[Verdict]:
    """P11: one verdict at `counts` for a case with a recording; none without."""
    if not case.audios:
        return
    if side.observation.outcome != "ok":
        yield absent("P11", "counts", side)
        return
    expected = [_by_rule(spec, context) for spec in case.audios]
    runs = [length for _, length in placeholder_runs(side.arrays["prompt_ids"].tolist(), context.tokens, "audio")]
    counted = [count for count in side.observation.counts if count.medium == "audio"]
    rows = [count.feature_rows for count in counted]
    words = f"by the rule {expected}, placeholders {runs}, feature rows {rows}"
    # A recording without a soft token leaves no run; runs of adjacent recordings have their marks between them.
    placed = [n for n in expected if n] == runs and expected == rows == [count.predicted for count in counted]
    over = any(count.feature_rows > count.declared_max for count in counted)
    off = 0 if placed and not over else max(abs(sum(expected) - sum(runs)), abs(sum(expected) - sum(rows)), 1)
    yield judge("P11", "counts", (side.name, side.name), off, 0, "soft tokens", words)


def _by_rule(spec: AudioSpec, context: Context) -> int:
    samples = spec.samples * AUDIO_RATE_HZ // spec.rate_hz
    return waveform_tokens(samples) if context.unified else audio_tokens(samples)


def check_video(case: Case, side: Side, context: Context) -> Iterator[Verdict]:
    """P10: verdicts at `counts`, `frames` and `timestamps` for a case with a video; none without."""
    if not case.videos:
        return
    if side.observation.outcome != "ok":
        yield from (absent("P10", stage, side) for stage in ("counts", "frames", "timestamps"))
        return
    ids, pair = side.arrays["prompt_ids"].tolist(), (side.name, side.name)
    runs = placeholder_runs(ids, context.tokens, "video")
    counted = [count for count in side.observation.counts if count.medium == "video"]
    rows, predicted = (sum(getattr(count, key) for count in counted) for key in ("feature_rows", "predicted"))
    placed = sum(length for _, length in runs)
    words = f"predicted {predicted}, placeholders {placed}, feature rows {rows}"
    over = sum(max(0, count.feature_rows - count.declared_max) for count in counted)
    yield _soft_tokens(pair, max(abs(predicted - placed), abs(rows - placed), over), words)
    if any(video.indices is None and video.frames < VIDEO_FRAMES for video in case.videos):
        reason = (
            f"a whole video of fewer than {VIDEO_FRAMES} frames: the reference refuses it, so nothing says its frames"
        )
        yield from (Verdict("P10", stage, *pair, "not comparable", reason=reason) for stage in ("frames", "timestamps"))
        return
    shown = [shown_frames(video.frames, video.indices) for video in case.videos]
    expected = [timestamp(k, video.fps) for video, taken in zip(case.videos, shown, strict=True) for k in taken]
    words = f"{len(expected)} frames shown, {len(runs)} runs of placeholders"
    yield judge("P10", "frames", pair, abs(len(expected) - len(runs)), 0, "frames", words)
    found = [_text_before(ids, start, context) for start, _ in runs]
    wrong = [(want, got) for want, got in zip(expected, found, strict=False) if not got.endswith(want)]
    words = f"first wrong: expected {wrong[0][0]}, found {wrong[0][1][-8:]!r}" if wrong else ""
    yield judge("P10", "timestamps", pair, len(wrong), 0, "frames", words)


def _soft_tokens(pair: tuple[str, str], off: int, words: str) -> Verdict:
    prop: Property = "P10"
    return judge(prop, "counts", pair, off, 0, "soft tokens", words)


def _text_before(ids: Sequence[int], start: int, context: Context) -> str:
    """The text in front of a run of placeholders and the mark that opens it."""
    return context.read(ids[max(0, start - 13) : start - 1]).strip()

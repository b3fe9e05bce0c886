"""Known deviations: findings with a written cause, so that CI stays green and tells when one goes away. Layer 2.

Each is one file in cases/deviations/. A deviation explains a finding only if everything that it names fits: the
signature, the model, the subject's version, the device, and what the case contains. Signatures name a subject or an
engine: what is known of an engine at a release is known of every subject that runs it.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import TypeAdapter, ValidationError

from harness.checkpoint import Feature
from harness.comparators.suspects import UNDECIDED
from harness.errors import UserError
from harness.schema import PROBES, Case, Finding, VerdictKind
from harness.spec import AUDIO_MAX_SAMPLES, AUDIO_RATE_HZ, is_exact_ratio, soft_tokens

DIRECTORY = Path(__file__).resolve().parent.parent / "cases" / "deviations"

Trait = Literal[
    "image", "audio", "video", "visual", "media", "expanded", "mixed", "alpha", "oriented", "exact-ratio",
    "rounding-sensitive", "short-audio", "long-audio", "other-rate", "whole-video",
]  # fmt: skip

Ran = Mapping[str, Mapping[str, str]]
"""Subject -> what it was: its `engine`, and its packages' versions."""

_SHORT_SAMPLES = 128
"""A recording that transformers pads to one multiple of this has no frame for its second convolution."""


@dataclass(frozen=True)
class Deviation:
    """One known cause. `versions` maps package names to version ranges; `models` and `signatures` are glob patterns.

    `has` are features of the checkpoint, whatever it is called, and `requires` traits of the case; `models` is for a
    cause that is of one file.

    `always` says that it shows in every case that it applies to, so that its absence means that it went away.
    """

    signatures: tuple[str, ...]
    cause: str
    link: str
    always: bool = True
    models: tuple[str, ...] = ("*",)
    has: tuple[Feature, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    device: str = "*"
    requires: tuple[Trait, ...] = ()
    name: str = ""
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def explains(self, finding: Finding, case: Case, ran: Ran, device: str, features: Collection[Feature]) -> bool:
        """Whether this is the known cause of a finding of those subjects on that device.

        The versions of the suspect count, which may be every subject of an engine; of an undecided finding, those of
        any subject.
        """
        return any(
            any(fnmatchcase(signature, pattern) for pattern in self.signatures)
            and any(
                self.applies(case, versions, device, features) for versions in ([ran[name] for name in blamed] or [{}])
            )
            for signature, blamed in _readings(finding, ran)
        )

    def tried(
        self, case: Case, judged: Collection[Judged], ran: Ran, device: str, features: Collection[Feature]
    ) -> bool:
        """Whether a case was judged in which the cause would have shown.

        A subject that a signature names, in the versions named, was compared at what the signature is about. One that
        could not load, or had nobody beside it, was not.
        """
        engines = {subject: ran.get(subject, {}).get("engine", subject) for _, _, subject in judged}
        places: defaultdict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        for prop, stage, subject in judged:
            places[prop, stage].add((subject, engines[subject]))
        return any(
            self.applies(_as_judged(case, place[1]), ran.get(subject, {}), device, features)
            for place, subjects in places.items()
            for subject in _suspects(self.signatures, *place, frozenset(subjects))
        )

    def applies(self, case: Case, versions: Mapping[str, str], device: str, features: Collection[Feature]) -> bool:
        """Whether the cause would show in this case of a model with those features, in those versions, there."""
        return (
            set(self.has) <= {*features}
            and any(fnmatchcase(Path(case.model).name, pattern) for pattern in self.models)
            and all(
                p in versions and SpecifierSet(spec).contains(versions[p], prereleases=True)
                for p, spec in self.versions.items()
            )
            and fnmatchcase(device, self.device)
            and set(self.requires) <= traits(case)
            and any(_probe(signature) in ("", case.probe and case.probe.kind) for signature in self.signatures)
        )


def _readings(finding: Finding, ran: Ran) -> Iterator[tuple[str, list[str]]]:
    """The signatures that a finding may go by, of subjects and of engines, each with the subjects that it accuses.

    Where two differ and nobody is singled out, either may be the one: what is known of one explains it.
    """
    differing = [name for name in finding.subjects if name in ran]

    def called(who: str) -> list[str]:
        """A name is a subject's, or that of an engine of which every subject is meant."""
        return [name for name in differing if who in (name, ran[name]["engine"])]

    readings = [(finding.signature, called(finding.suspect) or differing)]
    prop, stage, who, *rest = finding.signature.split("/", 3)
    if finding.suspect == UNDECIDED and who.count("+") == 1:
        readings += [("/".join((prop, stage, name, *rest)), called(name)) for name in who.split("+")]
    for signature, accused in readings:
        yield signature, accused
        yield by_engine(signature, ran), accused


Judged = tuple[str, str, str]
"""A property, a stage and a subject of which something was said: it agreed there, or it differed."""


DIFFERING: tuple[VerdictKind, ...] = ("differ",)


def judged_in(
    verdicts: Iterable[Mapping[str, Any]], kinds: Collection[VerdictKind] = ("agree", "differ")
) -> frozenset[Judged]:
    """What a case's verdicts, as rows, say something about; of some kinds of them."""
    judged = (row for row in verdicts if row["verdict"] in kinds)
    return frozenset((row["property"], row["stage"], row[side]) for row in judged for side in ("left", "right"))


@cache
def _suspects(signatures: tuple[str, ...], prop: str, stage: str, judged: frozenset[tuple[str, str]]) -> frozenset[str]:
    """Of those judged, as (subject, engine), the ones that a signature about that property and stage names.

    All that it names must be among them: that two of three agree says nothing of how all three differ. What a signature
    calls `outcome.KIND` is called `KIND` when all is well, and `visibility.too_much` is `visibility`.
    """
    found: set[str] = set()
    for signature in signatures:
        known, place, who = signature.split("/", 3)[:3]
        base = place.removeprefix("outcome.") if place.startswith("outcome.") else place.partition(".")[0]
        about = fnmatchcase(prop, known) and (fnmatchcase(stage, place) or fnmatchcase(stage, base))
        named = [{pair[0] for pair in judged if any(fnmatchcase(n, part) for n in pair)} for part in who.split("+")]
        if about and all(named):
            found.update(*named)
    return frozenset(found)


def _as_judged(case: Case, stage: str) -> Case:
    """The case as a stage is about it: without its probe, and that one's companion, where it is of the plain run."""
    return case if {*stage.split(".")} & PROBES.keys() else replace(case, probe=None)


def _probe(signature: str) -> str:
    """The kind of probe that a signature is about, which its stage ends in; empty for a plain run."""
    last = signature.split("/")[1].rpartition(".")[2]
    return last if last in PROBES else ""


def traits(case: Case) -> set[Trait]:
    """What a deviation may require of a case; a batch companion counts as part of it."""
    parts = (*case.parts, *(case.probe.companion if case.probe else ()))
    media = [part for part in parts if part.medium]
    images = [part.image for part in parts if part.image]
    audios = [part.audio for part in parts if part.audio]
    videos = [part.video for part in parts if part.video]
    sizes = [(image.width_px, image.height_px, case.max_soft_tokens) for image in images]
    holds: dict[Trait, bool] = {
        "image": bool(images),
        "audio": bool(audios),
        "video": bool(videos),
        "visual": bool(images or videos),
        "media": bool(media),
        "expanded": any(part.expanded for part in media) or (case.probe is not None and case.probe.kind == "expanded"),
        "mixed": len({part.expanded for part in media}) > 1,
        "alpha": any(image.mode in ("RGBA", "LA") for image in images),
        "oriented": any(image.orientation != 1 for image in images),
        "exact-ratio": any(is_exact_ratio(*size) for size in sizes),
        "rounding-sensitive": any(soft_tokens(*size).rounding_sensitive for size in sizes),
        "short-audio": any(audio.samples <= _SHORT_SAMPLES for audio in audios),
        "long-audio": any(audio.samples > AUDIO_MAX_SAMPLES for audio in audios),
        "other-rate": any(audio.rate_hz != AUDIO_RATE_HZ for audio in audios),
        "whole-video": any(video.indices is None for video in videos),
    }
    return {trait for trait, held in holds.items() if held}


def by_engine(signature: str, ran: Ran) -> str:
    """A signature with the names of subjects replaced by those of their engines, each once."""
    prop, stage, who, *rest = signature.split("/", 3)
    engines = dict.fromkeys(ran[name]["engine"] if name in ran else name for name in who.split("+"))
    return "/".join((prop, stage, "+".join(engines), *rest))


def load_deviations(directory: Path = DIRECTORY) -> list[Deviation]:
    """Every deviation of a directory, by file name.

    Raises:
        UserError: a file that is no deviation; the message names it and the offending field.
    """
    return [_load(path) for path in sorted(directory.glob("*.toml"))]


def _load(path: Path) -> Deviation:
    try:
        deviation = TypeAdapter(Deviation).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
        for spec in deviation.versions.values():
            SpecifierSet(spec)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError, InvalidSpecifier) as error:
        raise UserError(f"{path} is no valid deviation: {error}") from error
    return replace(deviation, name=path.stem)


def explain(
    finding: Finding, case: Case, known: Sequence[Deviation], ran: Ran, device: str, features: Collection[Feature]
) -> Finding:
    """The finding with the name of the first deviation that explains it, if one does."""
    fits = (deviation.name for deviation in known if deviation.explains(finding, case, ran, device, features))
    return replace(finding, deviation=next(fits, ""))

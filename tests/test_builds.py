"""Environments of subjects: built once by the real uv, locked, verified, removed; a failed build gives uv's reason."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from harness.builds import _arguments, _local, directory, held, is_built, prune, ready
from harness.environments import Recipe, Subject
from harness.errors import EngineUnavailable
from harness.pool import Worker

ROOT = Path(__file__).parent.parent
FAKE = "tests.fake_engine:FakeEngine"
SMALL = Subject("small", FAKE, env={"PYTHONPATH": str(ROOT)}, recipe=Recipe(("toolz==1.0.0",)))


def _toolz(python: str) -> str:
    """What an interpreter says of the package that was asked for, and of one that only the harness has."""
    code = "import toolz, importlib.util as u; print(toolz.__version__, u.find_spec('pydantic'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(name="envs", scope="module")
def _envs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with one environment, which two threads have asked for at once."""
    root, told = tmp_path_factory.mktemp("envs"), list[str]()
    threads = [threading.Thread(target=ready, args=(SMALL, told.append, root)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(line.endswith(": built") for line in told) == 1, told
    return root


def test_an_environment_has_its_packages_alone(envs: Path) -> None:
    """Its interpreter is not ours, has the package in the version that was asked for, and nothing of the harness's."""
    subject = ready(SMALL, root=envs)
    assert subject.python != sys.executable
    assert _toolz(subject.python) == "1.0.0 None"


def test_what_is_there_is_not_built_again(envs: Path) -> None:
    """The second time nothing is said and nothing runs."""
    told: list[str] = []
    ready(SMALL, told.append, envs)
    assert (told, is_built(SMALL, envs)) == ([], True)


def test_a_worker_needs_nothing_but_numpy_and_safetensors(envs: Path, tmp_path: Path) -> None:
    """A worker starts, loads and answers in an environment that has neither torch nor pydantic nor the harness."""
    worker = Worker(ready(SMALL, root=envs), tmp_path / "log", threads=1, timeout_s=30.0)
    try:
        worker.start()
        assert worker.versions == {"fake": "0"}
        with pytest.raises(EngineUnavailable, match="no such layer"):
            worker.load(tmp_path / "refuses", dtype="float32", device="cpu")
    finally:
        worker.close()


def test_what_a_killed_builder_left_is_built_anew(tmp_path: Path) -> None:
    """A directory without the mark of a finished build is none."""
    place = directory(SMALL, tmp_path)
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").touch()
    assert not is_built(SMALL, tmp_path)
    assert _toolz(ready(SMALL, root=tmp_path).python).startswith("1.0.0")


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        (Subject("none", FAKE, recipe=Recipe(("toolz==999.0",))), r"subject none cannot be built here.*toolz==999.0"),
        (Subject("empty", "vllm", recipe=Recipe(("toolz==1.0.0",))), "importing .*No module named 'vllm'"),
        (Subject("old", FAKE, recipe=Recipe(python="3.2")), "making an environment.*3.2"),
    ],
    ids=["no such release", "without the engine", "no such Python"],
)
def test_a_failed_build_gives_its_reason(subject: Subject, reason: str, tmp_path: Path) -> None:
    """What uv or the import said last is in the message, and the environment does not count as built."""
    with pytest.raises(EngineUnavailable, match=reason):
        ready(subject, root=tmp_path)
    assert not is_built(subject, tmp_path)


def test_prune_leaves_what_is_in_use(tmp_path: Path) -> None:
    """An environment goes only if no process works in it; what a process holds stays until it lets go."""
    with held(ready(SMALL, root=tmp_path)):
        assert prune(tmp_path) == []
        assert is_built(SMALL, tmp_path)
    assert prune(tmp_path) == [directory(SMALL, tmp_path)]
    assert prune(tmp_path) == []
    assert not is_built(SMALL, tmp_path)


def test_a_worker_holds_its_environment(envs: Path, tmp_path: Path) -> None:
    """As long as a worker's process lives, nobody can lock its environment for removal, and afterwards anybody can."""
    lock = directory(SMALL, envs).with_suffix(".lock")
    worker = Worker(ready(SMALL, root=envs), tmp_path / "log", threads=1, timeout_s=30.0)
    worker.start()
    with lock.open("a") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        worker.end()
        worker.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _wheel(path: Path, answer: int) -> None:
    """A wheel of one module that says a number."""
    info = "mine-1.0.dist-info"
    files = {
        "mine.py": f"ANSWER = {answer}\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


def _answer(subject: Subject, root: Path) -> str:
    command = [ready(subject, root=root).python, "-c", "import mine; print(mine.ANSWER)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("line", ["mine @ file://{}", "{}", "./mine-1.0-py3-none-any.whl"])
def test_a_wheel_that_is_built_again_is_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Another file at the same path is another environment; the same bytes, written anew, are the same one."""
    monkeypatch.chdir(tmp_path)
    wheel = tmp_path / "mine-1.0-py3-none-any.whl"
    subject = Subject("mine", FAKE, recipe=Recipe((line.format(wheel),)))
    _wheel(wheel, 1)
    first, kept = directory(subject, tmp_path), wheel.read_bytes()
    _wheel(wheel, 2)
    second = directory(subject, tmp_path)
    wheel.write_bytes(kept)
    assert (directory(subject, tmp_path), first != second) == (first, True)
    if line == "./mine-1.0-py3-none-any.whl":  # One installation of each is enough: uv reads all three alike.
        assert _answer(subject, tmp_path) == "1"
        _wheel(wheel, 2)
        assert _answer(subject, tmp_path) == "2"


def test_an_editable_checkout_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is edited in a checkout that a recipe names by `-e` counts at once, with no environment built again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "mine"\nversion = "1"\n[tool.hatch.build.targets.wheel]\ninclude = ["mine.py"]\n'
    )
    subject = Subject("mine", FAKE, recipe=Recipe(("-e ./mine",)))
    for answer in ("1", "2"):
        (tmp_path / "mine" / "mine.py").write_text(f"ANSWER = {answer}\n")
        assert _answer(subject, tmp_path) == answer
    assert len(list(tmp_path.glob("*.lock"))) == 1


@pytest.mark.parametrize("line", ["file:///some/my.whl", "/some/my.whl", "my @ file:///some/my.whl"])
def test_a_local_file_is_known_however_a_recipe_writes_it(line: str) -> None:
    """Its content counts, and uv is given its path, whether it is an address, a path or a named requirement."""
    assert _local(line) == Path("/some/my.whl")
    assert _arguments([line]) in (["/some/my.whl"], ["my @ file:///some/my.whl"])

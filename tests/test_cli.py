"""The command as a user meets it: wrong use is one clear line, and a small run of real engines goes end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import cli, session
from harness.options import listed_models
from harness.store import runs
from harness.zoo import FEATURE_NAMES, NAMES

CAPSULE = "cases/regressions/vllm-drops-a-feature-row.json"
Completed = subprocess.CompletedProcess[str]
Call = Callable[..., Completed]


def harness(*arguments: str) -> Completed:
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(name="call")
def _call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command in this process: what is refused is refused before an engine starts, so no other is needed."""

    def call(*arguments: str) -> Completed:
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Completed(arguments, int(ended.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture(name="no_checkpoint")
def _no_checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "no-checkpoint"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--subjects", "hf,tgi"], "unknown subject tgi; known: hf, vllm, native"),
        (["run", "--models", "tiny-e9b"], "tiny-e9b is neither a zoo model nor a directory"),
        (["run", "--models", ","], "--models ',' names nothing"),
        (["run", "--profile", "huge"], "--profile huge: must be one of smoke, ci, nightly"),
        (["run", "--properties", "P99"], "--properties P99: must be one of P1"),
        (["run", "--dtype", "int8"], "--dtype int8: must be one of float32"),
        (["run", "--resume", "never"], "no run never in"),
        (["run", "--resume", "never", "--seed", "3"], "leave out --seed"),
        (["replay", "nowhere.json"], "cannot read capsule nowhere.json"),
        (["replay", "abcdefabcdef"], "no case abcdefabcdef"),
        (["shrink", "nowhere.json"], "cannot read capsule nowhere.json"),
        (["explain", "abcdefabcdef"], "no case abcdefabcdef"),
        (["export", "abcdefabcdef", "--script"], "no case abcdefabcdef"),
        (["export", "abcdefabcdef"], "either --script or --issue"),
        (["report"], "no run in"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(tmp_path: Path, arguments: list[str], words: str, call: Call) -> None:
    """A bad value is named, the fix is said, and nothing is written."""
    store = tmp_path / "store"
    result = call(*arguments, "--store", str(store))
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--profile", "foo", "--cases", "5"], "--profile foo: must be one of smoke, ci, nightly"),
        (["run", "--subjects", ","], "--subjects ',' names nothing"),
        (["run", "--timeout-s", "inf"], "--timeout-s inf: give a number of seconds"),
        (["run", "--json", "no-such-directory/out.json"], "--json no-such-directory/out.json: cannot be written"),
        (["run", "--json", "."], "--json .: is a directory"),
        (["nightly", "--add", ","], "--add ',' names nothing"),
        (["nightly", "--models", "tiny-e9b"], "tiny-e9b is neither a zoo model nor a directory"),
        (["nightly", "--models", ","], "--models ',' names nothing"),
        (["nightly", "--subjects", ","], "--subjects ',' names nothing"),
        (["nightly", "--summary", "no-such-directory/a.md"], "--summary no-such-directory/a.md: cannot be written"),
        (["nightly", "--junit", "."], "--junit .: is a directory"),
        (["sweep", "--budget", ","], "--budget ',' names nothing"),
        (["sweep", "--budget", "71"], "--budget 71: must be one of 70, 140"),
        (["sweep", "--subjects", ","], "--subjects ',' names nothing"),
        (["sweep", "--json", "no-such-directory/a.json"], "--json no-such-directory/a.json: cannot be written"),
        (["zoo", "verify", "--models", ","], "--models ',' names nothing"),
        (["zoo", "verify", "--subjects", ","], "--subjects ',' names nothing"),
        (["doctor", "--subjects", ","], "--subjects ',' names nothing"),
        (["doctor", "--subjects", "hf", "--prune"], "leave out --subjects"),
        (["replay", "nowhere.json", "--subjects", ","], "--subjects ',' names nothing"),
        (["run", "--timeout-s", "1e300"], "--timeout-s 1e+300: give a number of seconds, at most 1,000,000"),
        (["nightly", "--history", "README.md"], "--history README.md: README.md is no directory"),
        (["nightly", "--out", "README.md/site"], "README.md is no directory; give another place"),
        (["sweep", "--out", "README.md"], "--out README.md: README.md is no directory"),
        (["shrink", CAPSULE, "--timeout-s", "inf"], "--timeout-s inf: give a number of seconds"),
        (["shrink", CAPSULE, "--out", "README.md"], "--out README.md: README.md is no directory"),
        (["explain", CAPSULE, "--out", "."], "--out .: is a directory"),
        (["zoo", "verify", "--models", "tiny-31b,tiny-e9b"], "tiny-e9b is neither a zoo model nor a directory"),
    ],
)
def test_wrong_input_of_each_command_is_one_line_and_status_2(arguments: list[str], words: str, call: Call) -> None:
    """Every command names the bad value and the fix, before any long work."""
    result = call(*arguments)
    assert (result.returncode, len(result.stderr.strip().splitlines())) == (2, 1), result.stderr
    assert words in result.stderr


def test_nightly_knows_the_groups_of_models_that_run_knows() -> None:
    """`variants` and `all` are groups of the zoo in every command, beside other names too."""
    assert listed_models("--models", "variants") == NAMES
    assert listed_models("--models", "all") == (*NAMES, *FEATURE_NAMES)
    assert listed_models("--models", "here,variants,tiny-e2b") == ("here", *NAMES)


def test_a_doctor_of_a_subject_that_cannot_start_has_status_3(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subject that was asked for by name and whose process ends at once is a failure, and the reason is printed."""
    monkeypatch.chdir(tmp_path)
    Path("subjects.toml").write_text('[broken]\nengine = "no_such_module:Engine"\n')
    result = call("doctor", "--subjects", "broken")
    assert result.returncode == 3
    assert "no_such_module" in result.stdout


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path, no_checkpoint: Path, call: Call) -> None:
    """A directory without a Gemma 4 config.json is named before any engine starts."""
    result = call("run", "--models", str(no_checkpoint), "--store", str(tmp_path / "store"))
    assert (result.returncode, (tmp_path / "store").exists()) == (2, False)
    assert "is no checkpoint: cannot read its config.json" in result.stderr


def test_a_foreign_checkpoint_is_refused(tmp_path: Path, no_checkpoint: Path, call: Call) -> None:
    """Another model's checkpoint is named by its model_type."""
    (no_checkpoint / "config.json").write_text('{"model_type": "llama"}')
    result = call("run", "--models", str(no_checkpoint), "--store", str(tmp_path / "store"))
    assert result.returncode == 2
    assert "model_type is 'llama'" in result.stderr


@pytest.mark.parametrize("lacking", ["processor_config.json", "tokenizer.json"])
def test_what_no_engine_could_load_is_refused_at_once(tmp_path: Path, call: Call, lacking: str) -> None:
    """A file that every engine reads is missing: one line that names it, before anything starts or is written."""
    whole = session.locate("tiny-31b")
    for path in whole.iterdir():
        if path.name != lacking:
            (tmp_path / path.name).symlink_to(path.resolve())
    result = call("run", "--models", str(tmp_path), "--store", str(tmp_path / "store"))
    assert (result.returncode, (tmp_path / "store").exists()) == (2, False)
    assert f"{lacking} missing" in result.stderr


def test_a_text_only_export_is_refused_at_once(no_checkpoint: Path, call: Call) -> None:
    """It is named by what was found and what was wanted."""
    (no_checkpoint / "config.json").write_text('{"model_type": "gemma4_text"}')
    result = call("run", "--models", str(no_checkpoint))
    assert result.returncode == 2
    assert "found gemma4_text, wanted gemma4 or gemma4_unified" in result.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_kv_shared_layers", 10),
        ("num_kv_shared_layers", "5"),
        ("layer_types", ["full_attention"]),
        ("layer_types", 7),
        ("sliding_window", 2.5),
        ("final_logit_softcapping", "30"),
        ("text_config", None),
        ("image_token_id", "<|image|>"),
    ],
)
def test_a_config_that_contradicts_itself_is_one_line(tmp_path: Path, field: str, value: object, call: Call) -> None:
    """What cannot be in a config.json is named in one line, before any engine starts."""
    for path in session.locate("tiny-e2b").iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    config = json.loads((tmp_path / "config.json").read_text())
    (config if field in config else config["text_config"])[field] = value
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = call("run", "--models", str(tmp_path), "--store", str(tmp_path / "store"))
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "contradicts itself" in line
    assert field in line


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path, call: Call) -> None:
    """A store below a file cannot exist: one line, status 2."""
    (tmp_path / "file").write_text("in the way")
    result = call("run", "--cases", "1", "--models", "tiny-e2b", "--store", str(tmp_path / "file" / "store"))
    assert result.returncode == 2
    assert "cannot write to the store" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_corrupted_capsule_is_refused(tmp_path: Path, call: Call) -> None:
    """A capsule that is no JSON is one line and status 2."""
    (tmp_path / "bad.json").write_text("{")
    result = call("replay", str(tmp_path / "bad.json"))
    assert result.returncode == 2
    assert "is no valid capsule" in result.stderr


def test_help_teaches(call: Call) -> None:
    """Every command says what it does, and the exit status is explained."""
    result = call("--help")
    assert result.returncode == 0
    for word in ("run", "replay", "shrink", "explain", "export", "report", "doctor", "zoo", "Exit status"):
        assert word in result.stdout


@pytest.fixture(name="ran", scope="module")
def _ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Completed, dict[str, Any], Path]:
    store = tmp_path_factory.mktemp("store")
    options = ["--models", "tiny-31b", "--cases", "6", "--no-deviations", "--json", "-"]
    result = harness("run", *options, "--store", str(store))
    return result, json.loads(result.stdout), store


@pytest.mark.engines
def test_json_to_standard_output_is_alone_there(
    ran: tuple[Completed, dict[str, Any], Path],
) -> None:
    """`--json -` prints one document, with every field that design.md names, and nothing else."""
    result, written, _ = ran
    assert result.stdout.strip().startswith("{")
    fields = {"schema", "run_id", "cases", "subjects", "verdicts", "findings", "timing"}
    assert fields <= written.keys()
    assert {"wall_s", "startup_s", "engine_s", "compare_s", "overhead_ratio"} <= written["timing"].keys()
    assert {name: entry["status"] for name, entry in written["subjects"].items()} == dict.fromkeys(
        ("hf", "vllm", "native"), "ok"
    )


@pytest.mark.engines
def test_the_missing_mask_of_vllm_on_cpu_is_found(
    ran: tuple[Completed, dict[str, Any], Path],
) -> None:
    """Without deviations the run fails, and P6 has one signature: vllm, in cases with an image only."""
    result, written, store = ran
    assert result.returncode == 1
    (finding,) = [entry for entry in written["findings"] if entry["property"] == "P6"]
    assert (finding["signature"], finding["suspect"]) == ("P6/hidden/vllm", "vllm")
    rows = runs(store)[0].frame("findings")
    without_image = {case.id for case in runs(store)[0].cases() if not case.images}
    assert without_image
    assert not without_image & set(rows[rows["property"] == "P6"]["case_id"])


@pytest.mark.engines
def test_a_finding_is_replayed_by_its_command(
    ran: tuple[Completed, dict[str, Any], Path],
) -> None:
    """The command that a finding prints runs its capsule again and says FAILED."""
    _, written, _ = ran
    finding = next(entry for entry in written["findings"] if entry["property"] == "P6")
    result = harness(*finding["replay"].split()[3:])
    assert result.returncode == 1
    assert result.stdout.startswith("FAILED")


@pytest.mark.engines
def test_the_page_of_a_run_is_written_again(ran: tuple[Completed, dict[str, Any], Path], tmp_path: Path) -> None:
    """`harness report` prints the path of the page that it wrote."""
    result = harness("report", "--store", str(ran[2]), "--out", str(tmp_path / "site"))
    assert result.returncode == 0
    assert Path(result.stdout.strip()) == tmp_path / "site" / "index.html"
    assert (tmp_path / "site" / "index.html").stat().st_size > 1000

"""Whether a checkpoint that did not arrive whole is noticed, by content and by the engines themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.checkpoint import tensors
from harness.doctor import verify
from harness.engines.audit import audit_tensors
from harness.session import locate

DROPPED = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.fixture(name="whole")
def _whole() -> dict[str, torch.Tensor]:
    return dict(tensors(locate("tiny-12b")))


def test_renamed_fused_and_upcast_tensors_are_found_again(whole: dict[str, torch.Tensor]) -> None:
    """A model may rename, stack and upcast what it loads: rows stay rows."""
    model = {f"renamed.{name}": tensor.float() for name, tensor in whole.items()}
    layer = "renamed.model.language_model.layers.0.mlp"
    fused = [model.pop(f"{layer}.{part}_proj.weight") for part in ("gate", "up")]
    model["fused"] = torch.cat(fused)
    report = audit_tensors(model, locate("tiny-12b"))
    assert (report.unused, report.reinitialised) == ((), ())


def test_a_tensor_that_did_not_arrive_is_named(whole: dict[str, torch.Tensor]) -> None:
    """A tensor of the file that is nowhere in the model is `unused`."""
    del whole[DROPPED]
    assert audit_tensors(whole, locate("tiny-12b")).unused == (DROPPED,)


def test_a_single_changed_value_is_noticed(whole: dict[str, torch.Tensor]) -> None:
    """One value that the file does not have makes the tensor re-initialised, and the file's own one unused."""
    whole[DROPPED][3, 5] += 1
    report = audit_tensors(whole, locate("tiny-12b"))
    assert report.reinitialised == (DROPPED,)
    assert report.unused == (DROPPED,)


def test_rows_whose_signs_differ_are_told_apart(whole: dict[str, torch.Tensor]) -> None:
    """Two turned signs in a row, the highest bits of its numbers, do not cancel in its digest."""
    whole[DROPPED][3, 5:7] *= -1
    assert audit_tensors(whole, locate("tiny-12b")).reinitialised == (DROPPED,)


def test_the_audit_keeps_no_copy_of_the_model(tmp_path: Path) -> None:
    """Beside a model of 100 MB in long rows the audit never takes a quarter of it, nor does the changed copy."""
    name, checkpoint = "model.language_model.embed_tokens.weight", tmp_path / "large"
    checkpoint.mkdir()
    tensor = torch.randn(25_000, 2_000, dtype=torch.bfloat16)
    save_file({name: tensor}, checkpoint / "model.safetensors")
    del tensor
    code = f"""
import resource, torch
from pathlib import Path
from harness.checkpoint import tensors
from harness.engines.audit import audit_tensors
from harness.engines.inputs import with_changed_tensor
model = {{name: tensor.clone() for name, tensor in tensors(Path({str(checkpoint)!r}))}}
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
assert audit_tensors(model, Path({str(checkpoint)!r})).unused == ()
Path({str(tmp_path / "changed")!r}).mkdir()
with_changed_tensor(Path({str(checkpoint)!r}), 0, Path({str(tmp_path / "changed")!r}))
print((peak() - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 25_000_000 + 25_000_000


@pytest.mark.engines
def test_no_engine_takes_an_incomplete_checkpoint_for_sound(whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A missing tensor is named: by hf and native themselves, and by content in vLLM, which starts without it."""
    shutil.copytree(locate("tiny-12b"), tmp_path / "incomplete")
    del whole[DROPPED]
    save_file(whole, tmp_path / "incomplete" / "model.safetensors", metadata={"format": "pt"})
    verified = verify([str(tmp_path / "incomplete")], ["hf", "vllm", "native"])
    assert [entry.sound for entry in verified] == [False, False, False]
    named = [f"{entry.reason}{entry.report.missing}{entry.report.reinitialised}" for entry in verified]
    assert all("up_proj" in names for names in named)

"""The native model against the reference, against itself in float64, and against what it must not be."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import harness.native
from harness.native import Gemma4, Recorder
from harness.native import model as native_model
from harness.native.config import FULL, SLIDING, read_config
from harness.native.masks import Spans, causal, image_blocks, layer_spans, sliding
from harness.zoo import ensure
from tests.side_by_side import (
    TOWERS,
    VARIANTS,
    ZOO,
    Rivals,
    Sample,
    hf_inputs,
    hf_logits,
    kl_nats,
    load_native,
    load_rivals,
    prepare,
    relative_error,
)

KL_LIMIT_NATS = 1e-6
FEATURE_LIMIT = 1e-5
LONG = "<bos>Text that is longer than the window of every tiny checkpoint, said more than once. " * 3


def random_images(*sizes_px: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Images of the given (height, width), always the same."""
    rng = np.random.default_rng(7)
    return tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes_px)


TEXT = Sample(LONG)
IMAGE = Sample("<bos>before <|image|> and after", random_images((200, 300)))
ADJACENT = Sample("<|image|><|image|>x<|image|>", random_images((64, 64), (100, 50), (30, 400)))


@pytest.fixture(name="rivals", scope="module", params=VARIANTS)
def _rivals(request: pytest.FixtureRequest) -> Rivals:
    return load_rivals(request.param)


def run(model: Gemma4, sample: Sample) -> Tensor:
    """Native logits (T, V) of a sample."""
    return model.logits(model.forward(prepare(model, sample)))


def test_hidden_states_agree_with_the_reference(rivals: Rivals) -> None:
    """Final hidden states are what the reference feeds to its output head."""
    inputs = hf_inputs(rivals.processor, TEXT)
    with torch.no_grad():
        theirs = rivals.theirs.model(**inputs).last_hidden_state[0]
    assert relative_error(theirs, rivals.ours.forward(prepare(rivals.ours, TEXT))) <= FEATURE_LIMIT


@pytest.mark.parametrize("rivals", TOWERS, indirect=True)
def test_per_layer_embeddings_agree_with_the_reference(rivals: Rivals) -> None:
    """The tables of the small models agree in scale too, which the norm after them hides from the logits."""
    ids = prepare(rivals.ours, TEXT).token_ids
    ours, theirs = rivals.ours.network.decoder, rivals.theirs.model.language_model
    assert ours.token_tables is not None
    with torch.no_grad():
        embedded = theirs.embed_tokens(ids[None])
        expected = theirs.project_per_layer_inputs(embedded, theirs.get_per_layer_inputs(ids[None], embedded))
        assert relative_error(expected[0], ours.token_tables(ids, ours.embed(ids))) <= FEATURE_LIMIT


@pytest.mark.parametrize(("dtype", "limit_nats"), [(torch.bfloat16, 0.03), (torch.float16, 1e-3)])
def test_half_precision_is_close_at_most_positions(rivals: Rivals, dtype: torch.dtype, limit_nats: float) -> None:
    """Half precision is finite and near float32 in the median; rounding may change a token's experts."""
    rounded = run(load_native(rivals.name, dtype), IMAGE)
    assert rounded.dtype == dtype
    assert rounded.isfinite().all()
    assert KL_LIMIT_NATS < kl_nats(run(rivals.ours, IMAGE), rounded).median() < limit_nats


def test_a_dropped_layer_scalar_is_seen(rivals: Rivals) -> None:
    """Negative control: one layer that is not scaled changes distributions far beyond the tolerance."""
    right = run(rivals.ours, IMAGE)
    scalar = rivals.ours.network.decoder.get_buffer("layers.0.scalar")
    kept = scalar.clone()
    scalar.fill_(1.0)
    wrong = run(rivals.ours, IMAGE)
    scalar.copy_(kept)
    assert kl_nats(right, wrong).max() > 1e3 * KL_LIMIT_NATS
    assert torch.equal(run(rivals.ours, IMAGE), right)


def test_a_flipped_vision_mask_is_seen(rivals: Rivals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: opening or closing image blocks changes distributions far beyond the tolerance."""
    right = run(rivals.ours, IMAGE)
    monkeypatch.setattr(
        native_model,
        "layer_spans",
        lambda types, window, *, vision_blocks, past: layer_spans(types, window, vision_blocks=not vision_blocks),
    )
    assert kl_nats(right, run(rivals.ours, IMAGE)).max() > 1e3 * KL_LIMIT_NATS


def opened_everywhere(types: Tensor, window: int, *, vision_blocks: bool, past: int) -> dict[str, Spans]:
    """Not the rule: image blocks in full layers too, and outside the window in sliding layers."""
    assert vision_blocks
    assert past == 0
    block, position = image_blocks(types), torch.arange(len(types))
    same = [position[block == number] if number else position[at : at + 1] for at, number in enumerate(block.tolist())]
    starts, ends = (torch.stack([run[edge] for run in same]) for edge in (0, -1))
    plain = layer_spans(types, window, vision_blocks=False)
    return {kind: Spans(span.first.minimum(starts), span.last.maximum(ends)) for kind, span in plain.items()}


@pytest.mark.parametrize("rivals", ["tiny-12b"], indirect=True)
def test_the_reference_opens_image_blocks_everywhere_in_the_12b(
    rivals: Rivals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference's 12B opens image blocks in all layers, past the window too; if it stops, delete this."""
    theirs = hf_logits(rivals, hf_inputs(rivals.processor, IMAGE))
    assert kl_nats(theirs, run(rivals.ours, IMAGE)).max() > 1e3 * KL_LIMIT_NATS
    monkeypatch.setattr(native_model, "layer_spans", opened_everywhere)
    assert kl_nats(theirs, run(rivals.ours, IMAGE)).max() <= KL_LIMIT_NATS


MASK_TYPES = torch.tensor([0, 0, 1, 1, 1, 1, 0, 1, 1, 0])
MASK_BY_HAND = """
x.........
xx........
xxxxxx....
.xxxxx....
..xxxx....
...xxx....
....xxx...
.....xxxx.
......xxx.
.......xxx
"""


def test_mask_rule_by_hand() -> None:
    """Images at 2-5 and 7-8, window 3: a block sees ahead to its end, back no further than the window."""
    mask = sliding(MASK_TYPES, 3, vision_blocks=True).visible(range(10))
    assert "\n".join("".join(".x"[seen] for seen in row) for row in mask.tolist()) == MASK_BY_HAND.strip()
    assert image_blocks(MASK_TYPES).tolist() == [0, 0, 1, 1, 1, 1, 0, 2, 2, 0]


def test_full_layers_and_small_models_are_causal() -> None:
    """Image blocks open in sliding layers only, and only where the checkpoint asks for it."""
    keys, square = range(10), torch.ones(10, 10, dtype=torch.bool).tril()
    assert torch.equal(causal(10).visible(keys), square)
    assert torch.equal(layer_spans(MASK_TYPES, 3, vision_blocks=True)[FULL].visible(keys), square)
    assert torch.equal(layer_spans(MASK_TYPES, 3, vision_blocks=False)[SLIDING].visible(keys), square.triu(-2))


def test_tap_sees_every_stage(rivals: Rivals) -> None:
    """A tap is shown pixels, positions, image rows, merged embeddings, each layer and the final states."""
    tap = Recorder()
    prepared = prepare(rivals.ours, ADJACENT)
    hidden = rivals.ours.forward(prepared, tap=tap)
    layers = [f"layer.{index}" for index in range(len(rivals.ours.config.text.layers))]
    features = [f"mm_features.{number}" for number in range(3)]
    inputs = [f"{stage}.{number}" for number in range(3) for stage in ("pixels", "positions")]
    assert list(tap.tensors) == [*inputs, *features, "merged_embeddings", *layers, "hidden"]
    soft = prepared.media_types == 1
    assert torch.equal(tap.tensors["merged_embeddings"][soft], torch.cat([tap.tensors[name] for name in features]))
    assert torch.equal(tap.tensors["hidden"], hidden)
    assert [image.soft_tokens for image in prepared.images] == [len(tap.tensors[name]) for name in features]


def test_every_published_tensor_is_known(rivals: Rivals) -> None:
    """Nothing is unexpected; what is not used is audio, or keys and values of layers that share them."""
    report = rivals.ours.report
    assert report.missing == report.unexpected == ()
    others = [name for name in report.unused if "audio" not in name]
    shared = [layer.index for layer in rivals.ours.config.text.layers if layer.donor is not None]
    assert {int(name.split(".")[3]) for name in others} == set(shared)


def checkpoint_copy(name: str, target: Path) -> tuple[Path, dict[str, Tensor]]:
    """A copy of a checkpoint that may be changed, and its tensors."""
    shutil.copytree(ensure(name, ZOO), target)
    return target, load_file(target / "model.safetensors")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    """A checkpoint without one tensor does not load; the error names it."""
    path, tensors = checkpoint_copy("tiny-31b", tmp_path / "copy")
    del tensors["model.language_model.layers.2.self_attn.q_norm.weight"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors are missing.*layers\.2\.self_attn\.q_norm\.weight"):
        Gemma4.load(path, dtype=torch.float32)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    """A tensor that does not fit config.json is an error with its name and both shapes."""
    path, tensors = checkpoint_copy("tiny-31b", tmp_path / "copy")
    tensors["model.language_model.norm.weight"] = torch.ones(7, dtype=torch.bfloat16)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.language_model\.norm\.weight: \(7,\) .*config\.json"):
        Gemma4.load(path, dtype=torch.float32)


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    """Two shards and an index give the logits of a single file, and a tensor nobody knows is reported."""
    path, tensors = checkpoint_copy("tiny-31b", tmp_path / "copy")
    (path / "model.safetensors").unlink()
    tensors["model.surprise"] = torch.zeros(1)
    files = {name: f"model-{number % 2 + 1:05}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}), encoding="utf-8")
    whole, sharded = (Gemma4.load(p, dtype=torch.float32) for p in (ensure("tiny-31b", ZOO), path))
    assert sharded.report.unexpected == ("model.surprise",)
    assert torch.equal(run(whole, IMAGE), run(sharded, IMAGE))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("text_config", "hidden_size", None),
        ("text_config", "layer_types", []),
        ("vision_config", "standardize", 1),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, section: str, field: str, value: object) -> None:
    """A field of the wrong type in config.json is an error with its path and what was found."""
    path, _ = checkpoint_copy("tiny-31b", tmp_path / "copy")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config[section][field] = value
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"config\.json\.{section}\.{field}: expected .* found"):
        read_config(path)


def test_wrong_arguments_of_load_are_refused(tmp_path: Path) -> None:
    """An unsupported dtype and a directory that is no checkpoint are errors that say what to give instead."""
    with pytest.raises(ValueError, match=r"torch\.int8 is not supported; use one of torch\.float64"):
        Gemma4.load(tmp_path, dtype=torch.int8)
    with pytest.raises(FileNotFoundError, match=r"config\.json: not found; give the directory of a checkpoint"):
        Gemma4.load(tmp_path, dtype=torch.float32)


def imported_modules(source: Path) -> set[str]:
    """Top-level names that a file imports; a relative import that leaves the package counts as `harness`."""
    found = set[str]()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level != 1:
            found.add("harness" if node.level else (node.module or "").split(".")[0])
    return found


def test_native_is_an_island(tmp_path: Path) -> None:
    """The package imports the standard library, five numeric and file packages, and nothing else."""
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "safetensors", "tokenizers", "PIL"}
    files = sorted(Path(harness.native.__file__).parent.rglob("*.py"))
    assert len(files) > 5
    assert {file.name: imported_modules(file) - allowed for file in files} == {file.name: set() for file in files}
    foreign = tmp_path / "foreign.py"
    foreign.write_text(
        "from ..schema import Case\nimport transformers.models\nfrom .text import Decoder\n", encoding="utf-8"
    )
    assert imported_modules(foreign) == {"harness", "transformers"}

"""The zoo keeps its promises: published layout, tiny and distinct sizes, the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from harness import zoo
from harness.errors import UserError
from harness.zoo import catalog, tokenizer, variants
from harness.zoo.tensors import Tensor, tensors
from harness.zoo.values import RULES, value

PINNED_VALUES = [2.4375, 2.0625, 2.578125, 2.234375]
NAMES = pytest.mark.parametrize("name", zoo.NAMES)


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    for name in zoo.NAMES:
        zoo.build(name, root)
    return root


def _hashes(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


def _tiny(name: str) -> Any:
    return variants.config(name)


@NAMES
def test_two_builds_are_equal_to_the_byte(name: str, root: Path, tmp_path: Path) -> None:
    """Every file of a checkpoint has the same bytes in two builds."""
    assert _hashes(zoo.build(name, tmp_path)) == _hashes(root / name)


def test_values_do_not_change_between_machines() -> None:
    """The value stream is pinned: a changed bit generator or rounding shows here, not in a campaign."""
    drawn = value("pinned", Tensor("language_model.norm.weight", (4,)))
    assert drawn.tolist() == PINNED_VALUES


def test_a_tensor_keeps_its_values_when_another_is_added() -> None:
    """Values depend on checkpoint and tensor name only, and differ between tensors and between checkpoints."""
    first, second = Tensor("a.norm.weight", (8,)), Tensor("b.norm.weight", (8,))
    assert value("x", first).equal(value("x", first))
    assert not value("x", first).equal(value("x", second))
    assert not value("x", first).equal(value("y", first))


def test_the_recipe_is_that_of_the_running_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe digest covers the value code as imported, so an edit under a running process mislabels no build."""
    before = zoo.recipe_digest("tiny-e2b")
    monkeypatch.setattr(zoo, "_VALUES_SOURCE", "edited")
    assert zoo.recipe_digest("tiny-e2b") != before


# Sizes that share a number in every published model, and so here; all others must differ within a checkpoint.
def _sizes(name: str) -> Iterator[tuple[str, int]]:
    config = _tiny(name)
    text, vision, audio = config["text_config"], config["vision_config"], config["audio_config"]
    for key in ("hidden_size", "intermediate_size", "vocab_size", "head_dim", "global_head_dim", "num_attention_heads"):
        yield key, text[key]
    for key in ("hidden_size_per_layer_input", "moe_intermediate_size", "num_experts", "num_global_key_value_heads"):
        if text.get(key):
            yield key, text[key]
    yield "num_key_value_heads", text["num_key_value_heads"]
    yield "sliding_window", text["sliding_window"]
    for key in (
        "hidden_size",
        "intermediate_size",
        "head_dim",
        "position_embedding_size",
        "mm_embed_dim",
        "mm_posemb_size",
    ):
        if key in vision:
            yield f"vision {key}", vision[key]
    if audio is not None:
        yield "audio hidden_size", audio["hidden_size"]
    if audio is not None and "subsampling_conv_channels" in audio:
        yield "audio output_proj_dims", audio["output_proj_dims"]
        yield "audio channels 0", audio["subsampling_conv_channels"][0]
        yield "audio channels 1", audio["subsampling_conv_channels"][1]
        yield "audio head size", audio["hidden_size"] // audio["num_attention_heads"]


@NAMES
def test_sizes_are_pairwise_distinct(name: str) -> None:
    """No two sizes of a checkpoint are equal, so that no swapped pair of dimensions can pass."""
    seen: dict[int, str] = {}
    for label, size in _sizes(name):
        assert size not in seen, f"{label}={size}, but should differ from {seen[size]} [{name}]"
        seen[size] = label


def _text(hidden: int, intermediate: int, pattern: tuple[int, int], heads: int, kv_heads: int) -> dict[str, Any]:
    """Text sizes that every variant has; `pattern` is (sliding layers before a full one, repeats)."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "pattern": pattern,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


# What distinguishes the published variants: enough to give every tensor shape.
_TOWER_SMALL = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "head_dim": 64}
_TOWER_LARGE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "head_dim": 72}
_CONFORMER = {"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8, "output_proj_dims": 1536,
              "subsampling_conv_channels": [128, 32]}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "tiny-e2b": {
        "text": _text(1536, 6144, (4, 7), 8, 1) | {"num_kv_shared_layers": 20, "hidden_size_per_layer_input": 256},
        "vision": _TOWER_SMALL | {"heads": 12}, "audio": _CONFORMER, "tensors": 2011, "parameters": 5_123_178_979,
    },
    "tiny-e4b": {
        "text": _text(2560, 10240, (5, 7), 8, 2) | {"num_kv_shared_layers": 18, "hidden_size_per_layer_input": 256},
        "vision": _TOWER_SMALL | {"heads": 12}, "audio": _CONFORMER, "tensors": 2130,
    },
    "tiny-26b-a4b": {
        "text": _text(2816, 2112, (5, 5), 16, 8)
        | {"num_global_key_value_heads": 2, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704},
        "vision": _TOWER_LARGE | {"heads": 16}, "tensors": 1013,
    },
    "tiny-31b": {
        "text": _text(5376, 21504, (5, 10), 32, 16) | {"num_global_key_value_heads": 4},
        "vision": _TOWER_LARGE | {"heads": 16}, "tensors": 1188, "parameters": 31_273_088_876,
    },
    "tiny-12b": {
        "text": _text(3840, 15360, (5, 8), 16, 8) | {"num_global_key_value_heads": 1},
        "vision": {"mm_embed_dim": 3840, "output_proj_dims": 3840}, "tensors": 677,
    },
}  # fmt: skip
_PUBLISHED_VOCAB = {"vocab_size": 262144, "vocab_size_per_layer_input": 262144, "head_dim": 256, "global_head_dim": 512}


def _published(name: str) -> Any:
    config, sizes = _tiny(name), PUBLISHED[name]
    text = dict(sizes["text"])
    sliding, repeats = text.pop("pattern")
    types = (["sliding_attention"] * sliding + ["full_attention"]) * repeats
    config["text_config"] |= _PUBLISHED_VOCAB | text | {"layer_types": types, "num_hidden_layers": len(types)}
    vision = dict(sizes["vision"])
    if heads := vision.pop("heads", None):
        vision |= {"num_attention_heads": heads, "num_key_value_heads": heads, "position_embedding_size": 10240}
    config["vision_config"] |= vision
    if config["audio_config"] is not None:
        config["audio_config"] |= sizes.get("audio", {})
    return config


@NAMES
def test_published_sizes_give_the_published_counts(name: str) -> None:
    """With the published sizes the table has the published number of tensors, and of parameters where it is known."""
    table = tensors(_published(name))
    assert len(table) == PUBLISHED[name]["tensors"]
    if "parameters" in PUBLISHED[name]:
        assert sum(tensor.parameters for tensor in table) == PUBLISHED[name]["parameters"]


def test_the_26b_vision_part_has_the_published_356_tensors() -> None:
    """Tower and projector of the published 26B-A4B have 356 tensors together."""
    names = [tensor.name for tensor in tensors(_published("tiny-26b-a4b"))]
    assert sum("vision" in name for name in names) == 356


@NAMES
def test_the_file_holds_the_table_in_bfloat16(name: str, root: Path) -> None:
    """model.safetensors holds exactly the table's tensors: bfloat16, finite, no norm or scalar at its identity."""
    with safe_open(root / name / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == [tensor.name for tensor in tensors(_tiny(name))]
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = file.get_tensor(key)
            assert str(tensor.dtype) == "torch.bfloat16", key
            assert bool(tensor.isfinite().all()), key
            assert not bool((tensor == 1).all()), key
            assert not bool((tensor == 0).all()), key


def test_the_large_shape_is_that_of_e2b() -> None:
    """With 35 layers it has E2B's tensors and parameters; with 10, half of the layers share keys and values."""
    described = zoo.describe(zoo.large_name(35))
    assert (described["tensors"], described["parameters"]) == (2011, 5_123_178_979)
    small = catalog.config(zoo.large_name(10))["text_config"]
    assert (small["num_hidden_layers"], small["num_kv_shared_layers"], small["vocab_size"]) == (10, 5, 262_144)
    with pytest.raises(UserError, match="--layers 7"):
        zoo.large_name(7)


def test_weights_are_written_as_their_own_library_writes_them(root: Path, tmp_path: Path) -> None:
    """The file that is written piece by piece has the bytes that safetensors gives the same tensors."""
    source = root / "tiny-e2b" / "model.safetensors"
    save_file(load_file(source), tmp_path / "again", metadata={"format": "pt"})
    assert source.read_bytes() == (tmp_path / "again").read_bytes()


@NAMES
def test_checkpoints_stay_small(name: str, root: Path) -> None:
    """A checkpoint is below 10 MB, vision position table included."""
    assert (root / name / "model.safetensors").stat().st_size < 10_000_000


def test_every_value_rule_is_needed() -> None:
    """Each value rule decides at least one tensor of the zoo: no rule is shadowed by an earlier one."""
    every = [tensor.name for name in zoo.NAMES for tensor in tensors(_tiny(name))]
    deciding = {next(rule.pattern for rule in RULES if re.search(rule.pattern, name)) for name in every}
    assert deciding == {rule.pattern for rule in RULES}


_CLIPPED = [f"self_attn.{letter}_proj" for letter in "qkv"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]


@pytest.mark.parametrize("name", ["tiny-e2b", "tiny-e4b"])
def test_clip_bounds_are_shared_where_published_files_share_them(name: str, root: Path) -> None:
    """Linears that read the same input have the same clip bounds; others have their own."""
    assert _tiny(name)["vision_config"]["use_clipped_linears"]
    stem = "model.vision_tower.encoder.layers.0"
    with safe_open(root / name / "model.safetensors", framework="pt") as file:
        bounds = {part: float(file.get_tensor(f"{stem}.{part}.input_max")) for part in _CLIPPED}
    assert bounds["self_attn.k_proj"] == bounds["self_attn.v_proj"]
    assert bounds["mlp.gate_proj"] == bounds["mlp.up_proj"]
    assert len(set(bounds.values())) > 2


# Key sets as published; text keys differ in one field between the families.
_TEXT_KEYS = {
    "attention_bias",
    "attention_dropout",
    "attention_k_eq_v",
    "bos_token_id",
    "dtype",
    "enable_moe_block",
    "eos_token_id",
    "expert_intermediate_size",
    "final_logit_softcapping",
    "global_head_dim",
    "head_dim",
    "hidden_activation",
    "hidden_size",
    "hidden_size_per_layer_input",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "moe_intermediate_size",
    "num_attention_heads",
    "num_experts",
    "num_global_key_value_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_kv_shared_layers",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
    "top_k_experts",
    "use_bidirectional_attention",
    "use_cache",
    "use_double_wide_mlp",
    "vocab_size",
    "vocab_size_per_layer_input",
}
_TOP_KEYS = {
    "architectures",
    "audio_config",
    "audio_token_id",
    "boa_token_id",
    "boi_token_id",
    "dtype",
    "eoa_token_id",
    "eoa_token_index",
    "eoi_token_id",
    "eos_token_id",
    "image_token_id",
    "initializer_range",
    "model_type",
    "text_config",
    "tie_word_embeddings",
    "transformers_version",
    "video_token_id",
    "vision_config",
    "vision_soft_tokens_per_image",
}
_ABSENT_TEXT = {"tiny-26b-a4b": {"expert_intermediate_size"}, "tiny-12b": {"expert_intermediate_size", "dtype"}}
_ABSENT_TOP = {"tiny-12b": {"eoa_token_id", "vision_soft_tokens_per_image"}}


@NAMES
def test_config_has_exactly_the_published_keys(name: str, root: Path) -> None:
    """config.json has the published keys at top level and in text_config, no more and no fewer."""
    config = json.loads((root / name / "config.json").read_text())
    assert set(config) == _TOP_KEYS - _ABSENT_TOP.get(name, set())
    assert set(config["text_config"]) == _TEXT_KEYS - _ABSENT_TEXT.get(name, set())


@NAMES
def test_fields_that_only_an_engine_reads_are_kept(name: str, root: Path) -> None:
    """The soft-token fields of the vision config, which some readers do not declare, have their published values."""
    vision = json.loads((root / name / "config.json").read_text())["vision_config"]
    if name == "tiny-12b":
        assert (vision["num_soft_tokens"], vision["model_patch_size"], vision["mm_posemb_size"]) == (280, 48, 1120)
    else:
        assert vision["default_output_length"] == 280
        assert vision["rope_parameters"] == {"rope_theta": 100.0, "rope_type": "default"}
        assert vision["head_dim"] % 4 == 0
        assert vision["position_embedding_size"] >= 1120 * 3


@NAMES
def test_kv_sharing_leaves_a_donor_of_each_kind(name: str) -> None:
    """Layers that share keys and values include a sliding and a full one, and one of each kind stands before them."""
    text = _tiny(name)["text_config"]
    assert text["layer_types"][-1] == "full_attention"
    if first := text["num_kv_shared_layers"] and text["num_hidden_layers"] - text["num_kv_shared_layers"]:
        assert (
            set(text["layer_types"][:first])
            == set(text["layer_types"][first:])
            == {"sliding_attention", "full_attention"}
        )


@NAMES
def test_configured_token_ids_name_the_tokens(name: str, root: Path) -> None:
    """Every id in config.json is the id of that token in tokenizer.json, inside the vocabulary."""
    config = json.loads((root / name / "config.json").read_text())
    tokens = Tokenizer.from_file(str(root / name / "tokenizer.json"))
    expected = {
        "boi": "<|image>",
        "eoi": "<image|>",
        "image": "<|image|>",
        "video": "<|video|>",
        "boa": "<|audio>",
        "audio": "<|audio|>",
    }
    assert {key: config[f"{key}_token_id"] for key in expected} == {
        key: tokens.token_to_id(tok) for key, tok in expected.items()
    }
    assert config["eoa_token_index"] == tokens.token_to_id("<audio|>")
    assert tokens.get_vocab_size() == config["text_config"]["vocab_size"]


def test_special_tokens_stand_in_the_published_order() -> None:
    """Ids rise in the published order of the special tokens; the first five have the published ids."""
    order = [
        *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|tool>", "<|think|>", "<|channel>", "<|turn>", "<turn|>"),
        *("\n", "<0x00>", "<0xFF>", "<|image>", "<|audio>"),
        *("<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>"),
    ]
    ids = [tokenizer.TOKEN_IDS[token] for token in order]
    assert ids[:5] == [0, 1, 2, 3, 4]
    assert ids == sorted(ids)


@pytest.fixture(name="tokens", scope="module")
def _tokens() -> Tokenizer:
    return Tokenizer.from_str(tokenizer.tokenizer_json())


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_characters=tokenizer.SPACE, exclude_categories=["Cs"])))
def test_any_text_survives_a_round_trip(tokens: Tokenizer, text: str) -> None:
    """Text without U+2581 decodes to itself, through bytes where no piece fits, and never through <unk>."""
    ids = tokens.encode(text).ids
    assert tokenizer.TOKEN_IDS["<unk>"] not in ids
    assert tokens.decode(ids, skip_special_tokens=False) == text


def test_encoding_merges_pieces_and_falls_back_to_bytes(tokens: Tokenizer) -> None:
    """Words become pieces, a special token one id, an unknown character its UTF-8 bytes; nothing is added."""
    assert tokens.encode(" the<|image|>é").tokens == ["▁the", "<|image|>", "<0xC3>", "<0xA9>"]


@NAMES
def test_only_large_models_open_with_an_empty_thought(name: str, root: Path) -> None:
    """The chat template has no leftover of its own parameters, and the empty thought of the large models only."""
    template = (root / name / "chat_template.jinja").read_text()
    assert "MEDIA_GAP" not in template
    assert "EMPTY_THOUGHT" not in template
    assert ("<|channel>thought" in template) == (name in {"tiny-26b-a4b", "tiny-31b", "tiny-12b"})


def _build_e2b(root: Path) -> str:
    return str(zoo.build("tiny-e2b", root, force=True))


def test_builds_at_the_same_time_do_not_disturb_each_other(root: Path, tmp_path: Path) -> None:
    """Four forced builds in four processes all end with the complete checkpoint, and leave nothing beside it."""
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        built = list(pool.map(_build_e2b, [tmp_path] * 4))
    assert set(built) == {str(tmp_path / "tiny-e2b")}
    assert _hashes(tmp_path / "tiny-e2b") == _hashes(root / "tiny-e2b")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny-e2b"]


def test_a_build_is_reused_until_the_recipe_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ensure` leaves a current checkpoint alone and rebuilds it when its recipe is another."""
    target = zoo.ensure("tiny-12b", tmp_path)
    before = (target / "config.json").stat().st_mtime_ns
    assert zoo.ensure("tiny-12b", tmp_path) == target
    assert (target / "config.json").stat().st_mtime_ns == before
    monkeypatch.setitem(variants.CONFIGS["tiny-12b"]["text_config"], "sliding_window", 50)
    zoo.ensure("tiny-12b", tmp_path)
    assert json.loads((target / "config.json").read_text())["text_config"]["sliding_window"] == 50
    assert (target / zoo.RECIPE_FILE).read_text().strip() == zoo.recipe_digest("tiny-12b")


def test_a_half_written_checkpoint_is_built_again(tmp_path: Path) -> None:
    """A directory without a recorded recipe counts as absent."""
    (tmp_path / "tiny-12b").mkdir()
    (tmp_path / "tiny-12b" / "config.json").write_text("{}")
    assert (zoo.build("tiny-12b", tmp_path) / "model.safetensors").is_file()


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    """An unknown checkpoint is a ValueError that shows the name and all known names, and nothing is written."""
    with pytest.raises(ValueError, match=r"tiny-e3b.*tiny-e2b.*tiny-12b"):
        zoo.build("tiny-e3b", tmp_path)
    assert not list(tmp_path.iterdir())


@NAMES
def test_describe_matches_the_files(name: str, root: Path) -> None:
    """`describe` gives the number of tensors and the bytes of weights that the file really has."""
    facts = zoo.describe(name)
    header_length = int.from_bytes((root / name / "model.safetensors").read_bytes()[:8], "little")
    assert facts["weights_bytes"] == (root / name / "model.safetensors").stat().st_size - 8 - header_length
    assert facts["layers"] == len(_tiny(name)["text_config"]["layer_types"])

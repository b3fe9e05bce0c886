"""A 576-entry tokenizer with the published structure: byte-fallback BPE, special tokens in the published order.

The published vocabulary has 262,144 entries: pad, eos, bos, unk and mask, the turn and tool markers, newlines, 256 byte
tokens, pieces, and the media placeholders behind nearly everything else. The tiny one keeps that order. Any text
without U+2581 survives a round trip, because a character that is no piece is written as its UTF-8 bytes; U+2581 itself
comes back as a space, there as here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA_DIR = Path(__file__).parent / "data"
SPACE = "\u2581"

CONTROL_TOKENS = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>",
    "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
    "<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>",
)  # fmt: skip
MEDIA_OPENERS = ("<|image>", "<|audio>")
MEDIA_TOKENS = ("<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>")
NEWLINES = ("\n", "\n\n")
# Rows between and behind the media tokens: the published ids are neither adjacent to one another nor last in the table.
UNUSED_BETWEEN, UNUSED_BEHIND = 4, 3
# A multiple of 64, as the published size is, so that no engine has to pad its embedding table.
VOCAB_SIZE = 576


def _merges() -> list[list[str]]:
    lines = (DATA_DIR / "merges.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(" ") for line in lines] + [["\n", "\n"]]


def _pieces() -> list[str]:
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    characters = [SPACE] + [chr(code) for code in range(ord("!"), ord("~") + 1)]
    return [*bytes_, *characters, *("".join(pair) for pair in _merges()[:-1])]


def _entries() -> list[str]:
    between = [f"<unused{index}>" for index in range(UNUSED_BETWEEN)]
    behind = [f"<unused{UNUSED_BETWEEN + index}>" for index in range(UNUSED_BEHIND)]
    entries = [*CONTROL_TOKENS, *NEWLINES, *_pieces(), *MEDIA_OPENERS, *between, *MEDIA_TOKENS, *behind]
    if len(entries) != VOCAB_SIZE:
        raise ValueError(
            f"the vocabulary has {len(entries)} entries: change UNUSED_BETWEEN or merges.txt to make it {VOCAB_SIZE}"
        )
    return entries


TOKEN_IDS: dict[str, int] = {entry: index for index, entry in enumerate(_entries())}


def _special(token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": TOKEN_IDS[token], "content": token} | flags


def tokenizer_json() -> str:
    """Text of `tokenizer.json`; no post-processor, because the chat template writes `<bos>` itself."""
    to_spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>",
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
        "byte_fallback": True, "ignore_merges": False, "vocab": TOKEN_IDS, "merges": _merges(),
    }  # fmt: skip
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(token) for token in (*CONTROL_TOKENS, *MEDIA_OPENERS, *MEDIA_TOKENS)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [to_spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": model,
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def tokenizer_config(processor_class: str) -> dict[str, Any]:
    """Content of `tokenizer_config.json` with the published keys."""
    return {
        "audio_token": "<|audio|>",
        "backend": "tokenizers",
        "boa_token": "<|audio>",
        "boi_token": "<|image>",
        "bos_token": "<bos>",
        "eoa_token": "<audio|>",
        "eoc_token": "<channel|>",
        "eoi_token": "<image|>",
        "eos_token": "<eos>",
        "eot_token": "<turn|>",
        "escape_token": '<|"|>',
        "etc_token": "<tool_call|>",
        "etd_token": "<tool|>",
        "etr_token": "<tool_response|>",
        "extra_special_tokens": ["<|video|>"],
        "image_token": "<|image|>",
        "mask_token": "<mask>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": processor_class,
        "soc_token": "<|channel>",
        "sot_token": "<|turn>",
        "stc_token": "<|tool_call>",
        "std_token": "<|tool>",
        "str_token": "<|tool_response>",
        "think_token": "<|think|>",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }

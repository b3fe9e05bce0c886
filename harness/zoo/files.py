"""The small text files of a published checkpoint: processor, generation and chat template."""

from __future__ import annotations

import json
from typing import Any

from harness.zoo.catalog import config
from harness.zoo.tokenizer import DATA_DIR, TOKEN_IDS, tokenizer_config, tokenizer_json

_AUDIO_TOKENS: dict[str, Any] = {
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}
_MEL: dict[str, Any] = _AUDIO_TOKENS | {
    "dither": 0.0,
    "feature_extractor_type": "Gemma4AudioFeatureExtractor",
    "feature_size": 128,
    "fft_length": 512,
    "fft_overdrive": False,
    "frame_length": 320,
    "hop_length": 160,
    "input_scale_factor": 1.0,
    "max_frequency": 8000.0,
    "mel_floor": 0.001,
    "min_frequency": 0.0,
    "per_bin_mean": None,
    "per_bin_stddev": None,
    "preemphasis": 0.0,
    "preemphasis_htk_flavor": True,
}
_WAVEFORM: dict[str, Any] = _AUDIO_TOKENS | {
    "audio_samples_per_token": 640,
    "feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor",
    "feature_size": 640,
}
_PIXELS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
# do_normalize differs between image and video as published; with mean 0 and standard deviation 1 both do nothing.
_IMAGE: dict[str, Any] = _PIXELS | {"do_normalize": False, "max_soft_tokens": 280}
_VIDEO: dict[str, Any] = _PIXELS | {
    "do_normalize": True,
    "do_sample_frames": True,
    "max_soft_tokens": 70,
    "num_frames": 32,
    "return_metadata": False,
}


def _is_unified(name: str) -> bool:
    return bool(config(name)["model_type"] == "gemma4_unified")


def _is_large(name: str) -> bool:
    return bool(config(name)["text_config"]["attention_k_eq_v"])


def processor_config(name: str) -> dict[str, Any]:
    """Content of `processor_config.json`; the only preprocessor file that the published checkpoints have."""
    kind = "Gemma4Unified" if _is_unified(name) else "Gemma4"
    image_only = {} if _is_unified(name) else {"image_seq_length": 280}
    return {
        "audio_ms_per_token": 40,
        "audio_seq_length": 750,
        "feature_extractor": _WAVEFORM if _is_unified(name) else _MEL,
        "image_processor": _IMAGE | image_only | {"image_processor_type": f"{kind}ImageProcessor"},
        "image_seq_length": 280,
        "processor_class": f"{kind}Processor",
        "video_processor": _VIDEO | {"video_processor_type": f"{kind}VideoProcessor"},
    }


def generation_config(name: str) -> dict[str, Any]:
    """Content of `generation_config.json` of the instruction-tuned models; only the 12B suppresses tokens."""
    ids = TOKEN_IDS
    suppressed = {"suppress_tokens": [ids["<audio|>"], ids["<image|>"]]} if _is_unified(name) else {}
    return {
        "bos_token_id": ids["<bos>"],
        "do_sample": True,
        "eos_token_id": [ids["<eos>"], ids["<turn|>"], ids["<|tool_response>"]],
        "pad_token_id": ids["<pad>"],
        "temperature": 1.0,
        "top_k": 64,
        "top_p": 0.95,
        "transformers_version": config(name)["transformers_version"],
    } | suppressed


def chat_template(name: str) -> str:
    """Text of `chat_template.jinja`.

    The E-series has the launch form, blank lines around images and videos; the large models have the later form, bare
    media, and open their answer with an empty thought.
    """
    template = (DATA_DIR / "chat_template.jinja").read_text(encoding="utf-8")
    gap, thought = ("''", r"'<|channel>thought\n<channel|>'") if _is_large(name) else (r"'\n\n'", "''")
    return template.replace("MEDIA_GAP", gap).replace("EMPTY_THOUGHT", thought)


def text_files(name: str) -> dict[str, str]:
    """File name -> content of everything in a checkpoint but the weights."""
    processor = processor_config(name)
    documents = {
        "config.json": config(name),
        "generation_config.json": generation_config(name),
        "processor_config.json": processor,
        "tokenizer_config.json": tokenizer_config(processor["processor_class"]),
    }
    texts = {file: json.dumps(document, indent=2, sort_keys=True) + "\n" for file, document in documents.items()}
    return texts | {"tokenizer.json": tokenizer_json(), "chat_template.jinja": chat_template(name)}

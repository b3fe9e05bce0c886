"""Chat messages as text by the native rules, against the template of each tiny model run by transformers."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.native import ChatStyle, Gemma4, Video, read_chat_style, render_chat
from harness.native.chat import without_thoughts
from harness.zoo import ensure
from tests.side_by_side import HEARING, VARIANTS, ZOO, Sample, hf_inputs, load_native, load_processor, prepare

CONVERSATIONS = 200
TEXTS = (
    "hi", " both ends\n", "", "\n", "漢字 🙂", "a<turn|>b", "<|image|>", "{{ braces }}", "it's \"quoted\" \\n",
    "<|channel>thought\nhm<channel|> so 4", "x<channel|>y<|channel>z", "\u00a0\u2003wide\u200b",
)  # fmt: skip


def conversation(seed: int) -> list[dict[str, Any]]:
    """One to five messages of any role, of text or of parts, the first often for the system."""
    rng = random.Random(seed)
    roles = ("user", "assistant", "model", "user", "system", "developer")
    messages = []
    for _ in range(rng.randint(1, 5)):
        parts = [{"type": rng.choice(("text", "text", "image", "audio", "video"))} for _ in range(rng.randint(0, 4))]
        texts = [part | ({"text": rng.choice(TEXTS)} if part["type"] == "text" else {}) for part in parts]
        messages.append({"role": rng.choice(roles), "content": rng.choice((rng.choice(TEXTS), texts))})
        if rng.random() < 0.3:
            messages += tool_use(rng)
    return messages


def tool_use(rng: random.Random) -> list[dict[str, Any]]:
    """A message of the model with one or two calls, and answers to some: known by their id, or by a name, or not."""
    values = ("two cats", 3, True, 0.5, ["a", 1, False], {"b": 'x<|"|>y', "A": {}}, "")
    calls = [
        {
            "id": f"call-{k}",
            "type": "function",
            "function": {"name": f"tool_{k}", "arguments": {key: rng.choice(values) for key in rng.sample("bAca", 2)}},
        }
        for k in range(rng.randint(1, 2))
    ]
    answers: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": "call-0", "content": [{"type": "text", "text": " found "}]},
        {"role": "tool", "tool_call_id": "of nobody", "name": "named", "content": "[1, 2]"},
        {"role": "tool", "content": rng.choice(TEXTS)},
    ]
    asking = {"role": "assistant", "content": rng.choice(("", [], None, "I look.")), "tool_calls": calls}
    return [asking, *rng.sample(answers, rng.randint(0, 3))]


def tools_of(seed: int) -> list[dict[str, Any]]:
    """None, one with parameters, or that and one without."""
    text = {"description": "What", "type": "string"}
    parameters = {"type": "object", "properties": {"text": text, "Limit": text | {"type": "integer"}}, "required": []}
    look = {"name": "look", "description": "Looks", "parameters": parameters | {"required": ["text", "Limit"]}}
    functions = [
        look,
        {"name": "stop", "description": ""},
        {"name": "go", "description": "a", "parameters": parameters},
    ]
    return [{"type": "function", "function": function} for function in functions[: seed % 4]]


def their_text(
    name: str,
    messages: list[dict[str, Any]],
    *,
    answer: bool,
    thinking: bool,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The text by the reference and the checkpoint's template."""
    text: str = load_processor(name).apply_chat_template(
        messages, tools=tools or None, tokenize=False, add_generation_prompt=answer, enable_thinking=thinking
    )
    return text


@pytest.mark.parametrize("name", VARIANTS)
def test_chat_text_is_that_of_the_template(name: str) -> None:
    """200 generated conversations, with and without thinking, tools and an open answer, are the same to the letter."""
    style, wrong = read_chat_style(ensure(name, ZOO)), []
    for seed in range(CONVERSATIONS):
        messages, answer, thinking, tools = conversation(seed), seed % 2 == 0, seed % 3 == 0, tools_of(seed // 6)
        expected = their_text(name, messages, answer=answer, thinking=thinking, tools=tools)
        if render_chat(messages, style, tools=tools, awaits_answer=answer, thinking=thinking) != expected:
            wrong.append((seed, messages))
    assert wrong == []


@pytest.mark.parametrize("name", ["tiny-e2b", "tiny-31b"])
def test_the_style_of_the_other_series_is_seen(name: str) -> None:
    """Negative control: either half of the style, turned round, gives another text."""
    style = read_chat_style(ensure(name, ZOO))
    assert style == (
        ChatStyle("", empty_thought=True) if name == "tiny-31b" else ChatStyle("\n\n", empty_thought=False)
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image"}]}]
    expected = their_text(name, messages, answer=True, thinking=False)
    assert render_chat(messages, style) == expected
    for other in (
        replace(style, media_gap="" if style.media_gap else "\n\n"),
        replace(style, empty_thought=not style.empty_thought),
    ):
        assert render_chat(messages, other) != expected


def test_a_conversation_by_hand() -> None:
    """The system turn comes first, thoughts of earlier answers go, an answer is awaited."""
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": " Be brief. "},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "<|channel>thought\na cat<channel|>A cat."},
    ]
    assert render_chat(messages, ChatStyle("\n\n", empty_thought=True)) == (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\n\n\n<|image|>\n\nWhat?<turn|>\n"
        "<|turn>model\nA cat.<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    )
    assert without_thoughts("a<|channel>b<channel|>c<|channel>d") == "ac"


def all_media(name: str) -> tuple[list[dict[str, Any]], Sample]:
    """A conversation with every medium that a model takes, in two turns, and the sample that it becomes."""
    rng = np.random.default_rng(0)
    hears = name in HEARING
    heard = [{"type": "audio"}] if hears else []
    content: list[dict[str, str]] = [{"type": "text", "text": "first"}, {"type": "image"}, *heard]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": content},
        {"role": "model", "content": "ok"},
        {"role": "user", "content": [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "and now?"}]},
    ]
    images = tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 60), (90, 30)))
    video = Video(list(rng.integers(0, 256, (2, 30, 50, 3), dtype=np.uint8)), 24.0, (0, 30))
    audios = ((rng.standard_normal(4000) * 0.2).astype(np.float32),) if hears else ()
    text = render_chat(messages, read_chat_style(ensure(name, ZOO)))
    return messages, Sample(text, images, audios, (video,))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_four_forms_of_a_prompt_are_one(name: str) -> None:
    """Chat messages, their text, that text expanded and its ids prepare to the ids that the reference makes of them."""
    messages, sample = all_media(name)
    ours = load_native(name)
    chat = prepare(ours, sample)
    text = their_text(name, messages, answer=True, thinking=False)
    theirs = hf_inputs(load_processor(name), replace(sample, prompt=text))
    assert chat.token_ids.tolist() == theirs["input_ids"][0].tolist()
    assert chat.media_types.tolist() == theirs["mm_token_type_ids"][0].tolist()
    assert set(chat.media_types.tolist()) == ({0, 1, 2, 3} if name in HEARING else {0, 1, 2})
    for prompt in (expanded_text(sample, ours), chat.token_ids.tolist()):
        again = ours.prepare(prompt, sample.images, sample.audios, sample.videos, max_soft_tokens=70)
        assert torch.equal(again.token_ids, chat.token_ids)
        assert torch.equal(again.media_types, chat.media_types)


def expanded_text(sample: Sample, model: Gemma4) -> str:
    """The prompt with begin, soft tokens and end of every item written out, frames after their times."""
    prepared = prepare(model, sample)
    (video,) = prepared.videos
    frames = zip(video.stamps, video.frames, strict=True)
    shown = " ".join(f"{stamp} <|image>{'<|video|>' * frame.soft_tokens}<image|>" for stamp, frame in frames)
    images = iter(f"<|image>{'<|image|>' * image.soft_tokens}<image|>" for image in prepared.images)
    audios = iter(f"<|audio>{'<|audio|>' * audio.soft_tokens}<audio|>" for audio in prepared.audios)
    first, second = sample.prompt.split("<|video|>")
    for placeholder, runs in (("<|image|>", images), ("<|audio|>", audios)):
        parts = [part.split(placeholder) for part in (first, second)]
        first, second = (pieces[0] + "".join(next(runs) + piece for piece in pieces[1:]) for pieces in parts)
    return first + shown + second


def test_what_is_no_conversation_is_refused(tmp_path: Path) -> None:
    """No message, a part of another type and a checkpoint without chat are errors that say what to give."""
    style = ChatStyle("", empty_thought=False)
    with pytest.raises(ValueError, match="at least one message"):
        render_chat([], style)
    with pytest.raises(ValueError, match="type 'tool' is not supported; use text, image, video, audio"):
        render_chat([{"role": "user", "content": [{"type": "tool"}]}], style)
    with pytest.raises(FileNotFoundError, match=r"chat_template\.jinja: not found; only instruction-tuned"):
        read_chat_style(tmp_path)

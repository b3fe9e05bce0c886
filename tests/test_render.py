"""Prompts as text: media written out by the rules, and tools as the template of the checkpoint writes them."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from harness.checkpoint import Checkpoint
from harness.render import declaration, has_rule, render, texts, use, written_out
from harness.schema import AudioSpec, Case, ImageSpec, Part, Probe, ToolUse, VideoSpec, case_of
from harness.session import locate

IMAGE, CLIP = Part(image=ImageSpec(100, 90)), Part(video=VideoSpec(2, 9, 9, fps=2.0, indices=(0, 121)))
SOUND = Part(audio=AudioSpec(1_281))
TOOL = ToolUse("look", "two cats", "none")


def test_media_are_written_out_by_the_rules() -> None:
    """Marks, one placeholder a soft token, and for each frame its time; sound by the rule of the model."""
    assert written_out(IMAGE, 70) == "<|image>" + "<|image|>" * 56 + "<image|>"
    assert written_out(SOUND, 70) == "<|audio>" + "<|audio|>" * 2 + "<audio|>"
    assert written_out(SOUND, 70, waves=True) == "<|audio>" + "<|audio|>" * 3 + "<audio|>"
    frame = "<|image>" + "<|video|>" * 64 + "<image|>"
    assert written_out(CLIP, 1120) == f"00:00 {frame} 01:00 {frame}"


@pytest.mark.parametrize(
    ("part", "known"),
    [
        (IMAGE, True),
        (CLIP, True),
        (SOUND, True),
        (Part(audio=AudioSpec(480_000)), True),
        (Part(audio=AudioSpec(480_001)), False),
        (Part(audio=AudioSpec(160)), False),
        (Part(audio=AudioSpec(9_000, 48_000)), False),
        (Part(video=VideoSpec(31, 9, 9)), False),
        (Part(video=VideoSpec(32, 9, 9)), True),
        (Part("text"), False),
    ],
)
def test_what_no_rule_writes_out_is_known(part: Part, *, known: bool) -> None:
    """Sound of another rate, beyond the cap or without a soft token, and short whole videos have no one expansion."""
    assert has_rule(part) is known


def test_what_has_no_rule_is_written_all_the_same() -> None:
    """While a case shrinks it may pass through such a medium; that must not end the search."""
    assert written_out(Part(video=VideoSpec(1, 1, 1)), 70).startswith("00:00 <|image>")
    assert written_out(Part(audio=AudioSpec(0)), 70) == "<|audio><audio|>"


def test_a_request_has_the_words_that_its_probe_asks_for() -> None:
    """The companion of a batch, and the prompt with every medium written out for the probe `expanded` alone."""
    case = Case("tiny-e2b", (Part("a"), SOUND), 70)
    assert texts(case) == {"prompt": "<bos>a<|audio|>"}
    batch = replace(case, probe=Probe("batch", companion=(Part("b"),)))
    assert texts(batch) == {"prompt": "<bos>a<|audio|>", "companion": "<bos>b"}
    written = texts(replace(case, probe=Probe("expanded")))
    assert written["expanded"] == "<bos>a<|audio><|audio|><|audio|><audio|>"


def test_a_tool_is_written_in_the_published_shape() -> None:
    """Keys sorted, strings quoted, types in capitals; behind the answer the model goes on, with no new turn."""
    quote = '<|"|>'
    assert declaration(TOOL) == (
        "<|tool>declaration:look{description:'Looks around',parameters:{properties:{"
        "limit:{description:'How many',type:'INTEGER'},text:{description:'What to look for',type:'STRING'}},"
        "required:['text'],type:'OBJECT'}}<tool|>"
    ).replace("'", quote)
    assert use(TOOL) == (
        "<|tool_call>call:look{limit:2,text:'two cats'}<tool_call|>"
        "<|tool_response>response:look{value:'none'}<tool_response|>"
    ).replace("'", quote)
    case = Case("tiny-e2b", (Part("hi"),), form="turn", tool=TOOL)
    assert render(case) == (
        f"<bos><|turn>system\n{declaration(TOOL)}<turn|>\n<|turn>user\nhi<turn|>\n<|turn>model\n{use(TOOL)}"
    )


@pytest.mark.parametrize("model", ["tiny-e2b", "tiny-31b"])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_turn_with_a_tool_is_what_the_template_makes_of_the_chat(model: str, system: str) -> None:
    """The two forms part in blank lines around media alone; negative control: another answer is another text."""
    template = Checkpoint.open(locate(model)).chat_template
    case = Case(model, (Part("hi"),), form="turn", system=system, tool=TOOL)
    assert render(replace(case, form="chat"), template) == render(case)
    assert render(replace(case, form="chat", tool=ToolUse()), template) != render(case)


def test_marks_of_tools_are_single_tokens() -> None:
    """A tool turn exercises the special tokens of the published order, not their letters."""
    tokenizer = Tokenizer.from_file(str(locate("tiny-e2b") / "tokenizer.json"))
    tokens = tokenizer.encode(declaration(TOOL) + use(TOOL), add_special_tokens=False).tokens
    for mark in ("<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"):
        assert tokens.count(mark) == 1
    assert tokens.count('<|"|>') == 2 * (1 + 2 * 2 + 1 + 1 + 1 + 1)


def test_a_tool_crosses_into_a_worker_and_changes_no_other_id() -> None:
    """What a worker reads back is the case; a case without a tool keeps the id that it had before there were tools."""
    case = Case("tiny-e2b", (Part("hi"),), form="turn", tool=TOOL)
    assert case_of(dataclasses.asdict(case)) == case
    plain = replace(case, tool=None)
    assert case_of(dataclasses.asdict(plain)) == plain
    assert Case("tiny-31b", (Part("a"),)).id == "98186e7ef1df"
    assert case.id != plain.id

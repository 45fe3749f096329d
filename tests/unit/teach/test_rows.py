"""What replies mean, what is asked next, and rows that come back as they were, with teacher text."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import pytest
from PIL import Image

from prism_lite import parts
from prism_lite.data.checks.check import check
from prism_lite.data.formats.load import load_samples
from prism_lite.teach.replies import (
    Received,
    Reply,
    checked,
    first_prompt,
    next_prompt,
    progress_of,
)
from prism_lite.teach.rows import output_row, scaled_size, to_data_uri, to_messages
from prism_lite.teach.settings import TeachSettings
from prism_lite.types import Picture, Sample, Turn

GOOD = "<caption>- a dog</caption>\n<think>one dog</think>\n<answer>1</answer>"
SAMPLE = Sample("7", (Turn("user", "<image>How many?"),), answer="1")


def verdict(text: str, *, keep_right: bool = False, is_cut: bool = False, sample: Sample = SAMPLE):
    reply = checked(sample, Received(text, is_cut, 5, 6, 2), keep_right=keep_right)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.num_requests) == (5, 6, 2)
    return reply.text, reply.kind, reply.reason


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Sure! Here it is:\n```xml\n{GOOD}\n```",
        f"<think>first a plan of my own</think>\n{GOOD}",
        GOOD.replace("caption>", "SUMMARY>").replace("SUMMARY", "DESCRIPTION"),
        GOOD.replace("</caption>\n", "  </caption>\n\n\n"),
    ],
)
def test_usable_replies_are_written_in_one_form(text):
    assert verdict(text, keep_right=True) == (GOOD, "kept", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot see it.", "missing <caption>"),
        (GOOD.replace("</think>", ""), "missing </think>"),
        (GOOD.replace("- a dog", " "), "empty caption"),
        (GOOD + GOOD, "<caption> 2 times"),
        (GOOD.replace("a dog", "a <|im_end|> dog"), "special token <|im_end|>"),
        (GOOD.replace("a dog", "a \ufffd dog"), "replacement characters"),
        (GOOD.replace("a dog", "<image>"), "<image> mark"),
    ],
)
def test_malformed_replies_have_a_reason(text, reason):
    received, kind, why = verdict(text)
    assert (received, kind) == (text, "malformed") and reason in why


def test_wrong_and_cut_off_replies():
    wrong = GOOD.replace(">1<", ">2<")
    text, kind, reason = verdict(wrong, keep_right=True)
    assert (text, kind) == (wrong, "wrong") and "the gold answer is '1'" in reason
    text, kind, reason = verdict(wrong)
    assert (text, kind) == (wrong, "kept") and "the gold answer is '1'" in reason
    assert verdict(GOOD, is_cut=True)[1:] == (
        "malformed",
        "it was cut off at the length limit; be shorter",
    )
    several = dataclasses.replace(SAMPLE, accepted=("2", "two"))
    assert verdict(wrong, keep_right=True, sample=several)[1] == "kept"
    lettered = dataclasses.replace(SAMPLE, answer="A", choices=("1", "2"))
    assert verdict(GOOD, keep_right=True, sample=lettered)[1] == "kept"


def progress(kinds: str, **settings):
    names = {"k": "kept", "m": "malformed", "w": "wrong"}
    replies = [Reply(f"{i}", names[kind], "why") for i, kind in enumerate(kinds)]  # type: ignore
    state = progress_of(replies, TeachSettings("m", tries=2, **settings))
    again = None if state.again is None else state.again.text
    return state.texts, [reply.text for reply in state.given_up], again, state.num_left


def test_progress_of_a_row():
    assert progress("") == ((), [], None, 1)
    assert progress("k") == (("0",), [], None, 0)
    assert progress("m") == ((), [], "0", 1), "asked again with its reason"
    assert progress("w") == ((), [], None, 1), "asked afresh: a reason would tell the answer"
    assert progress("mm") == ((), ["1"], None, 0)
    assert progress("mk") == (("1",), [], None, 0)
    assert progress("kmwm", num=3) == (("0",), ["2"], "3", 1)
    assert progress("kmwmk", num=3) == (("0", "4"), ["2"], None, 0)


def test_what_is_asked():
    own = dataclasses.replace(
        SAMPLE, turns=(Turn("system", "Be kind."), *SAMPLE.turns), teacher=GOOD, demonstration=GOOD
    )
    for sample, system in ((SAMPLE, "three parts"), (own, "Be kind.\n\nthree parts")):
        prompt = first_prompt(sample, "three parts")
        assert prompt.turns == (Turn("system", system), Turn("user", "<image>How many?"))
        assert prompt.teacher is prompt.demonstration is None and prompt.answer == "1"
    prompt = first_prompt(SAMPLE, "three parts")
    assert next_prompt(prompt, None) is prompt
    *before, said, asked = next_prompt(prompt, Reply("so", "malformed", "missing <think>")).turns
    assert tuple(before) == prompt.turns and said == Turn("assistant", "so")
    assert asked.role == "user" and "cannot be used: missing <think>. Reply again" in asked.text


def test_pictures_are_sent_at_their_marks_upright_and_small(tmp_path):
    image = Image.new("RGB", (400, 100), (200, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    pictures = (
        Picture("a", tmp_path / "turned.jpg"),
        Picture("b", Image.effect_noise((900, 900), 90).convert("RGB")),
    )
    turns = (Turn("system", "s"), Turn("user", "Left <image> or <image>?"))
    system, user = to_messages(Sample("1", turns, pictures), 900 * 900)
    assert system == {"role": "system", "content": "s"}
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    images = []
    for part in user["content"][1::2]:
        head, _, body = part["image_url"]["url"].partition(",")
        images.append((head, Image.open(io.BytesIO(base64.b64decode(body)))))
    assert images[0][0] == "data:image/png;base64" and images[0][1].size == (100, 400)
    assert images[1][0] == "data:image/jpeg;base64" and images[1][1].size == (900, 900)
    before = pictures[1].source.size  # type: ignore
    assert scaled_size((4000, 1000), 10_000) == (200, 50)
    small = to_data_uri(pictures[1], 10_000).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(small))).size == (100, 100)
    assert pictures[1].source.size == before, "the row's own picture is left as it is"  # type: ignore


def test_rows_come_back_as_they_were(tmp_path):
    """Every field that training reads, from any format, and in a folder of its own."""
    (tmp_path / "in" / "pictures").mkdir(parents=True)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 48), (90, 0, 0)).save(tmp_path / "in" / "pictures" / f"{name}.png")
    stream = io.BytesIO()
    Image.new("RGB", (40, 40), (0, 90, 0)).save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    a = "pictures/a.png"
    files = {
        "plain": [{"question": "How many?", "image": a, "answer": "1", "id": "x7"}],
        "options": [{"question": "Which?", "image": a, "choices": ["cat", "dog"], "answer": "B"}],
        "embedded": [{"question": "How many?", "image": encoded, "answer": "1"}],
        "limits": [
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "See"},
                            {"type": "image", "image": a, "max_pixels": 5000},
                            {"type": "text", "text": "and say."},
                        ],
                    },
                ],
                "answer": "1",
            }
        ],
        "turns": [
            {
                "conversations": [
                    {"from": "human", "value": "<image>First <image>?"},
                    {"from": "gpt", "value": "yes"},
                    {"from": "human", "value": "And now?"},
                    {"from": "gpt", "value": GOOD},
                ],
                "images": [a, "pictures/b.png"],
            }
        ],
        "accepted": [{"problem": "Who?", "solution": "Ann", "equivalent_answers": ["Anna"]}],
        "text": [{"question": "1 + 0?", "answer": "1", "teacher": GOOD.replace("a dog", "a cat")}],
    }
    for name, rows in files.items():
        path = tmp_path / "in" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (before,) = load_samples(path)
        second = GOOD.replace("a dog", "two dogs")
        settings = TeachSettings("m", num=2)
        row = output_row(before, [GOOD, second, GOOD], settings, out)
        (out / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        (after,) = load_samples(out / f"{name}.jsonl")
        assert after.teachers == (*before.teachers, GOOD, second), name
        for field in ("turns", "answer", "accepted", "choices", "demonstration", "student"):
            assert getattr(after, field) == getattr(before, field), (name, field)
        pictures = [(p.open().tobytes(), p.size, p.max_pixels) for p in before.pictures]
        assert [(p.open().tobytes(), p.size, p.max_pixels) for p in after.pictures] == pictures
        if name not in ("options", "accepted"):  # whose answers are others
            assert check(out / f"{name}.jsonl").ok, name
    assert row["id"] == "1"


def test_fields_and_relative_paths(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    sample = dataclasses.replace(SAMPLE, pictures=(Picture("a", tmp_path / "a.png"),))
    rows = {
        field: output_row(sample, [GOOD, "second"], TeachSettings("m", field=field), tmp_path)  # type: ignore
        for field in ("teacher", "demonstration", "both")
    }
    assert rows["teacher"]["images"] == ["a.png"]
    assert rows["teacher"]["teacher"] == [GOOD, "second"] and "demonstration" not in rows["teacher"]
    assert rows["demonstration"]["demonstration"] == GOOD and "teacher" not in rows["demonstration"]
    assert rows["both"]["demonstration"] == GOOD and rows["both"]["teacher"] == [GOOD, "second"]
    inside = output_row(sample, [GOOD], TeachSettings("m"), tmp_path / "other")
    assert inside["images"] == [str(tmp_path / "a.png")] and inside["teacher"] == GOOD


def test_the_instruction_asks_for_the_three_parts():
    text = TeachSettings("m").instruction
    assert text.startswith(parts.SYSTEM_PROMPT) and all(tag in text for tag in parts.TAGS)

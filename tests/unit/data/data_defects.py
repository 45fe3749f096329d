"""Rows that spoil a file: name -> kind, the bad row, a good row of the same format."""

from __future__ import annotations

import json

from data_rows import CHAT, GOOD, STUDENT, TEXT, TRIPLE, user

PREFERENCE = {"prompt": user("?"), "chosen": TRIPLE, "rejected": STUDENT}
SFT = {"messages": [*CHAT, {"role": "assistant", "content": TRIPLE}], "images": ["a.png"]}


def sft(target: str) -> dict:
    return {**SFT, "messages": [*CHAT, {"role": "assistant", "content": target}]}


ROW_DEFECTS: dict[str, tuple[str, dict, dict]] = {
    # name: (kind, the bad row, a good row of the same format)
    "more marks than pictures": (
        "picture_count",
        {**GOOD, "prompt": user("<image><image>?")},
        GOOD,
    ),
    "fewer marks than pictures": (
        "picture_count",
        {**GOOD, "prompt": user("<image>?"), "images": ["a.png", "b.png"]},
        GOOD,
    ),
    "mark without picture": ("picture_count", {**GOOD, "images": []}, GOOD),
    "missing picture file": ("missing_picture", {**GOOD, "images": ["gone.png"]}, GOOD),
    "picture is a URL": ("url_picture", {**GOOD, "images": ["https://example.org/a.png"]}, GOOD),
    "picture is a number": ("picture_type", {**GOOD, "images": [7]}, GOOD),
    "picture dict without content": ("picture_type", {**GOOD, "images": [{"bytes": None}]}, GOOD),
    "picture reference empty": ("empty_picture", {**GOOD, "images": [""]}, GOOD),
    "broken base64": ("bad_base64", {**GOOD, "images": ["data:image/png;base64,@@@"]}, GOOD),
    "base64 of other characters": ("bad_base64", {**GOOD, "images": [{"base64": "é"}]}, GOOD),
    "data URI without base64": ("bad_data_uri", {**GOOD, "images": ["data:image/png,abc"]}, GOOD),
    "path with a zero byte": ("bad_path", {**GOOD, "images": ["a\0.png"]}, GOOD),
    "name too long for the disk": ("missing_picture", {**GOOD, "images": ["a" * 300]}, GOOD),
    "endless path": ("bad_path", {**GOOD, "images": ["a?" * 600]}, GOOD),
    "picture is text": ("unreadable_picture", {**GOOD, "images": ["text.png"]}, GOOD),
    "picture file empty": ("unreadable_picture", {**GOOD, "images": ["none.png"]}, GOOD),
    "png cut off": ("unreadable_picture", {**GOOD, "images": ["cut.png"]}, GOOD),
    "jpeg cut off": ("unreadable_picture", {**GOOD, "images": ["cut.jpg"]}, GOOD),
    "embedded bytes are not a picture": (
        "unreadable_picture",
        {**GOOD, "images": ["data:image/png;base64,aGVsbG8="]},
        GOOD,
    ),
    "aspect ratio": ("aspect_ratio", {**GOOD, "images": ["long.png"]}, GOOD),
    "oversized picture": ("oversized_picture", {**GOOD, "images": ["large.png"]}, GOOD),
    "tiny picture": ("tiny_picture", {**GOOD, "images": ["dot.png"]}, GOOD),
    "video": ("unsupported_media", {**GOOD, "videos": ["a.mp4"]}, GOOD),
    "audio": ("unsupported_media", {**GOOD, "audios": ["a.wav"]}, GOOD),
    "prompt too long": ("prompt_too_long", {**GOOD, "prompt": user("<image>" + "x " * 900)}, GOOD),
    "empty prompt": ("empty_prompt", {**GOOD, "prompt": user("<image>  ")}, GOOD),
    "no messages": ("empty_conversation", {**GOOD, "prompt": []}, GOOD),
    "message is text": ("message_type", {**GOOD, "prompt": ["How high?"]}, GOOD),
    "message without content": ("message_type", {**GOOD, "prompt": [{"role": "user"}]}, GOOD),
    "content is a number": (
        "message_type",
        {**GOOD, "prompt": [{"role": "user", "content": 5}]},
        GOOD,
    ),
    "unknown role": (
        "unknown_role",
        {**GOOD, "prompt": [{"role": "tool", "content": "?"}]},
        GOOD,
    ),
    "unknown part": (
        "unknown_part",
        {**GOOD, "prompt": [{"role": "user", "content": [{"type": "video"}]}]},
        GOOD,
    ),
    "two user turns": ("turn_order", {**GOOD, "prompt": user("<image>a") + user("b")}, GOOD),
    "late system turn": (
        "turn_order",
        {**TEXT, "prompt": [*user("a"), {"role": "system", "content": "b"}]},
        TEXT,
    ),
    "assistant first": (
        "turn_order",
        {**TEXT, "prompt": [{"role": "assistant", "content": "hi"}, *user("a")]},
        TEXT,
    ),
    "no user turn": (
        "no_user_turn",
        {**TEXT, "prompt": [{"role": "system", "content": "be brief"}]},
        TEXT,
    ),
    "empty answer": ("empty_answer", {**GOOD, "answer": "  "}, GOOD),
    "empty box": ("empty_answer", {**GOOD, "answer": "<answer></answer>"}, GOOD),
    "answer says none": ("unverifiable_answer", {**GOOD, "answer": "N/A"}, GOOD),
    "answer is an essay": ("unverifiable_answer", {**GOOD, "answer": "word " * 200}, GOOD),
    "answer is an object": ("answer_type", {**GOOD, "answer": {"value": 3}}, GOOD),
    "empty list of answers": ("answer_type", {**GOOD, "answer": []}, GOOD),
    "missing answer": ("missing_answer", {"prompt": user("Why?"), "images": []}, TEXT),
    "answer beyond the options": (
        "answer_not_in_choices",
        {"question": "Which?", "choices": ["cat", "dog"], "answer": "E"},
        {"question": "Which one?", "choices": ["cat", "dog"], "answer": "A"},
    ),
    "options are text": (
        "choices_type",
        {"question": "Which?", "choices": "cat", "answer": "A"},
        {"question": "Which one?", "choices": ["cat", "dog"], "answer": "A"},
    ),
    "demonstration is half a triple": (
        "malformed_demonstration",
        sft(TRIPLE.replace("</think>", "")),
        SFT,
    ),
    "demonstration is empty": ("empty_demonstration", sft("  "), SFT),
    "demonstration holds a mark": (
        "mark_in_completion",
        sft(TRIPLE.replace("It is", "<image> is")),
        SFT,
    ),
    "demonstration answers otherwise": ("wrong_demonstration", {**SFT, "answer": "4"}, SFT),
    "special token": ("special_token", sft(TRIPLE.replace("It is", "<|im_end|>")), SFT),
    "teacher with two answers": (
        "malformed_teacher",
        {**PREFERENCE, "chosen": TRIPLE + "<answer>3</answer>"},
        PREFERENCE,
    ),
    "teacher with an empty caption": (
        "malformed_teacher",
        {**PREFERENCE, "chosen": TRIPLE.replace("- a red bar", "")},
        PREFERENCE,
    ),
    "student malformed": (
        "malformed_student",
        {**PREFERENCE, "rejected": "<caption>x</caption>"},
        PREFERENCE,
    ),
    "teacher answers wrongly": ("wrong_teacher", {**PREFERENCE, "answer": "5"}, PREFERENCE),
    "teacher is the student": ("same_pair", {**PREFERENCE, "rejected": TRIPLE}, PREFERENCE),
    "pair without a chosen side": (
        "pair_incomplete",
        {"messages": user("?"), "rejected_response": STUDENT},
        PREFERENCE,
    ),
    "broken characters": ("broken_characters", {**TEXT, "prompt": user("Caf\ufffd?")}, TEXT),
    "row of another format": ("mixed_formats", {"instruction": "a", "output": "b"}, TEXT),
    "row of no format": ("mixed_formats", {"x": 1}, TEXT),
    "duplicate row": ("duplicate_row", TEXT, TEXT),
    "too few objects": (
        "object_count",
        {**SFT, "objects": {"ref": []}, "messages": [*user("<image><ref-object>?"), CHAT[0]][:1]},
        SFT,
    ),
    "question is a number": (
        "text_type",
        {"query": 5, "answer": "b"},
        {"query": "a", "answer": "b"},
    ),
    "history is not a list of pairs": (
        "message_type",
        {"instruction": "a", "output": "b", "history": [["a"]]},
        {"instruction": "a", "output": "b"},
    ),
    "message string is broken": (
        "broken_json",
        {"message": '[{"role"', "answer": "3"},
        {"message": json.dumps(user("?")), "answer": "3"},
    ),
}

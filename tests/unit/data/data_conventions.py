"""One row of every convention, with the format it must be detected as and what it knows."""

from __future__ import annotations

import json

from data_rows import CHAT, QUESTION, STUDENT, TRIPLE

# Each row holds one picture and QUESTION; the last string names what it knows: demonstration,
# Answer, teacher, student.
CHAT_ANSWERED = [*CHAT, {"role": "assistant", "content": TRIPLE}]
SHAREGPT = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": TRIPLE}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
CONVENTIONS = {
    "lf_sharegpt": ({"conversations": SHAREGPT, "images": ["a.png"]}, "sharegpt", "dA"),
    "llava": ({"id": "1", "image": "a.png", "conversations": SHAREGPT}, "sharegpt", "dA"),
    "lf_openai": ({"messages": CHAT_ANSWERED, "images": ["a.png"]}, "messages", "dA"),
    "trl_sft_without_mark": (
        {
            "messages": [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": TRIPLE},
            ],
            "images": ["a.png"],
        },
        "messages",
        "dA",
    ),
    "trl_parts": (
        {
            "messages": [
                *PARTS,
                {"role": "assistant", "content": [{"type": "text", "text": TRIPLE}]},
            ],
            "images": ["a.png"],
        },
        "messages",
        "dA",
    ),
    "trl_prompt_completion": (
        {"prompt": PARTS, "completion": CHAT_ANSWERED[1:], "image": "a.png"},
        "prompt_completion",
        "dA",
    ),
    "trl_preference": (
        {
            "prompt": PARTS,
            "chosen": [{"role": "assistant", "content": TRIPLE}],
            "rejected": [{"role": "assistant", "content": STUDENT}],
            "images": ["a.png"],
        },
        "preference",
        "ts",
    ),
    "trl_implicit_prompt": (
        {
            "chosen": [*CHAT, {"role": "assistant", "content": TRIPLE}],
            "rejected": [*CHAT, {"role": "assistant", "content": STUDENT}],
            "images": ["a.png"],
        },
        "preference",
        "ts",
    ),
    "trl_grpo": ({"prompt": CHAT, "image": "a.png", "solution": "3"}, "prompt", "A"),
    "lf_preference": (
        {
            "conversations": SHAREGPT[:1],
            "chosen": {"from": "gpt", "value": TRIPLE},
            "rejected": {"from": "gpt", "value": STUDENT},
            "images": ["a.png"],
        },
        "preference",
        "ts",
    ),
    "lf_kto": (
        {"messages": CHAT_ANSWERED, "kto_tag": True, "images": ["a.png"]},
        "preference",
        "t",
    ),
    "lf_alpaca": (
        {"instruction": f"<image>{QUESTION}", "input": "", "output": TRIPLE, "images": ["a.png"]},
        "alpaca",
        "dA",
    ),
    "verl": (
        {
            "data_source": "x",
            "prompt": CHAT,
            "images": [{"path": "a.png"}],
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "extra_info": {"index": 0},
        },
        "verl",
        "A",
    ),
    "easyr1": ({"problem": f"<image>{QUESTION}", "answer": "3", "images": ["a.png"]}, "query", "A"),
    "swift_query": (
        {"query": f"<image>{QUESTION}", "response": TRIPLE, "images": ["a.png"]},
        "query",
        "dA",
    ),
    "swift_rejected": (
        {"messages": CHAT_ANSWERED, "rejected_response": STUDENT, "images": ["a.png"]},
        "preference",
        "ts",
    ),
    "swift_image_url": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": QUESTION},
                    ],
                },
                CHAT_ANSWERED[1],
            ]
        },
        "messages",
        "dA",
    ),
    "r1v": (
        {"image": "a.png", "problem": QUESTION, "solution": "<answer> 3 </answer>"},
        "query",
        "A",
    ),
    "openrlhf": (
        {
            "message": json.dumps(
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "image": "a.png"},
                            {"type": "text", "text": QUESTION},
                        ],
                    }
                ]
            ),
            "answer": "$3$",
        },
        "openrlhf",
        "A",
    ),
    "axolotl": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "path": "a.png"},
                        {"type": "text", "text": QUESTION},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": TRIPLE}]},
            ]
        },
        "messages",
        "dA",
    ),
    "mmmu": (
        {
            "question": f"<image 1> {QUESTION}",
            "options": "[]",
            "answer": "3",
            "image_1": {"path": "a.png"},
        },
        "query",
        "A",
    ),
    "mathvista": (
        {"question": QUESTION, "answer": "3", "choices": None, "decoded_image": {"path": "a.png"}},
        "query",
        "A",
    ),
    "prism_align": (
        {
            "prompt": CHAT,
            "images": [{"path": "a.png"}],
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "teacher_response": TRIPLE,
            "teacher_caption": "- a red bar",
            "teacher_cot": "It is 3.",
            "equivalent_answers": None,
        },
        "prism_align",
        "At",
    ),
    "prism_warmup": (
        {
            "question": QUESTION,
            "image": "a.png",
            "teacher_caption": "- a red bar",
            "teacher_cot": "<think>It is 3.</think>\n<answer>3</answer>",
            "student_caption": "<caption>- a blue bar</caption>",
            "student_cot": "<think>It is 4.</think>\n<answer>4</answer>",
        },
        "prism_warmup",
        "ts",
    ),
    "prism_distill": (
        {"conversations": SHAREGPT, "images": ["a.png"], "system": ""},
        "sharegpt",
        "dA",
    ),
}

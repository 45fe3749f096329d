"""What a teacher is asked for, and how an endpoint is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from prism_lite import parts

INSTRUCTION = (
    f"{parts.SYSTEM_PROMPT} Write each of the six tags once, nothing outside them, and only what the "
    "picture shows."
)
KEY_VARIABLES = ("PRISM_TEACHER_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True)
class TeachSettings:
    """What each row is asked for. A file that was begun with other values is not continued.

    Attributes:
        model: name that the endpoint knows, or id or folder of the local model.
        num: completions per row.
        tries: replies per completion; a malformed one is asked again with the reason.
        keep_right: only completions that the answer verifier accepts are kept.
        max_tokens: longest reply.
        max_pixels: larger pictures are scaled down to this many.
        temperature: None leaves it to the endpoint (local: 0.7).
        instruction: system turn of every prompt, after the row's own.
        field: where the completions are written; "both" makes the first one the demonstration as well.
    """

    model: str
    num: int = 1
    tries: int = 3
    keep_right: bool = False
    max_tokens: int = 1024
    max_pixels: int = 1024 * 1024
    temperature: float | None = None
    instruction: str = INSTRUCTION
    field: Literal["teacher", "demonstration", "both"] = "teacher"


@dataclass(frozen=True)
class EndpointSettings:
    """How an endpoint is asked; may change between the runs that fill one file.

    Attributes:
        base_url: address, up to and including "/v1".
        parallel: requests at the same time.
        per_minute: most requests in a minute; 0 sets no limit.
        timeout_s: of one complete reply.
        retries: further requests after one without a usable reply.
        key_variables: environment variables; the first that is set holds the key.
        request: further fields of the request; null removes one of ours.
    """

    base_url: str
    parallel: int = 8
    per_minute: float = 0.0
    timeout_s: float = 120.0
    retries: int = 6
    key_variables: tuple[str, ...] = KEY_VARIABLES
    request: dict[str, Any] = field(default_factory=dict)

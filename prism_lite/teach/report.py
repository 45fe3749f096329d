"""What teaching will cost, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prism_lite.teach.journal import read_records
from prism_lite.teach.rows import scaled_size
from prism_lite.teach.settings import TeachSettings
from prism_lite.types import Sample

_CHARACTERS_PER_TOKEN = 4
_PIXELS_PER_TOKEN = 32 * 32  # as Qwen-VL counts; other endpoints count otherwise
_ASSUMED_REPLY_TOKENS = 400  # until replies have been counted
Price = tuple[float, float]  # of a million tokens of prompts, and of replies


@dataclass
class Tally:
    """What a journal holds.

    Attributes:
        ends: rows by how they ended.
        reasons: of rows without teacher text, each with its place.
        replies: by kind.
        num_wrong_kept: kept replies whose answer the verifier refuses.
        num_uncounted: replies without a count of tokens.
    """

    ends: Counter[str] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)
    replies: Counter[str] = field(default_factory=Counter)
    num_requests: int = 0
    num_wrong_kept: int = 0
    num_uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Estimate:
    """What the rows to ask will need.

    Attributes:
        num_rows: rows to ask; the rest is per completion asked once.
        num_requests, prompt_tokens, reply_tokens: if no reply is asked again.
        at_most: requests and tokens of replies, if every reply uses all tries and its full length.
    """

    num_rows: int
    num_requests: int
    prompt_tokens: int
    reply_tokens: int
    at_most: tuple[int, int]


def read_tally(path: Path, *, max_reasons: int = 5) -> Tally:
    """Count what a journal holds; a row that ended several times counts by its last end."""
    tally, failed = Tally(), {}
    for record in read_records(path):
        if "reply" in record:
            reply = record["reply"]
            tally.replies[reply["kind"]] += 1
            tally.num_requests += reply["num_requests"]
            tally.num_wrong_kept += reply["kind"] == "kept" and bool(reply["reason"])
            tally.num_uncounted += reply["completion_tokens"] is None
            tally.prompt_tokens += reply["prompt_tokens"] or 0
            tally.completion_tokens += reply["completion_tokens"] or 0
        elif "end" in record:
            tally.num_requests += record["num_requests"]
            reason = f"{record['place']}: {record['end']}: {record['reason']}"
            if record["end"] == "failed":
                failed[record["key"]] = reason
                continue
            failed.pop(record["key"], None)
            tally.ends[record["end"]] += 1
            if record["end"] != "taught" and len(tally.reasons) < max_reasons:
                tally.reasons.append(reason)
    if failed:
        tally.ends["failed"] = len(failed)
        tally.reasons += list(failed.values())[:max_reasons]
    return tally


def estimate(samples: Iterable[Sample], settings: TeachSettings, tally: Tally) -> Estimate:
    """Estimate the requests and tokens of rows that are not finished.

    Tokens are a quarter of the characters and one for 32 x 32 pixels; a reply is as long as the counted
    ones, or 400 tokens.
    """
    num_rows = prompt_tokens = 0
    for sample in samples:
        num_rows += 1
        num_characters = sum(len(turn.text) for turn in sample.turns) + len(settings.instruction)
        prompt_tokens += num_characters // _CHARACTERS_PER_TOKEN
        for picture in sample.pictures:
            width, height = scaled_size(picture.size, settings.max_pixels)
            prompt_tokens += max(1, width * height // _PIXELS_PER_TOKEN)
    num_counted = sum(tally.replies.values()) - tally.num_uncounted
    reply_tokens = _ASSUMED_REPLY_TOKENS
    if num_counted:
        reply_tokens = tally.completion_tokens / num_counted
    num_requests = num_rows * settings.num
    num_most = num_requests * settings.tries
    return Estimate(
        num_rows,
        num_requests,
        prompt_tokens * settings.num,
        round(num_requests * min(reply_tokens, settings.max_tokens)),
        (num_most, num_most * settings.max_tokens),
    )


def cost(prompt_tokens: int, reply_tokens: int, price: Price) -> float:
    """Return the price of tokens, in the currency of `price`."""
    return (prompt_tokens * price[0] + reply_tokens * price[1]) / 1e6


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


def estimate_lines(need: Estimate, settings: TeachSettings, price: Price | None) -> list[str]:
    """Return an estimate as sentences."""
    lines = [
        f"{need.num_rows:,} rows to ask, {settings.num} completion{'s' * (settings.num > 1)} each: "
        f"{need.num_requests:,} requests, at most {need.at_most[0]:,} with {settings.tries} tries",
        f"estimated tokens: {need.prompt_tokens:,} of prompts, {need.reply_tokens:,} of replies (at most "
        f"{need.at_most[1]:,})",
    ]
    if price:
        expected = cost(need.prompt_tokens, need.reply_tokens, price)
        most = cost(need.prompt_tokens * settings.tries, need.at_most[1], price)
        lines.append(f"estimated cost: {_money(expected)}, at most about {_money(most)}")
    return lines


def report_lines(tally: Tally, price: Price | None, out: Path) -> list[str]:
    """Return what came of it as sentences."""
    ends, replies = tally.ends, tally.replies
    lines = [
        f"{ends['taught']:,} rows with teacher text: {out}",
        f"{tally.num_requests:,} requests, {sum(replies.values()):,} replies: {replies['kept']:,} kept, "
        f"{replies['malformed']:,} malformed, {replies['wrong']:,} wrong",
        f"counted tokens: {tally.prompt_tokens:,} of prompts, {tally.completion_tokens:,} of replies",
    ]
    if tally.num_uncounted:
        lines[-1] += f" (not those of {tally.num_uncounted:,} replies, which came without counts)"
    if price:
        lines.append(f"cost: {_money(cost(tally.prompt_tokens, tally.completion_tokens, price))}")
    left_out = {name: num for name, num in ends.items() if name != "taught" and num}
    if left_out:
        counts = ", ".join(f"{num:,} {name}" for name, num in left_out.items())
        lines.append(f"{sum(left_out.values()):,} rows without: {counts}; the first:")
        lines += [f"  {reason}" for reason in tally.reasons]
    if ends["failed"]:
        lines.append("The same command asks the failed ones again.")
    if tally.num_wrong_kept:
        lines.append(
            f"{tally.num_wrong_kept:,} kept replies do not give the gold answer: `prism-lite data check` "
            "names their rows; --keep-right leaves them out, data.on_bad_row=skip skips them in training."
        )
    return lines

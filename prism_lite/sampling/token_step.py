"""One token of every row: forward, logits, draw. The same code on a CPU and on a card, with another cache.

All that changes from token to token is in tensors that the step changes in place, so that its shapes are
fixed: on a card it is recorded as a CUDA graph, again after rows have left, and replayed, which costs the
host one launch instead of hundreds. Between two checks for finished rows (`check_schedule`) nothing waits
for the card.

Shape letters: R rows in the batch, N rows at the start, C completion tokens, L positions, V vocabulary, d
head size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_lite.config import SamplingConfig
from prism_lite.models.backbone import Backbone
from prism_lite.sampling.decoder import LeanDecoder, run_lean_decoder
from prism_lite.sampling.draw import draw_tokens
from prism_lite.sampling.kv_cache import GroupCache
from prism_lite.sampling.packed_cache import PackedCache

_DROP_SHARE = 1 / 8  # finished rows are dropped when they are this share of the batch
_FEWEST_REPLAYS = 4  # recording costs about two steps of the host


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that decode side by side. A step changes the tensors in place.

    Attributes:
        row_R: their numbers among the N rows of the start.
        token_R: the token drawn last.
        position_R: its M-RoPE position.
        is_ended_R: an end token was drawn; such rows are decoded until they are dropped.
    """

    row_R: Tensor
    token_R: Tensor
    position_R: Tensor
    is_ended_R: Tensor

    def keep(self, rows: list[int]) -> Rows:
        """Return the state of these rows only (ascending)."""
        index = torch.tensor(rows, device=self.row_R.device)
        return Rows(
            *(x[index] for x in (self.row_R, self.token_R, self.position_R, self.is_ended_R))
        )


@dataclass(frozen=True, eq=False)
class Drawings:
    """What every row drew, by token, and the random numbers it draws with.

    Attributes:
        uniform_NC: float64 in [0, 1).
        step_1: the token that is drawn next, the same for all rows.
        suppressed: tokens that are never drawn.
    """

    uniform_NC: Tensor
    token_NC: Tensor
    logprob_NC: Tensor
    entropy_NC: Tensor
    step_1: Tensor
    suppressed: Tensor

    @classmethod
    def of(cls, uniform_NC: Tensor, suppressed_ids: list[int]) -> Drawings:
        """Return drawings of no token yet."""
        shape, device = uniform_NC.shape, uniform_NC.device
        return cls(
            uniform_NC,
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(1, dtype=torch.long, device=device),
            torch.tensor(suppressed_ids, device=device),
        )


def draw_next(
    rows: Rows, drawings: Drawings, logits_RV: Tensor, sampling: SamplingConfig, end_id: int
) -> None:
    """Draw a token per row from its logits, which are changed, and write it down."""
    logits_RV.index_fill_(1, drawings.suppressed, -torch.inf)
    cell = (rows.row_R, drawings.step_1)
    drawn = draw_tokens(logits_RV, drawings.uniform_NC[cell], sampling)
    drawings.token_NC[cell] = drawn.token_R
    drawings.logprob_NC[cell] = drawn.logprob_R
    drawings.entropy_NC[cell] = drawn.entropy_R
    rows.is_ended_R.logical_or_(drawn.token_R == end_id)
    rows.token_R.copy_(drawn.token_R)
    drawings.step_1.add_(1)


def take_step(
    backbone: Backbone,
    decoder: LeanDecoder,
    cache: GroupCache | PackedCache,
    rows: Rows,
    drawings: Drawings,
    rotary_Ld: tuple[Tensor, Tensor],
    sampling: SamplingConfig,
) -> None:
    """Run the decoder on every row's last token and draw the next one."""
    cache.open_slot()
    cos_R1d, sin_R1d = (table_Ld[rows.position_R][:, None] for table_Ld in rotary_Ld)
    rows.position_R.add_(1)
    embedding = backbone.core.get_input_embeddings()
    hidden_RD = run_lean_decoder(
        decoder,
        embedding(rows.token_R),
        lambda layer, qkv: cache.attend_product(decoder, layer, qkv, cos_R1d, sin_R1d),
    )
    draw_next(rows, drawings, backbone.next_logits(hidden_RD), sampling, backbone.end_id)


def check_schedule(device: torch.device) -> tuple[int, int]:
    """Return after how many tokens finished rows are dropped, and of what the rows left are a multiple.

    On a card a check waits for it, and another number of rows is another step to record.
    """
    return (32, 8) if device.type == "cuda" else (1, 1)


def rows_to_keep(is_ended: list[bool], *, multiple: int) -> list[int]:
    """Return the rows that continue: all, or without finished ones if these are an eighth of them.

    Some finished rows are kept so that their number is a multiple of `multiple`. No rows: all are finished.
    """
    num_rows, num_ended = len(is_ended), sum(is_ended)
    if num_ended == num_rows:
        return []
    if num_ended < max(1, _DROP_SHARE * num_rows):
        return list(range(num_rows))
    num_spare = -(num_rows - num_ended) % multiple
    ended = [row for row, ended in enumerate(is_ended) if ended]
    return sorted({*range(num_rows)} - {*ended[num_spare:]})


class StepRunner:
    """Takes token steps: recorded as a CUDA graph and replayed where that is possible, else eagerly."""

    def __init__(self, backbone: Backbone, sampling: SamplingConfig) -> None:
        self._records = _may_record(backbone, sampling)
        self._replay: Callable[[], None] | None = None

    def forget(self) -> None:
        """Drop the recorded step: the next one has other shapes or other memory."""
        self._replay = None

    def take(self, step: Callable[[], None], num_steps: int) -> None:
        """Take steps of the same shapes."""
        for number in range(num_steps):
            if self._replay is not None:
                self._replay()
                continue
            step()  # before a recording, too: libraries load and kernels compile in it
            if self._records and num_steps - number > _FEWEST_REPLAYS:
                self._replay = _recorded(step)
                self._records = self._replay is not None


_failures: list[str] = []  # why recording failed in this process: it is not tried again


def _may_record(backbone: Backbone, sampling: SamplingConfig) -> bool:
    """Check what can be known before a step is recorded."""
    if backbone.device.type != "cuda" or sampling.cuda_graph == "never":
        return False
    if backbone.config.embeddings_on_cpu:
        _warn("model.embeddings_on_cpu looks every token up in the CPU's memory")
        return False
    return not _failures


def _recorded(step: Callable[[], None]) -> Callable[[], None] | None:
    """Record a step without taking it; return what replays it, or None if it cannot be recorded."""
    stream = None
    try:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        # other threads (a page that answers meanwhile) may use the card
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:  # an operation that a graph cannot hold, or no memory for it
        if stream is not None:
            torch.cuda.set_stream(stream)  # torch leaves its own set where ending a recording fails
        cause = error.__context__ or error  # ending it fails because of what failed in it
        _failures.append((str(cause).splitlines() or [type(cause).__name__])[0])
        _warn(f"recording it failed ({_failures[0]})")
        return None
    return graph.replay


def _warn(reason: str) -> None:
    warnings.warn(
        f"sampling takes one operation after another, without a CUDA graph of the token step: {reason}. "
        "sampling.cuda_graph=never does not try.",
        stacklevel=2,
    )

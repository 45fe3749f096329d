"""Guards: named alarms for the ways in which a reward is exploited or stops carrying information.

Pure functions of the completions, rewards or scores of one step. Each returns an Alarm or None; none
changes a reward. `Alarms` logs and prints them in a stage.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prism_lite import parts
from prism_lite.console import say
from prism_lite.parts import Malformed
from prism_lite.types import Group, Rollout

if TYPE_CHECKING:  # the demo reads the guards of a finished run without these
    from prism_lite.discriminator.step import GameScores
    from prism_lite.runs.folder import RunFolder

_MIN_LENGTH_SHARE = 0.4  # of the usual completion length
_MAX_FLAT_SHARE = 0.7  # of groups without spread in reward
_SPREAD_TOLERANCE = 1e-8  # a group whose rewards differ by at most this has no spread
_MAX_UNDECIDED_SHARE = 0.01  # of rollouts whose answer the verifier could not compare
_RUN_WORDS = 4  # words or punctuation marks of a run that may repeat
_MAX_REPEATED = 0.5  # a completion with a larger share of repeated runs loops
_MAX_LOOPING_SHARE = 0.1  # of completions that loop
_MAX_CLAIMING_SHARE = 0.2  # of completions with an answer inside think
_MAX_CAPPED_SHARE = 0.5  # of scores above _CAPPED * cap, where their slope is below a tenth
_CAPPED = 0.95
_MAX_PAIR_ACCURACY = 0.98  # of the discriminator on its own batch
_MIN_HELDOUT_ACCURACY = 0.5  # of the discriminator on held-out pairs: below it, noise is reinforced
_MAX_LOST_PANELS = 3  # in a row
_MAX_TRUNCATED_SHARE = 0.2  # of completions that are cut at the length limit
_MAX_MALFORMED_SHARE = 0.5  # of completions, beside those that are cut
_SFT_STEPS_JUDGED = 10  # mean loss of the first and of the last steps
_FEWEST_SFT_STEPS = 2
_SFT_WORSE = 1.1  # of the loss at the start
_NEAR_CHANCE = 0.02  # of ln V
_ZERO_GRADIENT = 1e-6


@dataclass(frozen=True)
class Alarm:
    """A measured quantity that crossed its limit.

    Attributes:
        name: fixed, for the metrics: "length_collapse", "zero_spread_groups", ...
        value: the quantity.
        limit: the threshold.
        message: one sentence with both and what to do.
    """

    name: str
    value: float
    limit: float
    message: str


def _above_limit(name: str, value: float, limit: float, message: str) -> Alarm | None:
    """Return an alarm if `value` is above `limit`."""
    return Alarm(name, value, limit, message) if value > limit else None


def length_collapse(num_tokens: Sequence[int], *, usual_num_tokens: float) -> Alarm | None:
    """Check for completions far shorter than usual: the policy found that short answers pay.

    Args:
        num_tokens: lengths of this step's completions, in tokens.
        usual_num_tokens: mean length at the start of the stage (or of the teacher).
    """
    if not num_tokens or usual_num_tokens <= 0:
        return None
    share = statistics.fmean(num_tokens) / usual_num_tokens
    if share >= _MIN_LENGTH_SHARE:
        return None
    return Alarm(
        "length_collapse",
        share,
        _MIN_LENGTH_SHARE,
        f"completions are {share:.0%} of their usual length ({usual_num_tokens:.0f} tokens), below "
        f"{_MIN_LENGTH_SHARE:.0%}: read some rollouts; repeat the stage in another --out with a lower "
        "learning rate (STAGE.optim.learning_rate) or a larger rlvr.rewards.format.",
    )


def truncated_completions(is_truncated: Sequence[bool], *, limit: int) -> Alarm | None:
    """Check for completions that are cut at the length limit: they have no answer to reward.

    Args:
        is_truncated: of each completion.
        limit: `sampling.max_completion_tokens`.
    """
    if not is_truncated:
        return None
    share = sum(is_truncated) / len(is_truncated)
    return _above_limit(
        "truncated_completions",
        share,
        _MAX_TRUNCATED_SHARE,
        f"{share:.0%} of the completions are cut at sampling.max_completion_tokens = {limit} (limit "
        f"{_MAX_TRUNCATED_SHARE:.0%}) and have no answer: give another --out with "
        f"sampling.max_completion_tokens={2 * limit}; if they repeat themselves, see repeated_text.",
    )


def malformed_completions(rollouts: Sequence[Rollout]) -> Alarm | None:
    """Check for completions that end by themselves and lack the parts."""
    ended = [rollout for rollout in rollouts if rollout.finish == "end" and not rollout.is_teacher]
    if not ended:
        return None
    malformed = [r.parts.reason for r in ended if isinstance(r.parts, Malformed)]
    share = len(malformed) / len(ended)
    if share <= _MAX_MALFORMED_SHARE:
        return None
    reason = statistics.mode(malformed)
    return Alarm(
        "malformed_completions",
        share,
        _MAX_MALFORMED_SHARE,
        f"{share:.0%} of the completions are malformed (limit {_MAX_MALFORMED_SHARE:.0%}), most often: "
        f"{reason}. The policy does not know the format yet: give another --out with more SFT (a larger "
        "sft.steps), on demonstrations with <caption>, <think> and <answer>.",
    )


def diverged_sft(
    losses: Sequence[float], grad_norm: float, *, vocab_size: int, optim: str
) -> Alarm | None:
    """Check for a supervised loss above its start, or at that of a guess with a gradient of zero.

    Args:
        losses: of the stage's steps so far.
        grad_norm: of the last step.
        vocab_size: V; ln V is the loss of a uniform guess.
        optim: the setting of the learning rate, for the message.
    """
    if not losses:
        return None
    chance, last = math.log(vocab_size), losses[-1]
    again = (
        f"give another --out with a lower {optim} (a tenth of it), or look at the "
        "demonstrations with `prism-lite data check`"
    )
    if not math.isfinite(last) or (
        abs(last - chance) < _NEAR_CHANCE * chance and grad_norm < _ZERO_GRADIENT
    ):
        return Alarm(
            "sft_at_chance",
            last,
            chance,
            f"the loss is {last:.2f}, that of a guess among {vocab_size} tokens is {chance:.2f}, and the "
            f"gradient is {grad_norm:.1g}: the policy is destroyed and learns nothing more; {again}.",
        )
    num_judged = min(_SFT_STEPS_JUDGED, len(losses) // 2)
    if num_judged < _FEWEST_SFT_STEPS:
        return None
    start = statistics.fmean(losses[:num_judged])
    now = statistics.fmean(losses[-num_judged:])
    return _above_limit(
        "sft_diverges",
        now,
        _SFT_WORSE * start,
        f"the mean loss of the last {num_judged} steps is {now:.2f}, above that of the first ones, "
        f"{start:.2f}: training diverges; {again}.",
    )


def zero_spread_groups(
    rewards: Sequence[float], *, group_size: int, largest: float | None = None, causes: str = ""
) -> Alarm | None:
    """Check for groups whose rollouts all got the same reward: the policy learns nothing from them.

    Args:
        rewards: R rewards, rows of one group adjacent.
        group_size: G.
        largest: the largest reward that is possible, where it is known: tells easy from hard.
        causes: other alarms of the step that explain it, by name.
    """
    assert len(rewards) % group_size == 0
    if not rewards or group_size == 1:
        return None
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    share = sum(max(group) - min(group) <= _SPREAD_TOLERANCE for group in groups) / len(groups)
    if causes:
        why = f"see the alarm {causes}, which explains it"
    else:
        flat = [g[0] for g in groups if max(g) - min(g) <= _SPREAD_TOLERANCE]
        num_best = 0 if largest is None else sum(reward >= 0.99 * largest for reward in flat)
        why = "the prompts are too easy or too hard, or the reward does not tell completions apart"
        if largest is not None and flat:
            easy = num_best / len(flat)
            why = f"{easy:.0%} of them have the largest reward (too easy), the others are equally wrong"
        why += (
            "; give another --out with rlvr.dynamic_sampling=true (with rlvr.game=off), a larger "
            "rlvr.group_size, or other rows in data.rlvr"
        )
    return _above_limit(
        "zero_spread_groups",
        share,
        _MAX_FLAT_SHARE,
        f"{share:.0%} of the groups have no spread in reward (limit {_MAX_FLAT_SHARE:.0%}): {why}.",
    )


def unscored_rollouts(rewards: Sequence[float]) -> Alarm | None:
    """Check for rollouts without any reward (NaN): they have advantage 0.

    Args:
        rewards: R rewards; NaN where every reward function returned None.
    """
    if not rewards:
        return None
    share = sum(map(math.isnan, rewards)) / len(rewards)
    return _above_limit(
        "unscored_rollouts",
        share,
        0.0,
        f"{share:.0%} of the rollouts have no reward, because every function of rlvr.rewards returned "
        "None for them: the policy learns nothing from them; give another --out with a reward that always "
        "has a value, as rlvr.rewards.format=0.2.",
    )


def undecided_answers(share: float) -> Alarm | None:
    """Check for answers that the verifier could not compare with the gold answer.

    Args:
        share: of the rollouts, `rewards/accuracy/undecided`.
    """
    return _above_limit(
        "undecided_answers",
        share,
        _MAX_UNDECIDED_SHARE,
        f"the verifier could not compare {share:.1%} of the answers with the gold answer (limit "
        f"{_MAX_UNDECIDED_SHARE:.0%}), so that these rollouts have no reward: read them in the "
        "rollouts (they lack rewards.accuracy); drop rows whose gold answers are long expressions, "
        "or, if memory is short, free some.",
    )


_WORD = re.compile(r"\w+|[^\w\s]")


def repeated_share(text: str) -> float:
    """Return the share of a text's word runs that occurred in it before, near 1 for a loop.

    A text of fewer than two runs' length has none.
    """
    words = _WORD.findall(text)
    num_runs = len(words) - _RUN_WORDS + 1
    if num_runs <= _RUN_WORDS:
        return 0.0
    return 1.0 - len({tuple(words[i : i + _RUN_WORDS]) for i in range(num_runs)}) / num_runs


def repeated_text(completions: Sequence[str]) -> Alarm | None:
    """Check a step's completions for texts that repeat themselves."""
    if not completions:
        return None
    share = sum(repeated_share(text) > _MAX_REPEATED for text in completions) / len(completions)
    return _above_limit(
        "repeated_text",
        share,
        _MAX_LOOPING_SHARE,
        f"{share:.0%} of the completions repeat themselves (limit {_MAX_LOOPING_SHARE:.0%}): read some, "
        "and repeat the stage in another --out with a lower learning rate (STAGE.optim.learning_rate) or "
        "sampling.temperature.",
    )


_ANSWER_CLAIM = re.compile(
    r"<answer>|\\boxed\s*\{|\bfinal answer\s*(?:is|:)|^\s*answer\s*:", re.IGNORECASE | re.MULTILINE
)


def answers_inside_think(completions: Sequence[str]) -> Alarm | None:
    """Check a step's completions for an answer inside <think>: in tags, a box or as "final answer".

    The verifier reads the answer part alone, so this gains nothing; it shows that the policy drifts
    from the format (or that the teacher's data does this). Malformed completions are read too.
    """
    if not completions:
        return None
    share = sum(_claims_in_think(text) for text in completions) / len(completions)
    return _above_limit(
        "answer_inside_think",
        share,
        _MAX_CLAIMING_SHARE,
        f"{share:.0%} of the completions give their answer inside <think> (limit "
        f"{_MAX_CLAIMING_SHARE:.0%}): "
        "check whether the teacher's completions do the same.",
    )


def _claims_in_think(text: str) -> bool:
    start = text.find(f"<{parts.THINK}>")
    if start < 0:
        return False
    end = text.find(f"</{parts.THINK}>", start)
    return bool(_ANSWER_CLAIM.search(text, start, end if end >= 0 else len(text)))


def discriminator_saturation(scores: Sequence[float], *, cap: float) -> Alarm | None:
    """Check for discriminator scores at their cap, where their gradient vanishes.

    Args:
        scores: of teachers and students, as logits after the cap.
        cap: c of the smooth cap c * tanh(s / c).
    """
    if not scores:
        return None
    share = sum(abs(score) > _CAPPED * cap for score in scores) / len(scores)
    return _above_limit(
        "discriminator_saturation",
        share,
        _MAX_CAPPED_SHARE,
        f"{share:.0%} of the scores are at the cap of {cap:g} (limit {_MAX_CAPPED_SHARE:.0%}), where their "
        "gradient vanishes: give another --out with a lower discriminator.optim.learning_rate.",
    )


def discriminator_too_strong(
    teacher_scores: Sequence[float], student_scores: Sequence[float]
) -> Alarm | None:
    """Check for a teacher that wins nearly every pair: what separates them may be out of reach.

    Args:
        teacher_scores, student_scores: one of each per pair, in the same order.
    """
    if not teacher_scores:
        return None
    pairs = zip(teacher_scores, student_scores, strict=True)
    accuracy = sum(teacher > student for teacher, student in pairs) / len(teacher_scores)
    return _above_limit(
        "discriminator_too_strong",
        accuracy,
        _MAX_PAIR_ACCURACY,
        f"the teacher wins {accuracy:.1%} of the pairs (limit {_MAX_PAIR_ACCURACY:.0%}): look for an "
        "artefact that reveals the teacher, or give another --out with a lower "
        "discriminator.optim.learning_rate.",
    )


def losing_discriminator(accuracies: Sequence[tuple[float, float]]) -> Alarm | None:
    """Check for a discriminator that no longer tells the teacher on held-out pairs, on either channel.

    Args:
        accuracies: held-out pair accuracy (perception, reasoning) of each panel so far.
    """
    recent = accuracies[-_MAX_LOST_PANELS:]
    highest = max((max(pair) for pair in recent), default=1.0)
    if len(recent) < _MAX_LOST_PANELS or highest >= _MIN_HELDOUT_ACCURACY:
        return None
    return Alarm(
        "losing_discriminator",
        highest,
        _MIN_HELDOUT_ACCURACY,
        f"the teacher wins at most {highest:.0%} of the held-out pairs on either channel, in "
        f"{_MAX_LOST_PANELS} panels in a row (limit {_MIN_HELDOUT_ACCURACY:.0%}): its scores are noise "
        "by now. Give another --out with fewer align.steps, align.early_stop=true or a larger "
        "discriminator.optim.learning_rate.",
    )


class Alarms:
    """The alarms of one stage: logged at every step that raises them, printed the first time.

    Attributes:
        usual_num_tokens: mean completion length at the stage's first step, None before it.
    """

    def __init__(self, run: RunFolder, stage: str) -> None:
        self._console = run.console
        self._limit = run.config.sampling.max_completion_tokens
        self._stage = stage
        self._printed: set[str] = set()
        lengths = (line.get("completions/mean_length") for line in run.metrics(stage))
        self.usual_num_tokens = next((length for length in lengths if length is not None), None)

    def report(self, alarms: Iterable[Alarm | None], step: int) -> dict[str, float]:
        """Print new alarms; return `alarms/NAME`, the value that crossed its limit, of all of them."""
        metrics = {}
        for alarm in filter(None, alarms):
            metrics[f"alarms/{alarm.name}"] = alarm.value
            if alarm.name not in self._printed:
                self._printed.add(alarm.name)
                say(
                    self._console,
                    f"alarm {alarm.name} in {self._stage} step {step}: {alarm.message} (shown once; "
                    f"metrics: alarms/{alarm.name})",
                    "bold red",
                )
        return metrics

    def of_rollouts(self, groups: Sequence[Group]) -> list[Alarm | None]:
        """Check for completions that are cut or malformed, length collapse, loops, answers in think."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lengths = [len(rollout.token_ids) for rollout in rollouts]
        texts = [rollout.text for rollout in rollouts]
        if self.usual_num_tokens is None:
            self.usual_num_tokens = sum(lengths) / len(lengths)
        return [
            length_collapse(lengths, usual_num_tokens=self.usual_num_tokens),
            repeated_text(texts),
            answers_inside_think(texts),
            truncated_completions([r.finish == "length" for r in rollouts], limit=self._limit),
            malformed_completions(rollouts),
        ]


def game_alarms(game: GameScores, *, score_cap: float) -> list[Alarm | None]:
    """Check for scores at their cap and for a discriminator that wins every pair that is not a tie."""
    teachers: list[float] = []
    students: list[float] = []
    is_tie: list[bool] = []
    rows = zip(game.teacher_P2, game.students, game.ties, strict=True)
    for teacher_2, student_K2, tie_K2 in rows:
        students += student_K2.flatten().tolist()
        teachers += teacher_2.expand_as(student_K2).flatten().tolist()
        is_tie += tie_K2.flatten().tolist()
    pairs = zip(teachers, students, is_tie, strict=True)
    counted = [(teacher, student) for teacher, student, tie in pairs if not tie]
    return [
        discriminator_saturation([*teachers, *students], cap=score_cap),
        discriminator_too_strong([t for t, _ in counted], [s for _, s in counted]),
    ]


def cut_parts(game: GameScores, *, max_part_tokens: int) -> Alarm | None:
    """Check for parts that the discriminator reads without their end."""
    if not game.student_lengths:
        return None
    # Imports torch, which the demo's page does without.
    from prism_lite.discriminator.part_tokens import CUT_WARNING, about_cuts

    share, message = about_cuts(game.teacher_lengths, game.student_lengths, max_part_tokens)
    return _above_limit("cut_parts", share, CUT_WARNING, message)

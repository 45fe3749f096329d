"""The largest work that a recipe allows: longest prompts and completions, largest pictures."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from PIL import Image

from prism_lite.config import AlignConfig, RlvrConfig, RunConfig, WarmupConfig
from prism_lite.digits.task import DIGIT_PIXELS
from prism_lite.discriminator.probes import PROMPTS_PER_CALL
from prism_lite.discriminator.step import JudgedPrompt
from prism_lite.models.backbone import Backbone
from prism_lite.models.packing import Tree
from prism_lite.models.prompts import Prompt, encode_prompt
from prism_lite.parts import Malformed, Parts
from prism_lite.sampling.rollouts import MOST_ROWS
from prism_lite.types import Group, Picture, Rollout, Sample, Stage, Turn

CELL = 32  # a visual token is 32 x 32 pixels
_WORDS_OF_DIGITS = 40  # the longest instruction and question of the embedded task have fewer


class Phase(NamedTuple):
    """A stage and one part of its work.

    Of every step: sampling, the discriminator's update or the policy's. Of some steps of alignment: the
    convergence panel. After a stage: its evaluation and the copy of its weights that is saved.
    """

    stage: Stage
    work: Literal["sample", "judge", "train", "panel", "evaluate"]


PHASES = (
    Phase("sft", "train"),
    Phase("warmup", "sample"), Phase("warmup", "judge"),
    Phase("align", "sample"), Phase("align", "judge"), Phase("align", "train"),
    Phase("align", "panel"),
    Phase("rlvr", "sample"), Phase("rlvr", "judge"), Phase("rlvr", "train"),
    Phase("rlvr", "evaluate"),
)  # fmt: skip


def phases_of(config: RunConfig) -> tuple[Phase, ...]:
    """Return the phases of a run: RLVR has a discriminator only where the game is kept on."""
    left_out = Phase("rlvr", "judge") if config.rlvr.game == "off" else None
    return tuple(phase for phase in PHASES if phase != left_out)


@dataclass(frozen=True, eq=False)
class Workload:
    """Samples with the longest prompts that `backbone` takes, and completions of full length.

    Attributes:
        backbone: real or simulated; its processor counts the tokens.
        config: the recipe.
    """

    backbone: Backbone
    config: RunConfig

    def samples(self, num: int) -> list[Sample]:
        return [self._sample(f"sample {i}", self._num_words) for i in range(num)]

    def prompts(self, num: int) -> list[Prompt]:
        return [self.backbone.prompt(sample) for sample in self.samples(num)]

    def trees(self) -> list[Tree]:
        """Return the demonstrations that fill one pack of the SFT stage."""
        branch = torch.full((self._completion_tokens,), self._word_id)
        return [Tree(prompt, (branch.clone(),)) for prompt in self.prompts(self._trees_per_pack)]

    def groups(self, group_size: int) -> list[Group]:
        """Return one prompt's group, with at most as many rollouts as one pack takes."""
        num_rollouts = self._rollouts_per_pack(group_size)
        rollout = Rollout(
            token_ids=(self._word_id,) * self._completion_tokens,
            text="",
            parts=Malformed("planned"),
            finish="length",
            sampling_logprob_C=torch.zeros(self._completion_tokens),
            sampling_entropy_C=torch.zeros(self._completion_tokens),
        )
        return [Group(self.samples(1)[0], (rollout,) * num_rollouts)]

    def judged(self, stage: Stage) -> list[JudgedPrompt]:
        """Return what one forward of the discriminator takes: the warm-up's groups, or one later group.

        The teacher's parts are as long as they may be. The students' parts are together as long as a
        completion.
        """
        is_warmup = stage == "warmup"
        num_prompts = self.groups_per_pack if is_warmup else 1
        settings = {"warmup": self.config.warmup, "align": self.config.align}.get(
            stage, self.config.rlvr
        )
        num_students = self._students_per_pack(settings.group_size)
        longest = self.config.discriminator.max_part_tokens
        num_caption, num_think = self._caption_and_think_tokens
        teacher, caption, think = ("w " * num for num in (longest, num_caption, num_think))
        student = Parts(caption, think, "w")
        return [
            JudgedPrompt(prompt, Parts(teacher, teacher, "w"), (student,) * num_students)
            for prompt in self.prompts(num_prompts)
        ]

    def panel(self) -> list[JudgedPrompt]:
        """Return what one call of the panel's scores takes: prompts with a teacher and a student each."""
        num_prompts = min(PROMPTS_PER_CALL, self.sampled(Phase("align", "panel"))[1])
        (judged, *_) = self.judged("align")
        return [
            dataclasses.replace(judged, prompt=prompt, students=judged.students[:1])
            for prompt in self.prompts(num_prompts)
        ]

    def sampled(self, phase: Phase) -> tuple[int, int]:
        """Return the group size of a phase that samples, and the most prompts it has."""
        config, (stage, work) = self.config, phase
        if work == "panel":
            return 1, min(config.align.panel_pairs, config.warmup.num_probe)
        if work == "evaluate":
            return config.eval.num_samples, config.eval.num_prompts or MOST_ROWS
        settings: WarmupConfig | AlignConfig | RlvrConfig = getattr(config, stage)
        is_warmup = isinstance(settings, WarmupConfig)
        return (
            settings.group_size,
            settings.num_prompts if is_warmup else settings.prompts_per_step,
        )

    def sampling_batch(self, phase: Phase, max_rows: int) -> tuple[int, int]:
        """Return how many rollouts of a prompt, and how many prompts, are decoded side by side.

        Args:
            max_rows: as `sampling.max_rows`; 0: the most.
        """
        max_rows = max_rows or MOST_ROWS
        group_size, num_prompts = self.sampled(phase)
        at_once = max(1, max_rows // group_size)  # a larger group is split
        return min(group_size, max_rows), min(num_prompts, at_once)

    def step_tokens(self, phase: Phase) -> int:
        """Return the tokens that a step trains on, everything as long as it may be; 1 of other phases."""
        config, (stage, work) = self.config, phase
        if stage == "sft":
            return config.sft.batch_size * (self.prompt_tokens + self._completion_tokens)
        if work not in ("judge", "train"):
            return 1
        group_size, num_prompts = self._group_size(stage), self._num_prompts(stage)
        if work == "judge":
            return num_prompts * self._judged_tokens(group_size)
        return num_prompts * (self.prompt_tokens + group_size * self._completion_tokens)

    def pack_tokens(self, phase: Phase) -> int:
        """Return the tokens of the one pack that is simulated; 1 of phases without one."""
        stage, work = phase
        if stage == "sft":
            return self._trees_per_pack * (self.prompt_tokens + self._completion_tokens)
        if work not in ("judge", "train"):
            return 1
        group_size = self._group_size(stage)
        if work == "judge":
            num_groups = self.groups_per_pack if stage == "warmup" else 1
            return num_groups * self._judged_tokens(self._students_per_pack(group_size))
        return self.prompt_tokens + self._rollouts_per_pack(group_size) * self._completion_tokens

    def _judged_tokens(self, num_students: int) -> int:
        """Tokens of a prompt with its teacher's parts and those of so many students."""
        return self.prompt_tokens + self._teacher_tokens + num_students * sum(self._part_tokens)

    def _group_size(self, stage: Stage) -> int:
        return getattr(self.config, stage).group_size

    def _num_prompts(self, stage: Stage) -> int:
        """Prompts of a step."""
        if stage == "warmup":
            return max(1, self.config.warmup.pairs_per_step // self.config.warmup.group_size)
        return getattr(self.config, stage).prompts_per_step

    @property
    def num_cached_pictures(self) -> int:
        """Pictures whose features are kept, after as many have been used."""
        data, limit = self.config.data, self.config.model.max_cached_pictures
        if data.task != "digits":
            return limit
        return min(limit, data.num_sft + data.num_align + data.num_rlvr + data.num_heldout)

    @property
    def groups_per_pack(self) -> int:
        """Prompts with their teachers and students that one pack of the warm-up takes."""
        config = self.config.warmup
        student_tokens = self._students_per_pack(config.group_size) * sum(self._part_tokens)
        group_tokens = self.prompt_tokens + self._teacher_tokens + student_tokens
        return self._per_pack(group_tokens, config.pairs_per_step // config.group_size)

    @property
    def _trees_per_pack(self) -> int:
        """Demonstrations with their prompts that one pack of the SFT stage takes."""
        tree_tokens = self.prompt_tokens + self._completion_tokens
        return self._per_pack(tree_tokens, self.config.sft.batch_size)

    def _rollouts_per_pack(self, group_size: int) -> int:
        """Completions of one prompt that a pack takes."""
        return self._per_pack(self._completion_tokens, group_size, used=self.prompt_tokens)

    def _students_per_pack(self, group_size: int) -> int:
        """Students of one prompt that go through the discriminator together."""
        if self.config.discriminator.grgc_weight > 0:  # GRGC needs a group in one forward
            return group_size
        used = self.prompt_tokens + self._teacher_tokens
        return self._per_pack(sum(self._part_tokens), group_size, used=used)

    def _per_pack(self, size: int, limit: int, used: int = 0) -> int:
        """How many pieces of `size` tokens a pack takes after `used` others; 1 to `limit`."""
        return max(1, min(limit, (self.config.model.max_pack_tokens - used) // size))

    @property
    def _teacher_tokens(self) -> int:
        return 2 * self.config.discriminator.max_part_tokens

    @property
    def _caption_and_think_tokens(self) -> tuple[int, int]:
        """Tokens of a student's caption (a quarter of a completion) and of its think."""
        longest = self.config.discriminator.max_part_tokens
        num_caption = min(longest, self._completion_tokens // 4)
        return num_caption, min(longest, self._completion_tokens - num_caption)

    @property
    def _part_tokens(self) -> tuple[int, int]:
        """Tokens that the discriminator reads of a student's two parts."""
        num_caption, num_think = self._caption_and_think_tokens
        if self.config.discriminator.reasoning_sees_caption:
            num_think += num_caption
        return num_caption, min(self.config.discriminator.max_part_tokens, num_think)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return len(self.prompts(1)[0])

    @property
    def _completion_tokens(self) -> int:
        return self.config.sampling.max_completion_tokens

    @property
    def _word_id(self) -> int:
        return self.backbone.tokenizer("word")["input_ids"][0]

    def _sample(self, name: str, num_words: int) -> Sample:
        turn = Turn("user", "word " * num_words)
        return Sample(id=name, turns=(turn,), pictures=(Picture(name, self._image),))

    @cached_property
    def _image(self) -> Image.Image:
        data = self.config.data
        if data.task == "digits":
            return Image.new("RGB", (DIGIT_PIXELS * data.digits.max_digits, DIGIT_PIXELS))
        side = max(CELL, int(self.config.model.max_pixels**0.5) // CELL * CELL)
        return Image.new("RGB", (side, side))

    @cached_property
    def _num_words(self) -> int:
        """Words of the question that fill a prompt to the limit.

        Raises:
            ValueError: the picture alone is longer than the limit.
        """
        if self.config.data.task == "digits":
            return _WORDS_OF_DIGITS
        limit = self.config.model.max_prompt_tokens
        # how many of 0, 1, 2, ... words give a prompt within the limit; a word has a token at least
        num_words = bisect_right(range(limit), limit, key=self._count_tokens) - 1
        if num_words <= 0:
            raise ValueError(
                f"a picture of model.max_pixels = {self.config.model.max_pixels} makes a prompt of "
                f"{self._count_tokens(0)} tokens, more than model.max_prompt_tokens = {limit}: lower "
                "the one or raise the other."
            )
        return num_words

    def _count_tokens(self, num_words: int) -> int:
        prompt = encode_prompt(
            self._sample("", num_words),
            processor=self.backbone.processor,
            core=self.backbone.core,
            max_tokens=2**30,
        )
        return len(prompt)

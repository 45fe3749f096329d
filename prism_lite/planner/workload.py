"""The largest work that a recipe allows: longest prompts and completions, largest pictures.

Shape letters: P prompt tokens, C completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from PIL import Image

from prism_lite.config import RunConfig
from prism_lite.digits.task import DIGIT_PIXELS
from prism_lite.discriminator.step import JudgedPrompt
from prism_lite.models.backbone import Backbone
from prism_lite.models.packing import Tree
from prism_lite.models.prompts import Prompt
from prism_lite.parts import Malformed, Parts
from prism_lite.sampling.rollouts import MOST_ROWS
from prism_lite.types import Group, Picture, Rollout, Sample, Turn

CELL = 32  # a visual token is 32 x 32 pixels
WORDS_OF_DIGITS = 40  # the longest instruction and question of the embedded task have fewer


Stage = Literal["sft", "warmup", "align", "rlvr"]
PhaseName = Literal["train", "judge", "sample"]
PHASES: dict[Stage, tuple[PhaseName, ...]] = {
    "sft": ("train",),
    "warmup": ("sample", "judge"),
    "align": ("sample", "judge", "train"),
    "rlvr": ("sample", "train"),
}


@dataclass(frozen=True, eq=False)
class Workload:
    """Samples with the longest prompts that `backbone` takes, and completions of full length.

    Attributes:
        backbone: real or simulated; its processor counts the tokens.
        config: the recipe.
        num_draws: tokens decoded before all rows end; fewer than a completion's where the rest is
            extrapolated.
    """

    backbone: Backbone
    config: RunConfig
    num_draws: int

    @property
    def completion_tokens(self) -> int:
        return self.config.sampling.max_completion_tokens

    @property
    def num_cached_pictures(self) -> int:
        """Pictures whose features are kept, when as many have been seen."""
        data, most = self.config.data, self.config.model.max_cached_pictures
        if data.task != "digits":
            return most
        return min(most, data.num_sft + data.num_align + data.num_rlvr + data.num_heldout)

    def num_units(self, stage: Stage, phase: PhaseName) -> int:
        """How often a step repeats what a phase runs once."""
        config = self.config
        if phase == "sample":
            rows, at_once = sampling_batch(config, stage)
            settings = {"align": config.align, "rlvr": config.rlvr}.get(stage)
            if settings is None:
                return 0  # once, not per step
            return -(-settings.prompts_per_step // at_once) * -(-settings.group_size // rows)
        if stage == "sft":
            return -(-config.sft.batch_size // self.trees_per_pack)
        if stage == "warmup":
            return -(-config.warmup.pairs_per_step // self.pairs_per_pack)
        settings = config.align if stage == "align" else config.rlvr
        if phase == "judge":
            pieces = -(-config.align.group_size // self.students_per_pack)
            return settings.prompts_per_step * pieces
        return settings.prompts_per_step * -(-settings.group_size // self.rollouts_per_pack)

    @cached_property
    def _image(self) -> Image.Image:
        data = self.config.data
        if data.task == "digits":
            return Image.new("RGB", (DIGIT_PIXELS * data.digits.max_digits, DIGIT_PIXELS))
        side = max(CELL, int(self.config.model.max_pixels**0.5) // CELL * CELL)
        return Image.new("RGB", (side, side))

    @cached_property
    def _num_words(self) -> int:
        """Words of the question that fill a prompt to the limit."""
        if self.config.data.task == "digits":
            return WORDS_OF_DIGITS
        limit = self.config.model.max_prompt_tokens
        empty, one = (self._encoded(self._sample("", n)) for n in (0, 200))
        words = int((limit - len(empty)) / max(1, len(one) - len(empty)) * 200)
        while words > 0 and len(self._encoded(self._sample("", words))) > limit:
            words -= max(1, words // 100)
        if words <= 0:
            raise ValueError(
                f"a picture of model.max_pixels = {self.config.model.max_pixels} makes a prompt of "
                f"{len(empty)} tokens, more than model.max_prompt_tokens = {limit}: lower the one or "
                "raise the other."
            )
        return words

    def _sample(self, name: str, num_words: int) -> Sample:
        turn = Turn("user", "word " * num_words)
        return Sample(id=name, turns=(turn,), pictures=(Picture(name, self._image),))

    def _encoded(self, sample: Sample) -> Prompt:
        from prism_lite.models.prompts import encode_prompt

        return encode_prompt(
            sample,
            processor=self.backbone.processor,
            core=self.backbone.core,
            max_tokens=2**30,
        )

    def samples(self, num: int) -> list[Sample]:
        return [self._sample(f"sample {i}", self._num_words) for i in range(num)]

    def prompts(self, num: int) -> list[Prompt]:
        return [self.backbone.prompt(sample) for sample in self.samples(num)]

    def trees(self) -> list[Tree]:
        """Demonstrations that fill one pack of the SFT stage."""
        branch = torch.full((self.completion_tokens,), self._word_id)
        return [Tree(prompt, (branch.clone(),)) for prompt in self.prompts(self.trees_per_pack)]

    @property
    def trees_per_pack(self) -> int:
        """Demonstrations with their prompts that one pack of the SFT stage takes."""
        size = len(self.prompts(1)[0]) + self.completion_tokens
        return min(self.config.sft.batch_size, max(1, self.config.model.max_pack_tokens // size))

    @property
    def rollouts_per_pack(self) -> int:
        """Completions of one prompt that a pack takes."""
        room = self.config.model.max_pack_tokens - len(self.prompts(1)[0])
        return max(1, room // self.completion_tokens)

    @property
    def pairs_per_pack(self) -> int:
        """Teacher-student pairs of different prompts that one pack of the warm-up takes."""
        teacher = 2 * self.config.discriminator.max_part_tokens
        size = len(self.prompts(1)[0]) + teacher + sum(self._part_tokens)
        at_once = max(1, self.config.model.max_pack_tokens // size)
        return min(self.config.warmup.pairs_per_step, at_once)

    def groups(self, group_size: int) -> list[Group]:
        """One prompt's group; no more rollouts than one pack takes."""
        num = min(group_size, self.rollouts_per_pack)
        rollout = Rollout(
            token_ids=(self._word_id,) * self.completion_tokens,
            text="",
            parts=Malformed("planned"),
            finish="length",
            sampling_logprob_C=torch.zeros(self.completion_tokens),
            sampling_entropy_C=torch.zeros(self.completion_tokens),
        )
        return [Group(self.samples(1)[0], (rollout,) * num)]

    def judged(self, num_prompts: int, num_students: int) -> list[JudgedPrompt]:
        """Prompts with a teacher whose parts are as long as they may be, and students whose parts
        are together as long as a completion: a quarter of it the caption.
        """
        longest = self.config.discriminator.max_part_tokens
        num_caption, num_think = self._part_tokens
        teacher, caption, think = ("w " * num for num in (longest, num_caption, num_think))
        student = Parts(caption, think, "w")
        return [
            JudgedPrompt(prompt, Parts(teacher, teacher, "w"), (student,) * num_students)
            for prompt in self.prompts(num_prompts)
        ]

    @property
    def _part_tokens(self) -> tuple[int, int]:
        longest = self.config.discriminator.max_part_tokens
        num_caption = min(longest, self.completion_tokens // 4)
        return num_caption, min(longest, self.completion_tokens - num_caption)

    @property
    def students_per_pack(self) -> int:
        """Students of one prompt that go through the discriminator together."""
        if self.config.discriminator.grgc_weight > 0:
            return self.config.align.group_size
        taken = len(self.prompts(1)[0]) + 2 * self.config.discriminator.max_part_tokens
        room = self.config.model.max_pack_tokens - taken
        return max(1, min(self.config.align.group_size, room // sum(self._part_tokens)))

    @property
    def _word_id(self) -> int:
        return self.backbone.tokenizer("word")["input_ids"][0]


def sampling_batch(config: RunConfig, stage: Stage) -> tuple[int, int]:
    """Rollouts of a prompt, and prompts, that are decoded side by side."""
    max_rows = config.sampling.max_rows or MOST_ROWS
    if stage == "warmup":
        return 1, min(config.warmup.num_prompts, max_rows)
    settings = config.align if stage == "align" else config.rlvr
    at_once = max(1, max_rows // settings.group_size)  # a larger group is parted
    return min(settings.group_size, max_rows), min(settings.prompts_per_step, at_once)

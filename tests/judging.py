"""A trunk, a woken discriminator and parts to judge: shared by the discriminator's tests."""

from __future__ import annotations

import torch

from prism_lite.config import DiscriminatorConfig
from prism_lite.discriminator.model import discriminator_for
from prism_lite.models.backbone import TRUNK
from prism_lite.parts import Parts
from tests.micro import fill_adapter

CONFIG = DiscriminatorConfig(num_experts=4, rank=4, adapted_fraction=0.5)
TEACHER = Parts("- digits: 3,7", "first 3,last 7,so no", "no")
STUDENTS = (
    Parts("- the row 3-1", "first 3,last 1,so yes", "yes"),
    Parts("- two digits\n- left to right 3,7", "3 is not greater than 7", "no"),
)


def with_trunk(backbone):
    """A frozen trunk adapter that differs from the policy, as after SFT and some alignment."""
    fill_adapter(backbone, seed=1, scale=0.1)
    backbone.freeze_copy(TRUNK)
    fill_adapter(backbone, seed=2, scale=0.1)
    return backbone


def woken(backbone, config=CONFIG):
    """A discriminator whose experts and heads do something."""
    discriminator = discriminator_for(backbone, config, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in discriminator.experts:
            layer.B.copy_(torch.randn(layer.B.shape, generator=generator))
        for head in (discriminator.perception_head, discriminator.reasoning_head):
            head.copy_(0.3 * torch.randn(head.shape, generator=generator))
    return discriminator


def prompts_of(backbone, task, num):
    return [backbone.prompt(sample) for sample in task.align[:num]]

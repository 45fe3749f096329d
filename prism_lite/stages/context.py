"""What every stage is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prism_lite.config import RunConfig
from prism_lite.data.task import TaskData
from prism_lite.discriminator.model import Discriminator, discriminator_for
from prism_lite.models.backbone import POLICY, TRUNK, Backbone
from prism_lite.runs.folder import RunFolder
from prism_lite.stages.replay import Replay


@dataclass(frozen=True)
class Context:
    """Settings, folder, model and data of a run."""

    config: RunConfig
    run: RunFolder
    backbone: Backbone
    task: TaskData

    def load_policy(self, stage: str) -> None:
        """The policy as a finished stage left it."""
        self.backbone.load_adapter_state(self.run.load_final(stage)["policy"])

    def load_discriminator(self, stage: str) -> Discriminator:
        """The discriminator as a finished stage left it, on its trunk.

        The policy is touched on the way: load it afterwards.
        """
        discriminator = self.new_discriminator()
        discriminator.load_state_dict(self.run.load_final(stage)["discriminator"])
        return discriminator

    def new_discriminator(self) -> Discriminator:
        """A fresh discriminator; its trunk is the frozen SFT adapter, or the bare backbone."""
        config = self.config.discriminator
        if config.trunk == "sft":
            self.backbone.load_adapter_state(self.run.load_final("sft")["policy"], TRUNK)
        return discriminator_for(self.backbone, config, seed=self.config.seed)

    def resume(
        self,
        stage: str,
        optimizers: Mapping[str, Any],
        discriminator: Discriminator | None = None,
        replay: Replay | None = None,
    ) -> int:
        """Load the stage's newest good checkpoint into model, optimizers and replay buffer.

        Returns:
            Steps already done; 0 without a checkpoint.
        """
        restored = self.run.restore(stage)
        if restored is None:
            return 0
        if "policy" in restored.tensors:
            self.backbone.load_adapter_state(restored.tensors["policy"], POLICY)
        if discriminator is not None:
            discriminator.load_state_dict(restored.tensors["discriminator"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(restored.optimizers[name])
        if replay is not None:
            replay.load(restored.values["replay"])
        return restored.step

"""The arguments of every stage, and how a stage resumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prism_lite.config import OptimConfig, RunConfig
from prism_lite.data.task import TaskData
from prism_lite.discriminator.model import Discriminator, discriminator_for
from prism_lite.models.backbone import TRUNK, Backbone
from prism_lite.models.optim import Optimizer, make_optimizer
from prism_lite.rewards.load import Reward
from prism_lite.runs.checkpoint import Trained, needed_files
from prism_lite.runs.folder import RunFolder
from prism_lite.stages.in_stage import InStageEvaluation


class Buffer(Protocol):
    """What a stage remembers besides tensors, as JSON-able state: replay, running spread, best loss."""

    def state(self) -> Any: ...
    def load(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Context:
    """Settings, folder, model, data and reward functions of a run."""

    config: RunConfig
    run: RunFolder
    backbone: Backbone
    task: TaskData
    rewards: tuple[Reward, ...] = ()

    @property
    def reward_weights(self) -> dict[str, float]:
        """The weight of each reward, by name."""
        return {reward.name: reward.weight for reward in self.rewards}

    def load_policy(self, stage: str) -> None:
        """Load the policy of a finished stage."""
        self.backbone.load_adapter_state(self.run.load_final(stage)["policy"])

    def load_discriminator(self, stage: str) -> Discriminator:
        """Load the discriminator of a finished stage, on its trunk.

        This overwrites the policy's adapter: load the policy afterwards.
        """
        discriminator = self.new_discriminator()
        discriminator.load_state_dict(self.run.load_final(stage)["discriminator"])
        return discriminator

    def new_discriminator(self) -> Discriminator:
        """Build a fresh discriminator; its trunk is the frozen SFT adapter or the bare backbone."""
        config = self.config.discriminator
        if config.trunk == "sft":
            self.backbone.load_adapter_state(self.run.load_final("sft")["policy"], TRUNK)
        return discriminator_for(self.backbone, config, seed=self.config.seed)

    def optimizer(
        self, optim: OptimConfig, discriminator: Discriminator | None = None
    ) -> Optimizer:
        """Build an optimizer of the discriminator if it is given, otherwise of the policy."""
        parameters = (
            self.backbone.policy_parameters()
            if discriminator is None
            else list(discriminator.parameters())
        )
        return make_optimizer(parameters, optim, scales_loss=self.backbone.precision.scales_loss)

    def steps(
        self,
        stage: str,
        num_steps: int,
        optimizers: Mapping[str, Optimizer],
        *,
        discriminator: Discriminator | None = None,
        buffers: Mapping[str, Buffer] | None = None,
    ) -> Iterator[int]:
        """Load the newest good checkpoint of a stage and return an iterator of its remaining steps.

        If the stage trains the policy, the iterator evaluates it inside the stage (`eval.every`), after
        a step and before its checkpoint. When the iterator ends, the backbone has the policy that the
        stage passes to the next one (`eval.keep`).

        Args:
            optimizers: of "policy" and "discriminator": what the stage trains.
            discriminator, buffers: loaded from the checkpoint and saved in the next ones.

        Raises:
            Stopped: see `RunFolder.steps`.
        """
        inside = None
        if "policy" in optimizers and self.config.eval.every:
            inside = InStageEvaluation(
                self.config, self.run, self.backbone, self.task, stage=stage, num_steps=num_steps
            )

        def trained() -> Trained:
            tensors, values = ({}, {}) if inside is None else inside.saved()
            if "policy" in optimizers:
                tensors["policy"] = self.backbone.adapter_state()
            if discriminator is not None:
                tensors["discriminator"] = discriminator.state_dict()
            values |= {name: buffer.state() for name, buffer in (buffers or {}).items()}
            return Trained(tensors, optimizers, values)

        trains_policy = ["policy"] if "policy" in optimizers else []
        judges = [] if discriminator is None else ["discriminator"]
        restored = self.run.restore(
            stage,
            needed_files([*trains_policy, *judges], optimizers.keys(), (buffers or {}).keys()),
        )
        if restored is not None:
            if "policy" in optimizers:
                self.backbone.load_adapter_state(restored.tensors["policy"])
            if discriminator is not None:
                discriminator.load_state_dict(restored.tensors["discriminator"])
            for name, buffer in (buffers or {}).items():
                buffer.load(restored.values[name])
            if inside is not None:
                inside.restore(restored.tensors, restored.values)
            for name, optimizer in optimizers.items():
                optimizer.load_state_dict(restored.optimizers[name])
        start = 0 if restored is None else restored.step
        steps = self.run.steps(stage, start, num_steps, trained)
        return steps if inside is None else _evaluated(steps, inside)


def _evaluated(steps: Iterator[int], inside: InStageEvaluation) -> Iterator[int]:
    """Yield the steps; evaluate after each before `steps`, which then saves a checkpoint, continues."""
    for step in steps:
        yield step
        inside.after_step(step)
    inside.finish()

"""The measured parts of the engine's benchmark: ours beside transformers, TRL and the official way."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from prism_lite.config import DiscriminatorConfig, OptimConfig, PolicyLossConfig, SamplingConfig
from prism_lite.discriminator.losses import bradley_terry_loss, cap_scores
from prism_lite.discriminator.model import Discriminator, discriminator_for
from prism_lite.discriminator.step import JudgedPrompt, discriminator_step
from prism_lite.models.backbone import Backbone
from prism_lite.models.optim import make_optimizer, optimizer_step
from prism_lite.models.packing import Tree, forward_pack, pack_trees
from prism_lite.models.vision import encode_pictures
from prism_lite.parts import Parts
from prism_lite.policy.step import update_policy
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.types import Group, Sample
from tests.bench.engine_cases import (
    COMPLETION_TOKENS,
    GROUP_SIZE,
    forget_pictures,
    make_sample,
    processor_inputs,
)
from tests.bench.engine_measure import median_ratio, paired_seconds, peak_mib, token_passes

SAMPLING = SamplingConfig(max_completion_tokens=COMPLETION_TOKENS)


def ours_sample(backbone: Backbone, sample: Sample, group_size: int = GROUP_SIZE) -> list[Group]:
    return sample_groups(
        backbone,
        [sample],
        group_size=group_size,
        sampling=SAMPLING,
        seed=(0,),
    )


def generate(backbone: Backbone, inputs: dict[str, Any]) -> None:
    """transformers' own way: the prompt once per sequence."""
    backbone.core.config.text_config._attn_implementation = "sdpa"
    with torch.inference_mode():
        output = backbone.core.generate(
            **inputs,
            do_sample=True,
            num_return_sequences=GROUP_SIZE,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=COMPLETION_TOKENS,
            min_new_tokens=COMPLETION_TOKENS,
            eos_token_id=None,
            pad_token_id=backbone.pad_id,
            use_cache=True,
        )
    num_prompt = inputs["input_ids"].shape[1]
    assert output.shape == (GROUP_SIZE, num_prompt + COMPLETION_TOKENS)


def rollouts(backbone: Backbone, num_tokens: int, repeats: int) -> dict[str, float]:
    """(a) One group of rollouts against `generate(num_return_sequences=G)`; the picture is new."""
    sample = make_sample(num_tokens, backbone)
    inputs = processor_inputs(backbone, sample)
    assert inputs["input_ids"][0].tolist() == backbone.prompt(sample).token_ids_P.tolist()
    seconds = paired_seconds(
        {
            "theirs": lambda: generate(backbone, inputs),
            "ours": lambda: ours_sample(backbone, sample),
        },
        repeats,
        lambda: forget_pictures(backbone),
    )
    num_generated = GROUP_SIZE * COMPLETION_TOKENS
    return {
        "ours_tokens_per_s": num_generated / statistics.median(seconds["ours"]),
        "theirs_tokens_per_s": num_generated / statistics.median(seconds["theirs"]),
        "ratio": median_ratio(seconds, "theirs", "ours"),
    }


def reward_of(token_ids: tuple[int, ...]) -> float:
    """Some reward with spread: the share of even tokens."""
    return sum(token % 2 == 0 for token in token_ids) / len(token_ids)


def ours_grpo_step(backbone: Backbone, optimizer: Any, sample: Sample, group_size: int) -> None:
    """Sample a group, reward it, and take one policy step: everything TRL's step does."""
    groups = ours_sample(backbone, sample, group_size)
    reward_R = torch.tensor([reward_of(r.token_ids) for r in groups[0].rollouts])
    update_policy(
        backbone,
        optimizer,
        groups,
        reward_R - reward_R.mean(),
        sampling=SAMPLING,
        optim=OptimConfig(1e-5),
        learning_rate=1e-5,
        loss=PolicyLossConfig(),
    )


def teacher_and_students(backbone: Backbone, num_students: int) -> tuple[Parts, list[Parts]]:
    """Parts of about COMPLETION_TOKENS tokens a completion, as warm and distinct as data."""

    def make(number: int) -> Parts:
        digits = "".join(str((number * 7 + i) % 10) for i in range(COMPLETION_TOKENS // 2 - 8))
        return Parts(digits[: len(digits) // 2], digits, digits[:2])

    return make(0), [make(number + 1) for number in range(num_students)]


def official_step(
    backbone: Backbone,
    discriminator: Discriminator,
    optimizer: Any,
    judged: JudgedPrompt,
    *,
    with_tower: bool,
) -> None:
    """The official arrangement from our parts: per rollout four whole sequences (teacher and student,
    perception and reasoning), the prompt in each, the picture encoded for each; gradients accumulated.

    Its separate forward for the reward is left out, in its favour.
    """
    heads = torch.stack([discriminator.perception_head, discriminator.reasoning_head])
    prompt = judged.prompt
    features = backbone.vision.features(prompt.pictures)
    for student in judged.students:
        branches = [
            branch
            for parts in (judged.teacher, student)
            for branch in discriminator.part_tokens(backbone, parts).branches
        ]
        pack = pack_trees([Tree(prompt, (branch,)) for branch in branches])
        if with_tower:
            with torch.no_grad():
                found = encode_pictures(
                    backbone.core, backbone.processor.image_processor, [*prompt.pictures] * 4
                )
        else:
            found = features * 4
        with backbone.role("discriminator"):
            with discriminator._attached(backbone, pack):
                hidden_FD = forward_pack(backbone.core, pack, found, checkpoint=False)
            feature_4D = torch.cat(
                [
                    hidden_FD[pack.last_R],
                    discriminator._likelihood_features(backbone, pack, hidden_FD),
                ],
                1,
            )
            raw_4 = (feature_4D * heads.repeat(2, 1)).sum(1)
            score_22 = cap_scores(raw_4, discriminator.config.score_cap).view(2, 2)
            loss = sum(bradley_terry_loss(score_22[:1, c], score_22[1:, c]) for c in (0, 1))
            (loss / len(judged.students)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer_step(optimizer, list(discriminator.parameters()), 1e-3, 1.0)


def discriminator(backbone: Backbone, num_tokens: int, repeats: int) -> dict[str, float]:
    """(c) One discriminator step on a group: ours with nothing cached, ours on a prompt seen before,
    and the official arrangement with and without its repeated vision tower."""
    config = DiscriminatorConfig(trunk="base")
    sample = make_sample(num_tokens, backbone)
    teacher, students = teacher_and_students(backbone, GROUP_SIZE)
    judged = JudgedPrompt(backbone.prompt(sample), teacher, tuple(students))
    network = discriminator_for(backbone, config, seed=0)
    optimizer = make_optimizer(list(network.parameters()), OptimConfig(1e-3))

    def ours(*, is_new: bool) -> None:
        if is_new:
            forget_pictures(backbone)
            network.prompt_cache = discriminator_for(backbone, config, seed=0).prompt_cache
        discriminator_step(
            backbone, network, optimizer, [judged], config, learning_rate=1e-3, max_grad_norm=1.0
        )

    end_id, backbone.end_id = (
        backbone.end_id,
        backbone.tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    actions = {
        "official": lambda: official_step(backbone, network, optimizer, judged, with_tower=True),
        "official_decoder": lambda: official_step(
            backbone, network, optimizer, judged, with_tower=False
        ),
        "new": lambda: ours(is_new=True),
        "seen": lambda: ours(is_new=False),
    }
    seconds = paired_seconds(actions, repeats, lambda: None)
    memory = {name: peak_mib(action) for name, action in actions.items()}
    backbone.end_id = end_id
    return {
        "ours_s": statistics.median(seconds["new"]),
        "ours_seen_s": statistics.median(seconds["seen"]),
        "theirs_s": statistics.median(seconds["official"]),
        "theirs_decoder_s": statistics.median(seconds["official_decoder"]),
        "ratio": median_ratio(seconds, "official", "new"),
        "ratio_decoder": median_ratio(seconds, "official_decoder", "new"),
        "ratio_seen": median_ratio(seconds, "official", "seen"),
        "ours_mib": memory["new"],
        "theirs_mib": memory["official"],
    }


def passes(backbone: Backbone, num_tokens: int) -> dict[str, float]:
    """(d) Decoder token passes of one group over the floor: each prompt token once, each completion
    token once, in rollouts, in the policy's forward and in the discriminator's."""
    sample = make_sample(num_tokens, backbone)
    prompt = backbone.prompt(sample)
    floor = len(prompt) + GROUP_SIZE * COMPLETION_TOKENS
    with token_passes(backbone) as sampled:
        groups = ours_sample(backbone, sample)
    branches = tuple(torch.tensor(rollout.token_ids) for rollout in groups[0].rollouts)
    with token_passes(backbone) as trained, torch.no_grad():
        backbone.hidden_states(pack_trees([Tree(prompt, branches)]))
    config = DiscriminatorConfig(trunk="base")
    network = discriminator_for(backbone, config, seed=0)
    teacher, students = teacher_and_students(backbone, GROUP_SIZE)
    end_id, backbone.end_id = (
        backbone.end_id,
        backbone.tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    parts = [b for p in (teacher, *students) for b in network.part_tokens(backbone, p).branches]
    with token_passes(backbone) as judged, torch.no_grad(), backbone.role("discriminator"):
        network.score(backbone, [(prompt, (teacher, *students))])
    backbone.end_id = end_id
    return {
        "rollouts": sampled["tokens"] / floor,
        "policy": trained["tokens"] / floor,
        "discriminator": judged["tokens"] / (len(prompt) + sum(map(len, parts))),
    }


def growth(backbone: Backbone, num_tokens: int, group_size: int, repeats: int) -> dict[str, float]:
    """(e) Seconds and peak memory of one whole step of ours."""
    sample = make_sample(num_tokens, backbone)
    optimizer = make_optimizer(backbone.policy_parameters(), OptimConfig(1e-5))

    def step() -> None:
        ours_grpo_step(backbone, optimizer, sample, group_size)

    seconds = paired_seconds({"ours": step}, repeats, lambda: forget_pictures(backbone))
    forget_pictures(backbone)
    return {"s": statistics.median(seconds["ours"]), "mib": peak_mib(step)}

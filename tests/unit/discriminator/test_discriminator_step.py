"""What a discriminator step trains, and that roles leave everything else alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prism_lite.config import OptimConfig
from prism_lite.discriminator.model import Discriminator, discriminator_for
from prism_lite.discriminator.step import JudgedPrompt, discriminator_step
from prism_lite.models.backbone import POLICY
from prism_lite.models.optim import Optimizer, make_optimizer
from prism_lite.parts import Parts
from tests.judging import CONFIG, STUDENTS, TEACHER, prompts_of, with_trunk, woken
from tests.micro import fill_adapter


def test_only_the_discriminator_gets_a_gradient(backbone, task):
    with_trunk(backbone)
    discriminator = woken(backbone)
    with backbone.role("discriminator"):
        scores = discriminator.score(
            backbone, [(prompts_of(backbone, task, 1)[0], (TEACHER, *STUDENTS))]
        )
        (scores.perception_K.sum() + scores.reasoning_K.square().sum()).backward()
    for name, parameter in backbone.core.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_discriminator_step_moves_nothing_but_the_discriminator(backbone, task):
    with_trunk(backbone)
    discriminator = woken(backbone)
    before = {k: v.clone() for k, v in backbone.core.state_dict().items()}
    own = {k: v.clone() for k, v in discriminator.state_dict().items()}
    optimizer = make_optimizer(list(discriminator.parameters()), OptimConfig(1e-2))
    judged = [JudgedPrompt(prompts_of(backbone, task, 1)[0], TEACHER, STUDENTS)]
    game = discriminator_step(
        backbone, discriminator, optimizer, judged, CONFIG, learning_rate=1e-2, max_grad_norm=1.0
    )
    assert all(torch.equal(before[k], v) for k, v in backbone.core.state_dict().items())
    assert all(not torch.equal(own[k], v) for k, v in discriminator.state_dict().items())
    assert not game.teacher_P2.requires_grad
    assert game.students[0].shape == (2, 2)


def test_steps_on_a_pair_widen_its_margin(backbone, task):
    with_trunk(backbone)
    discriminator = discriminator_for(backbone, CONFIG, seed=0)
    optimizer = make_optimizer(list(discriminator.parameters()), OptimConfig(1e-2))
    judged = [JudgedPrompt(prompts_of(backbone, task, 1)[0], TEACHER, STUDENTS[:1])]
    margins = [
        discriminator_step(
            backbone,
            discriminator,
            optimizer,
            judged,
            CONFIG,
            learning_rate=1e-2,
            max_grad_norm=1.0,
        ).metrics
        for _ in range(6)
    ]
    for channel in ("perception", "reasoning"):
        name = f"disc/margin_{channel}"
        assert margins[-1][name] > margins[0][name] + 0.05
    assert margins[-1]["disc/loss"] < margins[0]["disc/loss"]


def test_a_discriminator_step_in_batches_equals_one_forward(backbone, task):
    """Gradient accumulation over packs: the same loss and the same new weights."""
    with_trunk(backbone)
    prompts = prompts_of(backbone, task, 3)
    judged = [
        JudgedPrompt(prompts[0], TEACHER, STUDENTS),
        JudgedPrompt(prompts[1], STUDENTS[1], STUDENTS[:1]),
        JudgedPrompt(prompts[2], TEACHER, STUDENTS[:1]),
    ]
    # the balance loss and the score penalty are means over packs: left out for an exact comparison
    config = dataclasses.replace(CONFIG, balance_weight=0.0, score_penalty=0.0)
    metrics, gradients = [], []
    for limit in (8192, 160):
        backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=limit)
        discriminator = woken(backbone, config)
        optimizer = Optimizer(
            torch.optim.SGD(discriminator.parameters(), lr=1.0),
            torch.amp.GradScaler("cpu", enabled=False),
        )
        before = [p.detach().clone() for p in discriminator.parameters()]
        game = discriminator_step(
            backbone, discriminator, optimizer, judged, config, learning_rate=1.0, max_grad_norm=1.0
        )
        metrics.append(game.metrics)
        gradients.append(
            [b - p.detach() for b, p in zip(before, discriminator.parameters(), strict=True)]
        )
    assert metrics[0]["disc/loss"] == pytest.approx(metrics[1]["disc/loss"], abs=1e-4)
    for at_once, in_batches in zip(*gradients, strict=True):
        torch.testing.assert_close(in_batches, at_once, rtol=1e-3, atol=1e-4)


def test_a_group_split_over_packs_keeps_each_part_on_its_channel(backbone, task):
    """Cut between a perception and a reasoning part, every later part would change places."""
    with_trunk(backbone)
    discriminator = woken(backbone)
    prompt = prompts_of(backbone, task, 1)[0]
    completions = (TEACHER, *STUDENTS, STUDENTS[1], TEACHER)
    longest = sum(map(len, discriminator.part_tokens(backbone, STUDENTS[1]).branches))
    found = []
    with torch.no_grad(), backbone.role("discriminator"):
        for limit in (8192, len(prompt) + 2 * longest - 1):
            backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=limit)
            scores = discriminator.score(backbone, [(prompt, completions)])
            found.append(torch.stack([scores.perception_K, scores.reasoning_K]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


def test_gradients_with_checkpointing_are_those_without(make_backbone, task):
    """The backward must not run the forward again after the experts have been taken off."""
    gradients = []
    for is_on in (False, True):
        backbone = with_trunk(make_backbone(model__gradient_checkpointing=is_on))
        discriminator = woken(backbone)
        with backbone.role("discriminator"):
            scores = discriminator.score(
                backbone, [(prompts_of(backbone, task, 1)[0], (TEACHER, *STUDENTS))]
            )
            loss = scores.perception_K.sum() + scores.reasoning_K.square().sum()
            gradients.append(torch.autograd.grad(loss, list(discriminator.parameters())))
    for without, with_it in zip(*gradients, strict=True):
        assert without.any()
        torch.testing.assert_close(with_it, without, rtol=0, atol=1e-6)


def active_adapters(backbone) -> set[str]:
    """What the LoRA layers themselves say, whether enabled or not."""
    found = set()
    for module in backbone.core.modules():
        if hasattr(module, "lora_A"):
            found.add("none" if module.disable_adapters else ",".join(module.active_adapters))
    return found


def only_policy_is_trainable(backbone) -> bool:
    trainable = {n for n, p in backbone.core.named_parameters() if p.requires_grad}
    return bool(trainable) and all(f".{POLICY}." in name for name in trainable)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("has_trunk", [False, True])
def test_each_role_has_one_adapter_and_the_policy_is_back_afterwards(backbone, has_trunk, fails):
    if has_trunk:
        with_trunk(backbone)
    for role in ("policy", "discriminator", "reference"):
        try:
            with backbone.role(role):
                expected = {"policy": "policy", "reference": "none"}.get(
                    role, "trunk" if has_trunk else "none"
                )
                assert active_adapters(backbone) == {expected}
                if role != "policy":
                    assert not any(p.requires_grad for p in backbone.core.parameters())
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        assert active_adapters(backbone) == {"policy"}
        assert only_policy_is_trainable(backbone)


def test_the_policy_does_not_reach_the_scores(backbone, task):
    with_trunk(backbone)
    discriminator = woken(backbone)
    judged = [(prompts_of(backbone, task, 1)[0], (TEACHER,))]
    scores = []
    for seed in (7, 8):
        fill_adapter(backbone, seed=seed, scale=0.3)
        with torch.no_grad(), backbone.role("discriminator"):
            scores.append(discriminator.score(backbone, judged).perception_K)
    assert torch.equal(*scores)


def test_a_group_in_pieces_gives_the_whole_groups_scores_and_weights(backbone, task):
    """A group larger than a pack goes through with the teacher repeated: the same pairs, one sum."""
    with_trunk(backbone)
    prompts = prompts_of(backbone, task, 2)
    judged = [
        JudgedPrompt(prompts[0], TEACHER, STUDENTS),
        JudgedPrompt(prompts[1], TEACHER, STUDENTS[:1]),
    ]
    config = dataclasses.replace(CONFIG, score_penalty=0.0, balance_weight=0.0)
    found = []
    for max_pack_tokens in (8192, len(prompts[0]) + 120):
        backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=max_pack_tokens)
        discriminator = woken(backbone)
        optimizer = make_optimizer(list(discriminator.parameters()), OptimConfig(1.0))
        optimizer.inner = torch.optim.SGD(discriminator.parameters(), lr=1.0)
        game = discriminator_step(
            backbone, discriminator, optimizer, judged, config, learning_rate=1.0, max_grad_norm=1e9
        )
        found.append((game, [p.detach().clone() for p in discriminator.parameters()]))
    (at_once, at_once_weights), (pieces, pieces_weights) = found
    assert [s.shape for s in pieces.students] == [s.shape for s in at_once.students]
    torch.testing.assert_close(pieces.teacher_P2, at_once.teacher_P2)
    for one, other in zip(pieces.students, at_once.students, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(pieces_weights, at_once_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("max_part_tokens", "num_calls"), [(512, 3), (40, 1)])
def test_packs_are_sized_by_the_tokens_that_are_forwarded(
    backbone, task, monkeypatch, max_part_tokens, num_calls
):
    """Rare signs are several tokens each: two characters a token would pack two prompts together."""
    config = dataclasses.replace(CONFIG, max_part_tokens=max_part_tokens)
    discriminator = woken(with_trunk(backbone), config)
    written = Parts("\u4e09" * 50, "\u4e03" * 50, "5")
    student = Parts("\u516b" * 50, "\u4e8c" * 50, "5")
    prompts = prompts_of(backbone, task, 3)
    judged = [JudgedPrompt(prompt, written, (student,)) for prompt in prompts]
    true, by_characters = (
        [len(j.prompt) + sum(count(p) for p in (j.teacher, *j.students)) for j in judged]
        for count in (
            lambda parts: discriminator.part_tokens(backbone, parts).num_tokens,
            lambda parts: len(parts.render()) // 2,
        )
    )
    limit = max(true) if num_calls == 3 else sum(true)
    assert num_calls == 1 or sum(by_characters[:2]) <= limit, "the case that the guess misjudged"
    backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=limit)
    sizes = []
    score = Discriminator.score

    def noted(self, backbone, items):
        tokens = (sum(self.part_tokens(backbone, p).num_tokens for p in ps) for _, ps in items)
        sizes.append(sum(len(prompt) for prompt, _ in items) + sum(tokens))
        return score(self, backbone, items)

    monkeypatch.setattr(Discriminator, "score", noted)
    optimizer = make_optimizer(list(discriminator.parameters()), OptimConfig(1e-3))
    discriminator_step(
        backbone, discriminator, optimizer, judged, config, learning_rate=1e-3, max_grad_norm=1.0
    )
    assert len(sizes) == num_calls and max(sizes) <= limit


def test_scores_that_are_not_finite_stop_the_step_and_name_the_prompt(backbone, task):
    discriminator = woken(backbone)
    with torch.no_grad():
        next(iter(discriminator.parameters())).fill_(torch.nan)
    own = {k: v.clone() for k, v in discriminator.state_dict().items()}
    optimizer = make_optimizer(list(discriminator.parameters()), OptimConfig(1e-2))
    judged = [JudgedPrompt(prompts_of(backbone, task, 1)[0], TEACHER, STUDENTS)]
    with pytest.raises(RuntimeError, match=rf"{judged[0].prompt.id} are not finite"):
        discriminator_step(
            backbone, discriminator, optimizer, judged, CONFIG, learning_rate=1e-2, max_grad_norm=1
        )
    for name, value in discriminator.state_dict().items():
        torch.testing.assert_close(value, own[name], rtol=0, atol=0, equal_nan=True)

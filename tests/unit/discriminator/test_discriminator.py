"""The LoRA-MoE discriminator: where its experts act, which they are, and what they leave alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prism_lite.discriminator.model import discriminator_for
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.parts import Parts
from prism_lite.policy.logprobs import predicted_logprobs
from tests.judging import CONFIG, STUDENTS, TEACHER, prompts_of, with_trunk, woken


def pack_of(backbone, discriminator, task):
    trees = [
        Tree(
            prompt, tuple(b for p in parts for b in discriminator.part_tokens(backbone, p).branches)
        )
        for prompt, parts in zip(
            prompts_of(backbone, task, 2), ((TEACHER, *STUDENTS), (STUDENTS[1],)), strict=True
        )
    ]
    return pack_trees(trees)


def is_completion(pack) -> torch.Tensor:
    return torch.arange(len(pack.token_ids_F)) >= pack.layout.first_branch_token


def test_at_the_start_hidden_states_are_exactly_the_trunks(backbone, task):
    with_trunk(backbone)
    discriminator = discriminator_for(backbone, CONFIG, seed=0)
    pack = pack_of(backbone, discriminator, task)
    with torch.no_grad(), backbone.role("discriminator"):
        trunk_FD = backbone.hidden_states(pack)
        with discriminator._attached(backbone, pack) as routings:
            found_FD = backbone.hidden_states(pack)
    assert torch.equal(found_FD, trunk_FD)
    assert len(routings) == 1  # half of two layers
    with torch.no_grad():
        assert not torch.allclose(backbone.hidden_states(pack), trunk_FD, atol=1e-3)


@pytest.mark.parametrize("adapted_fraction", [0.5, 1.0])
@pytest.mark.parametrize("routing", ["grouped", "free", "dense"])
def test_experts_change_completion_tokens_only(backbone, task, routing, adapted_fraction):
    with_trunk(backbone)
    config = dataclasses.replace(CONFIG, routing=routing, adapted_fraction=adapted_fraction)
    discriminator = woken(backbone, config)
    pack = pack_of(backbone, discriminator, task)
    with torch.no_grad(), backbone.role("discriminator"):
        trunk_FD = backbone.hidden_states(pack)
        with discriminator._attached(backbone, pack):
            found_FD = backbone.hidden_states(pack)
        again_FD = backbone.hidden_states(pack)
    own_F = is_completion(pack)
    assert torch.equal(found_FD[~own_F], trunk_FD[~own_F])  # bit-identical: the prompt is cacheable
    assert bool(((found_FD - trunk_FD)[own_F].abs().amax(1) > 1e-4).all())
    assert torch.equal(again_FD, trunk_FD)  # the hooks are gone


def test_grouped_routing_keeps_parts_to_their_own_experts(backbone, task):
    with_trunk(backbone)
    config = dataclasses.replace(CONFIG, num_experts=6, adapted_fraction=1.0)
    discriminator = woken(backbone, config)
    pack = pack_of(backbone, discriminator, task)
    with (
        torch.no_grad(),
        backbone.role("discriminator"),
        discriminator._attached(backbone, pack) as routings,
    ):
        backbone.hidden_states(pack)
    is_reasoning_N = pack.branch_N % 2 == 1
    assert len(routings) == 2
    for routing in routings:
        assert not routing.weights[~is_reasoning_N, 3:].any()
        assert not routing.weights[is_reasoning_N, :3].any()
        assert bool(((routing.weights > 0).sum(1) == config.top_k).all())
        torch.testing.assert_close(
            routing.weights.sum(1), torch.ones(len(is_reasoning_N)), rtol=0, atol=1e-6
        )


def test_free_routing_uses_any_expert_and_dense_has_one(backbone, task):
    with_trunk(backbone)
    for routing in ("free", "dense"):
        discriminator = woken(backbone, dataclasses.replace(CONFIG, routing=routing))
        pack = pack_of(backbone, discriminator, task)
        with (
            torch.no_grad(),
            backbone.role("discriminator"),
            discriminator._attached(backbone, pack) as routings,
        ):
            backbone.hidden_states(pack)
        weights_NE = routings[0].weights
        if routing == "dense":
            assert weights_NE.shape[1] == 1 and bool((weights_NE == 1).all())
            assert discriminator.experts[0].A.shape[0] == 1
        else:
            is_perception_N = pack.branch_N % 2 == 0
            assert bool((weights_NE[is_perception_N].sum(0) > 0).sum() > 2)


def test_the_sum_over_experts_equals_a_plain_loop(backbone, task):
    """The last layer's change of one token, expert by expert."""
    with_trunk(backbone)
    discriminator = woken(backbone)
    pack = pack_of(backbone, discriminator, task)
    mlp = backbone.core.model.language_model.layers[-1].mlp
    seen = []
    with torch.no_grad(), backbone.role("discriminator"):
        handle = mlp.register_forward_hook(lambda _m, args, out: seen.append(args[0]))
        with discriminator._attached(backbone, pack):
            backbone.hidden_states(pack)
        handle.remove()
        x_ND = seen[0].flatten(0, 1)[is_completion(pack)]
        delta_ND, routing = discriminator._mix(
            discriminator.experts[0], x_ND, discriminator._allowed(pack)
        )
    layer = discriminator.experts[0]
    for n in range(0, len(x_ND), 7):
        x_D = x_ND[n]
        first = 2 * int(pack.branch_N[n] % 2)
        chosen = torch.softmax((layer.router @ x_D)[first : first + 2], 0)
        expected_D = sum(
            CONFIG.scale * chosen[e] * (layer.B[first + e] @ (layer.A[first + e] @ x_D))
            for e in range(2)
        )
        torch.testing.assert_close(delta_ND[n], expected_D, rtol=1e-4, atol=1e-4)
    assert routing.load.shape == (4,)


def test_teacher_and_student_are_read_at_the_same_sentinel(backbone, task):
    """METHOD.md section 5.2: every part ends in the same token, whoever wrote it, however long."""
    long = Parts("- digits: " + "3," * 300 + "7", "so " * 400 + "no", "no")
    for config in (CONFIG, dataclasses.replace(CONFIG, reasoning_sees_caption=False)):
        discriminator = discriminator_for(backbone, config, seed=0)
        for parts in (TEACHER, *STUDENTS, long):
            for branch in discriminator.part_tokens(backbone, parts).branches:
                assert int(branch[-1]) == backbone.end_id
                assert backbone.end_id not in branch[:-1].tolist()
                assert len(branch) <= config.max_part_tokens
    pack = pack_of(backbone, discriminator, task)
    assert set(pack.token_ids_F[pack.last_R].tolist()) == {backbone.end_id}


def test_reasoning_is_scored_with_its_caption_unless_told_otherwise(backbone):
    plain = discriminator_for(
        backbone, dataclasses.replace(CONFIG, reasoning_sees_caption=False), seed=0
    )
    seeing = discriminator_for(backbone, CONFIG, seed=0)
    decode = backbone.tokenizer.decode
    perception, reasoning = plain.part_tokens(backbone, TEACHER).branches
    assert decode(perception[:-1]) == TEACHER.perception
    assert decode(reasoning[:-1]) == TEACHER.reasoning
    assert "caption" not in decode(reasoning)
    _, with_caption = seeing.part_tokens(backbone, TEACHER).branches
    assert decode(with_caption[:-1]) == f"{TEACHER.perception}\n{TEACHER.reasoning}"


@torch.no_grad()
def test_scores_do_not_depend_on_the_other_parts_of_the_pack(backbone, task):
    """But for the first completion of the prompt, which likelihood features are relative to."""
    with_trunk(backbone)
    discriminator = woken(backbone)
    first, second, third = prompts_of(backbone, task, 3)
    judged = [(first, (TEACHER, *STUDENTS)), (second, (STUDENTS[0],)), (third, (TEACHER,))]
    with backbone.role("discriminator"):
        together = discriminator.score(backbone, judged)
        alone = [
            discriminator.score(backbone, [(prompt, (completions[0], parts))])
            for prompt, completions in judged
            for parts in completions
        ]
        backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=110)
        split = discriminator.score(backbone, judged)
    for channel in ("perception_K", "reasoning_K"):
        together_K = getattr(together, channel)
        assert together_K.unique().numel() == together_K.numel()
        separate_K = torch.cat([getattr(scores, channel)[1:] for scores in alone])
        # likelihoods and hidden states in float32, other shapes: rounding of a score of up to 10
        torch.testing.assert_close(separate_K, together_K, rtol=0, atol=1e-4)
        torch.testing.assert_close(getattr(split, channel), together_K, rtol=0, atol=1e-4)


@torch.no_grad()
def test_scores_depend_on_the_own_part_and_the_picture_only(backbone, task):
    with_trunk(backbone)
    discriminator = woken(backbone)
    first, second = prompts_of(backbone, task, 2)
    other_answer = dataclasses.replace(TEACHER, answer="yes")
    with backbone.role("discriminator"):
        scores = discriminator.score(
            backbone, [(first, (TEACHER, other_answer)), (second, (TEACHER,))]
        )
    perception, reasoning = scores.perception_K, scores.reasoning_K
    assert float((perception[0] - perception[1]).abs()) < 1e-5
    assert float((reasoning[0] - reasoning[1]).abs()) > 1e-4
    assert float((perception[0] - perception[2]).abs()) > 1e-4


@torch.no_grad()
def test_likelihood_features_are_mean_and_minimum_of_the_body(backbone, task):
    with_trunk(backbone)
    discriminator = woken(backbone)
    pack = pack_of(backbone, discriminator, task)
    with backbone.role("discriminator"):
        hidden_FD = backbone.hidden_states(pack)
        found_R2 = discriminator._likelihood_features(backbone, pack, hidden_FD)
        logprob_N = predicted_logprobs(backbone, pack)
    for branch in range(pack.num_branches):
        own = logprob_N[pack.branch_N == branch][1:-1]  # neither the opening tag nor the sentinel
        expected = torch.stack([own.mean(), own.min()])
        torch.testing.assert_close(found_R2[branch], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("limit", [8192, 150])
def test_likelihood_features_count_relative_to_the_first_completion(backbone, task, limit):
    """By hand from each part's own log-probs; also where a group is split over packs."""
    with_trunk(backbone)
    discriminator = woken(backbone)
    heads = (discriminator.perception_head, discriminator.reasoning_head)
    prompt, other = prompts_of(backbone, task, 2)
    judged = [(prompt, (TEACHER, *STUDENTS)), (other, (STUDENTS[1],))]
    backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=limit)
    expected = []
    with backbone.role("discriminator"):
        scores = discriminator.score(backbone, judged)
        for owner, completions in judged:
            features = []
            for parts in completions:
                branches = discriminator.part_tokens(backbone, parts).branches
                pack = pack_trees([Tree(owner, branches)])
                with discriminator._attached(backbone, pack):
                    hidden_FD = backbone.hidden_states(pack)
                logits_NV = hidden_FD[pack.predictor_N] @ backbone.head_weight.T
                logprob_N = logits_NV.log_softmax(-1).gather(1, pack.target_N[:, None])[:, 0]
                bodies = [logprob_N[pack.branch_N == channel][1:-1] for channel in (0, 1)]
                features.append(torch.stack([torch.stack([b.mean(), b.min()]) for b in bodies]))
            for feature_22 in features:
                relative_22 = feature_22 - features[0]
                expected.append(torch.stack([relative_22[c] @ heads[c][-2:] for c in (0, 1)]))
    torch.testing.assert_close(scores.terms_K22[:, :, 1], torch.stack(expected), rtol=0, atol=1e-4)
    assert not scores.terms_K22[[0, 3], :, 1].any()  # a first completion has features 0
    total_K2 = scores.terms_K22.sum(2)
    expected_K2 = 10 * torch.tanh(total_K2 / 10)
    torch.testing.assert_close(
        torch.stack([scores.perception_K, scores.reasoning_K], 1), expected_K2
    )


def test_the_likelihood_weights_of_each_head_can_be_weakened(backbone):
    discriminator = discriminator_for(backbone, CONFIG, seed=0)
    discriminator.weaken_likelihood((1.0, 0.1))
    assert discriminator.perception_head[-2:].tolist() == pytest.approx([3.0, 0.3])
    assert discriminator.reasoning_head[-2:].tolist() == pytest.approx([0.3, 0.03])
    assert not discriminator.reasoning_head[:-2].any()
    assert discriminator.reasoning_head.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("routing", ["grouped", "free"])
def test_weights_of_parts_are_the_router_s_on_what_enters_each_adapted_layer(
    backbone, task, routing
):
    """Worked out from public pieces: the MLPs' inputs, the routers' weights, `route_topk`."""
    with_trunk(backbone)
    discriminator = woken(backbone)
    discriminator.config = dataclasses.replace(discriminator.config, routing=routing)
    config = discriminator.config
    (prompt,) = prompts_of(backbone, task, 1)
    with backbone.role("discriminator"):
        discriminator.score(backbone, [(prompt, (TEACHER,))])  # the prompt's states are kept now
    inputs: list[torch.Tensor] = []
    layers = backbone.core.model.language_model.layers[discriminator.first_layer :]
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _module, args: inputs.append(args[0][0]))
        for layer in layers
    ]
    with backbone.role("discriminator"):
        scores = discriminator.score(backbone, [(prompt, (TEACHER, STUDENTS[0]))])
    for handle in handles:
        handle.remove()
    parts = [
        branch
        for completion in (TEACHER, STUDENTS[0])
        for branch in discriminator.part_tokens(backbone, completion).branches
    ]
    lengths = [*map(len, parts)]
    weights = scores.weights_of_parts()
    assert [w.shape[:2] for w in weights] == [(len(layers), length) for length in lengths]
    num_tokens = sum(lengths)
    is_perception_N = torch.cat(
        [torch.full((length,), number % 2 == 0) for number, length in enumerate(lengths)]
    )
    expert_is_perception_E = torch.arange(config.num_experts) < config.num_experts // 2
    for number, (x_ND, expert) in enumerate(zip(inputs, discriminator.experts, strict=True)):
        logits_NE = x_ND[-num_tokens:].float() @ expert.router.T
        if routing == "grouped":
            logits_NE = logits_NE.masked_fill(
                is_perception_N[:, None] != expert_is_perception_E, -torch.inf
            )
        top = logits_NE.topk(config.top_k)
        expected_NE = torch.zeros_like(logits_NE).scatter(1, top.indices, top.values.softmax(1))
        actual_NE = torch.cat([w[number] for w in weights])
        torch.testing.assert_close(actual_NE, expected_NE, rtol=0, atol=1e-5)

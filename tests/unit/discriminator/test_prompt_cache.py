"""The discriminator's prompt states: cached, bounded, scores and gradients as of complete forwards."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prism_lite.discriminator.losses import cap_scores
from prism_lite.models.backbone import TRUNK
from prism_lite.models.packing import Tree, pack_trees
from tests.judging import CONFIG, STUDENTS, TEACHER, prompts_of, with_trunk, woken
from tests.micro import fill_adapter

JUDGED = ((TEACHER, *STUDENTS), (STUDENTS[1],))


def scores_of_whole_sequences(backbone, discriminator, prompts):
    """Every part by itself, its prompt in the forward, hooks on: [K, 2].

    Likelihood features are taken off by those of the prompt's first completion.
    """
    heads = (discriminator.perception_head, discriminator.reasoning_head)
    raw = []
    for prompt, completions in zip(prompts, JUDGED, strict=True):
        firsts = []
        for parts in completions:
            for channel, branch in enumerate(discriminator.part_tokens(backbone, parts).branches):
                # the experts' group follows from the branch's number: the other part fills its place
                other = discriminator.part_tokens(backbone, parts).branches[1 - channel]
                pair = (branch, other) if channel == 0 else (other, branch)
                pack = pack_trees([Tree(prompt, pair)])
                with discriminator._attached(backbone, pack):
                    hidden_FD = backbone.hidden_states(pack, checkpoint=False)
                feature_D = hidden_FD[pack.last_R[channel]]
                own = pack.branch_N == channel
                logits = hidden_FD[pack.predictor_N[own]] @ backbone.head_weight.T
                logprob_C = logits.log_softmax(-1).gather(-1, branch[:, None])[1:-1, 0]
                likelihood_2 = torch.stack([logprob_C.mean(), logprob_C.min()])
                if len(firsts) < 2:
                    firsts.append(likelihood_2)
                feature_D = torch.cat([feature_D, likelihood_2 - firsts[channel]])
                raw.append((feature_D * heads[channel]).sum())
    return cap_scores(torch.stack(raw), CONFIG.score_cap).view(-1, 2)


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_scores_and_gradients_are_those_of_whole_sequences(backbone, task, fraction):
    with_trunk(backbone)
    discriminator = woken(backbone, dataclasses.replace(CONFIG, adapted_fraction=fraction))
    prompts = prompts_of(backbone, task, 2)
    with backbone.role("discriminator"):
        found = discriminator.score(backbone, list(zip(prompts, JUDGED, strict=True)))
        found_K2 = torch.stack([found.perception_K, found.reasoning_K], 1)
        expected_K2 = scores_of_whole_sequences(backbone, discriminator, prompts)
        torch.testing.assert_close(found_K2, expected_K2, rtol=0, atol=1e-4)
        weight_K2 = torch.linspace(-1, 2, found_K2.numel()).view_as(found_K2)
        parameters = list(discriminator.parameters())
        ours, theirs = (
            torch.autograd.grad((weight_K2 * score_K2).sum(), parameters, allow_unused=True)
            for score_K2 in (found_K2, expected_K2)
        )
    for one, other in zip(ours, theirs, strict=True):
        assert one is not None and other is not None and other.any()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_prompt_is_encoded_once_until_the_trunk_changes(backbone, task):
    with_trunk(backbone)
    discriminator = woken(backbone)
    prompts = prompts_of(backbone, task, 2)
    lengths = []
    handle = backbone.core.model.language_model.layers[0].mlp.register_forward_pre_hook(
        lambda _module, args: lengths.append(args[0].shape[1])
    )

    def score():
        lengths.clear()
        with torch.no_grad(), backbone.role("discriminator"):
            return discriminator.score(backbone, [(p, (TEACHER,)) for p in prompts]).perception_K

    parts = sum(map(len, discriminator.part_tokens(backbone, TEACHER).branches))
    first = score()
    assert lengths == [sum(map(len, prompts)), 2 * parts]
    again = score()
    assert lengths == [2 * parts]  # the floor: completion tokens only
    assert torch.equal(first, again)
    fill_adapter(backbone, seed=9, scale=0.1)
    score()
    assert lengths == [2 * parts]  # the policy is not the trunk
    backbone.freeze_copy(TRUNK)
    changed = score()
    assert len(lengths) == 2
    assert not torch.allclose(changed, first)
    handle.remove()


def test_the_cache_keeps_to_its_size_and_scores_stay(backbone, task):
    with_trunk(backbone)
    prompts = prompts_of(backbone, task, 4)
    scores = []
    for size in (1.0, 0.0):
        discriminator = woken(backbone, dataclasses.replace(CONFIG, prompt_cache_gib=size))
        with torch.no_grad(), backbone.role("discriminator"):
            found = discriminator.score(backbone, [(p, (TEACHER,)) for p in prompts])
        scores.append(found.reasoning_K)
        cache = discriminator.prompt_cache
        assert len(cache._states) == (4 if size else 0)
        num_bytes = sum(states.num_bytes for states in cache._states.values())
        assert num_bytes == cache._states.currsize <= cache.max_bytes
    assert torch.equal(*scores)


def test_no_activation_is_kept_below_the_first_adapted_layer(backbone, task):
    with_trunk(backbone)
    discriminator = woken(backbone)
    assert discriminator.first_layer == 1
    layers = backbone.core.model.language_model.layers
    inside, kept = [], {0: 0, 1: 0}

    def pack(tensor):
        for layer in inside[-1:]:
            kept[layer] += tensor.numel()
        return tensor

    handles = []
    for number, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(lambda *_, n=number: inside.append(n)))
        handles.append(layer.register_forward_hook(lambda *_: inside.clear()))
    with (
        backbone.role("discriminator"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        discriminator.score(backbone, [(prompts_of(backbone, task, 1)[0], (TEACHER, *STUDENTS))])
    for handle in handles:
        handle.remove()
    assert kept[0] == 0
    assert kept[1] > 0

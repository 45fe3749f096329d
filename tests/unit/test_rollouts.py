"""Group sampling against transformers' `generate`, teacher forcing and the exact distribution."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prism_lite.config import SamplingConfig
from prism_lite.models.backbone import SUPPRESSED_TOKENS
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.parts import Parts
from prism_lite.rollouts import draw_tokens, sample_groups
from tests.micro import fill_adapter

GREEDY = SamplingConfig(temperature=0.0, max_completion_tokens=24)
WARM = SamplingConfig(temperature=1.0, max_completion_tokens=24)


def sample_many(backbone, task, samples, group_size=1, sampling=WARM, seed=("test",)):
    return sample_groups(
        backbone,
        samples,
        group_size=group_size,
        sampling=sampling,
        system_prompt=task.system_prompt,
        seed=seed,
    )


def tokens_of(groups):
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def different_prompts(task):
    """Held-out samples, one of them with a longer question, so that left padding matters."""
    samples = list(task.heldout[:5])
    longer = dataclasses.replace(samples[1].turns[-1], text="Look closely. " + samples[1].question)
    samples[1] = dataclasses.replace(samples[1], id="longer", turns=(longer,))
    return samples


def test_greedy_rollouts_equal_generate_token_for_token(backbone, task):
    fill_adapter(backbone)
    samples = different_prompts(task)
    groups = sample_many(backbone, task, samples, sampling=GREEDY)
    suppressed = backbone.tokenizer.convert_tokens_to_ids(list(SUPPRESSED_TOKENS))
    lengths = set()
    for sample, group in zip(samples, groups, strict=True):
        messages = [
            {"role": "system", "content": [{"type": "text", "text": task.system_prompt}]},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": sample.question}],
            },
        ]
        text = backbone.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        inputs = backbone.processor(
            text=[text], images=[sample.pictures[0].open()], return_tensors="pt"
        )
        backbone.core.model.rope_deltas = None
        output = backbone.core.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=GREEDY.max_completion_tokens,
            eos_token_id=backbone.end_id,
            suppress_tokens=suppressed,
            use_cache=True,
        )
        expected = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(group.rollouts[0].token_ids) == expected
        lengths.add(len(expected))
    assert len(lengths) > 1 or GREEDY.max_completion_tokens in lengths


def test_a_rollout_does_not_depend_on_its_neighbours(backbone, task):
    samples = different_prompts(task)
    together = sample_many(backbone, task, samples, group_size=3)
    alone = [sample_many(backbone, task, [sample], group_size=3)[0] for sample in samples]
    assert tokens_of(together) == tokens_of(alone)
    for group, single in zip(together, alone, strict=True):
        for rollout, other in zip(group.rollouts, single.rollouts, strict=True):
            # other shapes, other order of sums: float32 rounding
            torch.testing.assert_close(
                rollout.sampling_logprob_C, other.sampling_logprob_C, rtol=0, atol=1e-4
            )


def test_a_rollout_does_not_depend_on_order_number_or_chunks(backbone, task):
    samples = different_prompts(task)
    whole = dict(
        zip(
            [sample.id for sample in samples],
            tokens_of(sample_many(backbone, task, samples, group_size=4)),
            strict=True,
        )
    )
    reversed_ = sample_many(backbone, task, samples[::-1], group_size=4)
    assert tokens_of(reversed_) == [whole[sample.id] for sample in samples[::-1]]
    in_chunks = dataclasses.replace(WARM, max_rows=5)  # one prompt at a time
    chunked = sample_many(backbone, task, samples, group_size=4, sampling=in_chunks)
    assert tokens_of(chunked) == list(whole.values())
    fewer = sample_many(backbone, task, samples, group_size=2)
    assert tokens_of(fewer) == [rollouts[:2] for rollouts in whole.values()]


def test_rollouts_of_a_group_differ_and_follow_the_seed(backbone, task):
    samples = list(task.heldout[:2])
    first = tokens_of(sample_many(backbone, task, samples, group_size=4, seed=(0, "a")))
    again = tokens_of(sample_many(backbone, task, samples, group_size=4, seed=(0, "a")))
    other = tokens_of(sample_many(backbone, task, samples, group_size=4, seed=(1, "a")))
    assert first == again
    assert first != other
    assert len(set(first[0])) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_sampling_logprobs_equal_teacher_forced_ones(backbone, task, temperature):
    """Under the distribution drawn from: suppressed tokens left out, temperature applied."""
    fill_adapter(backbone)
    sampling = SamplingConfig(temperature=temperature, max_completion_tokens=20)
    for group in sample_many(
        backbone, task, different_prompts(task), group_size=3, sampling=sampling
    ):
        branches = tuple(torch.tensor(rollout.token_ids) for rollout in group.rollouts)
        prompt = backbone.prompt(group.sample, task.system_prompt)
        pack = pack_trees([Tree(prompt, branches)])
        with torch.no_grad():
            hidden_ND = backbone.hidden_states(pack)[pack.predictor_N]
            logits_NV = hidden_ND @ backbone.head_weight.T
        logits_NV[:, backbone.suppressed_ids] = -torch.inf
        expected_NV = (logits_NV / (temperature or 1.0)).log_softmax(-1)
        expected_N = expected_NV.gather(-1, pack.target_N[:, None])[:, 0]
        found_N = torch.cat([rollout.sampling_logprob_C for rollout in group.rollouts])
        assert found_N.dtype == torch.float32
        # cached keys and the packed forward sum in different orders
        torch.testing.assert_close(found_N, expected_N, rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draw_tokens_follows_the_distribution(temperature):
    """Chi-square with 6 degrees of freedom; 22.46 is its 99.9 % quantile (the draw is seeded)."""
    logits_V = torch.tensor([0.3, -1.0, 2.0, 0.0, 5.0, 1.0, -0.5, 0.9])
    suppressed, num_draws = [4], 20_000
    probability_V = logits_V.clone().double()
    probability_V[suppressed] = -torch.inf
    probability_V = (probability_V / temperature).softmax(0)
    uniform_R = torch.rand(
        num_draws, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    token_R, logprob_R = draw_tokens(
        logits_V.expand(num_draws, -1), uniform_R, temperature, suppressed
    )
    count_V = torch.bincount(token_R, minlength=8).double()
    assert count_V[4] == 0
    kept = [v for v in range(8) if v not in suppressed]
    expected = num_draws * probability_V[kept]
    statistic = ((count_V[kept] - expected).square() / expected).sum()
    assert statistic < 22.46
    torch.testing.assert_close(logprob_R.double(), probability_V.log()[token_R], rtol=0, atol=1e-6)


def test_draw_tokens_at_the_edges_of_the_unit_interval():
    """0 must not draw an impossible first token, nearly 1 must not run past the last one."""
    logits_RV = torch.tensor([[0.0, 1.0, 1.0, 0.0]]).expand(2, -1)
    almost_one = 1 - 2.0**-53
    uniform_R = torch.tensor([0.0, almost_one], dtype=torch.float64)
    token_R, logprob_R = draw_tokens(logits_RV, uniform_R, 1.0, [0, 3])
    assert token_R.tolist() == [1, 2]
    torch.testing.assert_close(logprob_R, torch.full((2,), 0.5).log(), rtol=0, atol=1e-6)


def test_draw_tokens_survives_a_large_vocabulary_and_the_last_uniform_number():
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(4, 5000, generator=generator)
    uniform_R = torch.full((4,), 1 - 2.0**-53, dtype=torch.float64)
    token_R, logprob_R = draw_tokens(logits_RV, uniform_R, 1.0, [])
    assert bool((token_R < 5000).all())
    assert bool(logprob_R.isfinite().all())


def test_greedy_draw_takes_the_likeliest_allowed_token():
    logits_RV = torch.tensor([[0.0, 9.0, 1.0], [2.0, 9.0, 1.0]])
    token_R, logprob_R = draw_tokens(logits_RV, torch.zeros(2, dtype=torch.float64), 0.0, [1])
    assert token_R.tolist() == [2, 0]
    expected_R = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).log_softmax(-1).amax(-1)
    torch.testing.assert_close(logprob_R, expected_R, rtol=0, atol=1e-6)


def test_suppressed_tokens_are_never_sampled(make_backbone, task):
    """A random model at a high temperature draws everything else."""
    backbone = make_backbone(tiny__steps=0)
    hot = SamplingConfig(temperature=5.0, max_completion_tokens=40)
    groups = sample_many(backbone, task, list(task.heldout), group_size=8, sampling=hot)
    drawn = {token for group in groups for r in group.rollouts for token in r.token_ids}
    assert len(drawn) > 250
    assert not drawn & set(backbone.suppressed_ids)
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    assert set(backbone.tokenizer.convert_tokens_to_ids(names)) <= set(backbone.suppressed_ids)
    num_rows = backbone.core.config.text_config.vocab_size
    assert set(range(len(backbone.tokenizer), num_rows)) <= set(backbone.suppressed_ids)


def test_finish_reasons(backbone, task):
    samples = list(task.heldout)
    for limit in (3, 48):
        sampling = SamplingConfig(temperature=0.5, max_completion_tokens=limit)
        for group in sample_many(backbone, task, samples, group_size=2, sampling=sampling):
            for rollout in group.rollouts:
                ended = rollout.token_ids[-1] == backbone.end_id
                assert rollout.finish == ("end" if ended else "length")
                assert ended or len(rollout.token_ids) == limit
                assert backbone.end_id not in rollout.token_ids[:-1]
                assert len(rollout.sampling_logprob_C) == len(rollout.token_ids)
                assert "<|im_end|>" not in rollout.text
                if rollout.finish == "length":
                    assert not rollout.is_well_formed
                else:
                    assert rollout.is_well_formed == isinstance(rollout.parts, Parts)
    assert sampling.max_completion_tokens == 48


def test_a_completion_cut_behind_its_last_tag_is_not_well_formed(backbone, task):
    """All three parts but no end token: the model would have gone on."""
    full = sample_many(
        backbone,
        task,
        list(task.heldout),
        sampling=SamplingConfig(temperature=0.0, max_completion_tokens=48),
    )
    closed = [g for g in full if g.rollouts[0].is_well_formed]
    assert closed, "the micro base gives well-formed completions"
    length = len(closed[0].rollouts[0].token_ids)
    cut = sample_many(
        backbone,
        task,
        [closed[0].sample],
        sampling=SamplingConfig(temperature=0.0, max_completion_tokens=length - 1),
    )[0].rollouts[0]
    assert cut.finish == "length"
    assert isinstance(cut.parts, Parts)
    assert not cut.is_well_formed

"""Group sampling against transformers' `generate`, teacher forcing and the exact distribution."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prism_lite.config import SamplingConfig
from prism_lite.digits import lessons
from prism_lite.models import placement
from prism_lite.models.families.qwen3_vl import PICTURE_TOKENS
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.parts import Parts
from prism_lite.sampling import rollouts
from prism_lite.sampling.decoder import dense_bytes
from prism_lite.sampling.many_prompts import sample_in_pieces
from prism_lite.sampling.rollouts import (
    rows_that_fit,
    sample_groups,
    split_rows,
)
from tests.micro import fill_adapter

GREEDY = SamplingConfig(temperature=0.0, max_completion_tokens=24)
WARM = SamplingConfig(temperature=1.0, max_completion_tokens=24)


def sample_many(backbone, task, samples, group_size=1, sampling=WARM, seed=("test",)):
    return sample_groups(
        backbone,
        samples,
        group_size=group_size,
        sampling=sampling,
        seed=seed,
    )


def tokens_of(groups):
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def different_prompts(task):
    """Held-out samples, one of them with a longer question, so that left padding matters."""
    samples = list(task.heldout[:5])
    longer = dataclasses.replace(samples[1].turns[-1], text="Look closely. " + samples[1].question)
    samples[1] = dataclasses.replace(
        samples[1], id="longer", turns=(*samples[1].turns[:-1], longer)
    )
    return samples


def test_greedy_rollouts_equal_generate_token_for_token(backbone, task):
    fill_adapter(backbone)
    samples = different_prompts(task)
    groups = sample_many(backbone, task, samples, sampling=GREEDY)
    suppressed = backbone.tokenizer.convert_tokens_to_ids(list(PICTURE_TOKENS))
    lengths = set()
    for sample, group in zip(samples, groups, strict=True):
        messages = [
            {"role": "system", "content": [{"type": "text", "text": lessons.INSTRUCTION}]},
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
    at_once = dict(
        zip(
            [sample.id for sample in samples],
            tokens_of(sample_many(backbone, task, samples, group_size=4)),
            strict=True,
        )
    )
    reversed_ = sample_many(backbone, task, samples[::-1], group_size=4)
    assert tokens_of(reversed_) == [at_once[sample.id] for sample in samples[::-1]]
    for max_rows in (5, 3):  # one prompt at a time; groups themselves in two parts
        in_chunks = dataclasses.replace(WARM, max_rows=max_rows)
        chunked = sample_many(backbone, task, samples, group_size=4, sampling=in_chunks)
        assert tokens_of(chunked) == list(at_once.values())
    fewer = sample_many(backbone, task, samples, group_size=2)
    assert tokens_of(fewer) == [rollouts[:2] for rollouts in at_once.values()]


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
        prompt = backbone.prompt(group.sample)
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
        entropy_N = torch.special.entr(expected_NV.exp()).sum(-1)
        entropies = [rollout.sampling_entropy_C for rollout in group.rollouts]
        found_N = torch.cat([entropy_C for entropy_C in entropies if entropy_C is not None])
        torch.testing.assert_close(found_N, entropy_N, rtol=0, atol=1e-4)


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


def test_a_completion_cut_after_its_last_tag_is_not_well_formed(backbone, task):
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


def test_modules_and_dense_weights_draw_the_same_tokens(backbone, task):
    """Also beyond the first capacity of the rows' buffers: 140 tokens, ends suppressed."""
    fill_adapter(backbone)
    samples = different_prompts(task)[1:3]  # whose draws are not within rounding of two tokens
    backbone.suppressed_ids = [*backbone.suppressed_ids, backbone.end_id]
    found = []
    for dense in ("always", "never"):
        sampling = SamplingConfig(max_completion_tokens=140, dense_weights=dense)
        groups = sample_many(backbone, task, samples, group_size=2, sampling=sampling)
        assert all(
            r.finish == "length" and len(r.token_ids) == 140 for g in groups for r in g.rollouts
        )
        found.append(tokens_of(groups))
    assert found[0] == found[1]


def test_top_k_one_is_greedy(backbone, task):
    samples = different_prompts(task)
    cut = dataclasses.replace(GREEDY, temperature=1.0, top_k=1)
    greedy = tokens_of(sample_many(backbone, task, samples, sampling=GREEDY))
    groups = sample_many(backbone, task, samples, sampling=cut)
    assert tokens_of(groups) == greedy
    for group in groups:  # nothing else could have been drawn
        assert not group.rollouts[0].sampling_logprob_C.any()


def test_jobs_hold_every_rollout_once_within_the_limit():
    for num_prompts, group_size, max_rows in ((3, 4, 8), (5, 3, 3), (2, 7, 3), (4, 1, 2)):
        batches = split_rows(num_prompts, group_size, max_rows)
        assert all(sum(job.count for job in batch) <= max_rows for batch in batches)
        found = [
            (job.prompt, number)
            for batch in batches
            for job in batch
            for number in range(job.first, job.first + job.count)
        ]
        assert found == [(p, g) for p in range(num_prompts) for g in range(group_size)]


def test_rows_follow_the_free_memory_of_a_card(backbone, task, monkeypatch):
    prompts = [backbone.prompt(sample) for sample in task.heldout[:2]]
    assert rows_that_fit(backbone, prompts, WARM) == 512  # a CPU
    text = backbone.core.config.text_config
    token_bytes = 4 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    row_bytes = token_bytes * (2 * 24 + max(map(len, prompts))) + 16 * text.vocab_size
    monkeypatch.setattr(type(backbone), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100 * row_bytes, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 50 * row_bytes)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 25 * row_bytes)
    assert rows_that_fit(backbone, prompts, WARM) == 100


def test_dense_weights_are_held_where_they_fit_beside_what_sampling_needs(backbone, monkeypatch):
    """Two prompts of three rows, four rows at once: the weights, the keys and values of four rows and two
    prompts of the longest length, and four rows of logits four times, in 80 % of what is free."""
    sampling = dataclasses.replace(WARM, max_rows=4)
    text = backbone.core.config.text_config
    token_bytes = 4 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    num_tokens = 4 * 24 + 2 * backbone.config.max_prompt_tokens
    needed = dense_bytes(backbone.core) + num_tokens * token_bytes + 4 * 16 * text.vocab_size
    for num_free, expected in ((needed / 0.8 + 2, True), (needed / 0.8 - 2, False)):
        monkeypatch.setattr(placement, "free_bytes", lambda _device, num_free=num_free: num_free)
        assert rollouts._holds_dense_weights(backbone, 2, 3, sampling) is expected
    for setting, expected in (("always", True), ("never", False)):
        chosen = dataclasses.replace(sampling, dense_weights=setting)
        assert rollouts._holds_dense_weights(backbone, 2, 3, chosen) is expected


def test_weights_are_merged_once_for_all_pieces(backbone, task, monkeypatch):
    merged = []
    read = rollouts.lean_decoder

    def counted(*args, **kwargs):
        merged.append(kwargs["dense"])
        return read(*args, **kwargs)

    monkeypatch.setattr(rollouts, "lean_decoder", counted)
    samples = list(task.heldout[:5])
    sampling = dataclasses.replace(WARM, max_rows=4, max_completion_tokens=3)
    in_pieces = sample_in_pieces(
        backbone,
        samples,
        with_progress=lambda pieces, _description: pieces,
        description="",
        group_size=2,
        sampling=sampling,
        seed=("test",),
    )
    assert merged == [True]
    assert tokens_of(in_pieces) == tokens_of(
        sample_many(backbone, task, samples, group_size=2, sampling=sampling)
    )


def test_sampling_asks_only_the_layers_where_they_lie(backbone, task, monkeypatch):
    """Embeddings may lie elsewhere than the layers (model.embeddings_on_cpu): only looked up in."""
    expected = tokens_of(sample_many(backbone, task, task.heldout[:2]))
    embedding = backbone.core.get_input_embeddings()
    monkeypatch.setattr(backbone.core, "get_input_embeddings", lambda: lambda ids: embedding(ids))
    assert tokens_of(sample_many(backbone, task, task.heldout[:2])) == expected

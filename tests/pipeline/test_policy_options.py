"""RLVR with every option: losses, minibatches, KL, entropy, dynamic sampling, masks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from prism_lite.config import OptimConfig, PolicyLossConfig, SamplingConfig
from prism_lite.files import read_jsonl
from prism_lite.models.backbone import REFERENCE
from prism_lite.models.optim import make_optimizer
from prism_lite.models.packing import Tree, pack_trees
from prism_lite.parts import Malformed, Parts
from prism_lite.policy.losses import LOSSES
from prism_lite.policy.step import rollout_kl, update_policy
from prism_lite.sampling.rollouts import sample_groups
from prism_lite.seeding import batch_at
from prism_lite.stages.rlvr import run_rlvr
from prism_lite.types import Group, Rollout

MAX_TOKENS = 24
LENGTHS = (24, 7, 15, 3, 9, 24, 12, 20, 5, 17, 24, 11)  # of four rollouts of each of three groups


@pytest.fixture
def groups(random_backbone, task):
    """Three groups of set tokens: neither they nor the weights depend on training."""
    generator = torch.Generator().manual_seed(0)
    rollouts = []
    for length in LENGTHS:
        token_ids = torch.randint(10, 300, (length,), generator=generator).tolist()
        is_cut = length == MAX_TOKENS
        if not is_cut:
            token_ids[-1] = random_backbone.end_id
        zero_C = torch.zeros(length)
        finish = "length" if is_cut else "end"
        rollouts.append(Rollout(tuple(token_ids), "", Malformed(""), finish, zero_C, zero_C))
    return [Group(task.rlvr[i], tuple(rollouts[4 * i : 4 * i + 4])) for i in range(3)]


@torch.no_grad()
def plain_logprobs(backbone, groups) -> list[torch.Tensor]:
    """Log-probs [C] of every rollout, one forward each, from logits over the whole vocabulary."""
    result = []
    for group in groups:
        for rollout in group.rollouts:
            target_C = torch.tensor(rollout.token_ids)
            pack = pack_trees([Tree(backbone.prompt(group.sample), (target_C,))])
            logits_CV = backbone.hidden_states(pack)[pack.predictor_N] @ backbone.head_weight.T
            result.append(logits_CV.log_softmax(-1).gather(1, target_C[:, None])[:, 0])
    return result


def plain_kl(backbone, groups, kind: str) -> torch.Tensor:
    """`rollout_kl` at temperature 1 from its formula, [R]."""
    policy = plain_logprobs(backbone, groups)
    with backbone.role("reference"):
        reference = plain_logprobs(backbone, groups)
    sums = []
    for policy_C, reference_C in zip(policy, reference, strict=True):
        d = policy_C - reference_C
        sums.append({"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d}[kind].sum())
    return torch.stack(sums)


ADVANTAGE_R = torch.tensor([1.0, -1.0, 0.5, -0.5, 0, 0, 0, 0, 2.0, -1.0, -1.0, 0.0])


def update(backbone, groups, loss, *, advantage_R=ADVANTAGE_R, max_pack_tokens=100_000, **options):
    """Metrics of one update and the gradients of its steps."""
    backbone.config = dataclasses.replace(backbone.config, max_pack_tokens=max_pack_tokens)
    optimizer = make_optimizer(backbone.policy_parameters(), OptimConfig())
    gradients: list[torch.Tensor] = []

    def keep_gradient(*_):
        parameters = backbone.policy_parameters()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in parameters]))

    optimizer.inner.register_step_pre_hook(keep_gradient)
    metrics = update_policy(
        backbone,
        optimizer,
        groups,
        advantage_R,
        sampling=SamplingConfig(max_completion_tokens=MAX_TOKENS),
        optim=OptimConfig(max_grad_norm=1e9),
        learning_rate=1e-3,
        loss=loss,
        **options,
    )
    return metrics, gradients


@pytest.mark.parametrize("name", LOSSES)
def test_packs_split_a_batch_without_changing_its_gradient(random_backbone, groups, name):
    backbone = random_backbone
    before = backbone.adapter_state()
    loss = PolicyLossConfig(name=name, entropy_weight=0.05)
    results = []
    longest = max(len(backbone.prompt(group.sample)) for group in groups)
    for max_pack_tokens in (100_000, longest + 50):  # at most two or three rollouts a pack
        backbone.load_adapter_state(before)
        results.append(
            update(
                backbone,
                groups,
                loss,
                max_pack_tokens=max_pack_tokens,
                mask_truncated=True,
                kl_weight=0.1,
            )
        )
    (one, one_gradient), (split, split_gradient) = results
    assert len(split_gradient) == 1
    assert split["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6)
    scale = float(one_gradient[0].abs().max())
    torch.testing.assert_close(split_gradient[0], one_gradient[0], rtol=0, atol=1e-4 * scale)


def test_old_logprobs_are_computed_only_for_several_minibatches(
    random_backbone, groups, monkeypatch
):
    """Two groups have advantages: one forward each; with two minibatches one more without gradient."""
    backbone = random_backbone
    forwards = []
    forward = backbone.hidden_states
    monkeypatch.setattr(
        backbone,
        "hidden_states",
        lambda pack, **kw: forwards.append(torch.is_grad_enabled()) or forward(pack, **kw),
    )
    update(backbone, groups, PolicyLossConfig())
    assert forwards == [True]
    forwards.clear()
    metrics, _ = update(backbone, groups, PolicyLossConfig(), num_minibatches=2)
    assert forwards == [False, False, True, True]
    assert metrics["num_optimizer_steps"] == 2
    assert update(backbone, [], PolicyLossConfig())[0] == {"learning_rate": 1e-3}


def test_old_logprobs_are_those_of_the_policy_that_sampled(random_backbone, groups):
    """The second minibatch is clipped, which needs log-probs from before the first step."""
    loss = PolicyLossConfig(clip_low=1e-4, clip_high=1e-4, clip_dual=None)
    metrics, gradients = update(random_backbone, groups, loss, num_minibatches=2)
    assert len(gradients) == 2
    assert metrics["clip_ratio/region_mean"] > 0, "the first step moves the second's ratios"
    one_step, _ = update(random_backbone, groups, loss)
    assert one_step["clip_ratio/region_mean"] == 0.0


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_to_the_start_is_zero_there_and_then_that_of_the_formula(random_backbone, groups, kind):
    backbone = random_backbone
    backbone.freeze_copy(REFERENCE)
    start_R = rollout_kl(backbone, groups, kind, temperature=1.0)
    first, _ = update(backbone, groups, PolicyLossConfig(), kl_weight=0.1, kl_kind=kind)
    moved_R = rollout_kl(backbone, groups, kind, temperature=1.0)
    expected_R = plain_kl(backbone, groups, kind)
    second, _ = update(backbone, groups, PolicyLossConfig(), kl_weight=0.1, kl_kind=kind)
    # two ways to sum some ten log-probs of about -6, each to a few float32 roundings
    torch.testing.assert_close(moved_R, expected_R, rtol=1e-3, atol=1e-4)
    assert expected_R.abs().max() > 1e-2
    assert start_R.abs().max() < 1e-3 * expected_R.abs().max()
    num_tokens = sum(LENGTHS)
    assert first["kl"] == pytest.approx(float(start_R.sum()) / num_tokens, abs=1e-6)
    assert second["kl"] == pytest.approx(float(expected_R.sum()) / num_tokens, rel=1e-3, abs=1e-5)


def test_the_base_as_reference_is_the_backbone_without_adapter(random_backbone, groups):
    backbone = random_backbone
    backbone.freeze_copy(REFERENCE)
    backbone.drop_adapter(REFERENCE)
    policy = plain_logprobs(backbone, groups)
    with backbone.peft.disable_adapter():
        base = plain_logprobs(backbone, groups)
    expected_R = torch.stack([(p - b).sum() for p, b in zip(policy, base, strict=True)])
    kl_R = rollout_kl(backbone, groups, "k1", temperature=1.0)
    torch.testing.assert_close(kl_R, expected_R, rtol=1e-3, atol=1e-4)
    state = backbone.adapter_state()
    backbone.load_adapter_state({name: torch.zeros_like(t) for name, t in state.items()})
    at_zero_R = rollout_kl(backbone, groups, "k1", temperature=1.0)
    assert at_zero_R.abs().max() < 1e-3 * expected_R.abs().max()


def test_masked_rollouts_do_not_reach_the_gradient(random_backbone, groups):
    """As if they had no advantage, but for the mean: it is over the others' tokens."""
    backbone = random_backbone
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    ended_R = torch.tensor([rollout.finish == "end" for rollout in rollouts])
    before = backbone.adapter_state()
    _, masked = update(backbone, groups, PolicyLossConfig(), mask_truncated=True)
    backbone.load_adapter_state(before)
    advantage_R = torch.where(ended_R, ADVANTAGE_R, 0.0)
    _, without = update(backbone, groups, PolicyLossConfig(), advantage_R=advantage_R)
    length_R = torch.tensor(LENGTHS)
    more = float(length_R.sum() / length_R[ended_R].sum())
    scale = float(masked[0].abs().max())
    torch.testing.assert_close(masked[0], without[0] * more, rtol=0, atol=1e-4 * scale)


def has_moved(folder) -> bool:
    """Whether RLVR changed the policy it started from."""
    before, after = (
        load_file(folder / "stages" / stage / "final" / "policy.safetensors")
        for stage in ("align", "rlvr")
    )
    return any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["dr_grpo", "gspo", "sapo"])  # each with a mean of its own
def test_the_stage_trains_with_the_loss(play, name):
    _, folder, lines = play(
        run_rlvr,
        rlvr__loss__name=name,
        rlvr__loss__entropy_weight=0.01,
        rlvr__num_minibatches=2,
        rlvr__steps=2,
        sampling__temperature=1.0,
    )
    assert all({"loss", "grad_norm", "entropy"} <= m.keys() for m in lines)
    assert "2 optimizer steps per batch: old log-probs are computed once" in play.text
    assert has_moved(folder)


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize(("kl_kind", "reference"), [("k1", "base"), ("k3", "start")])
def test_the_stage_with_each_place_of_the_kl(play, make_backbone, task, kl_in, kl_kind, reference):
    config, folder, lines = play(
        run_rlvr,
        rlvr__kl_weight=0.1,
        rlvr__kl_in=kl_in,
        rlvr__kl_kind=kl_kind,
        rlvr__kl_reference=reference,
        rlvr__loss__entropy_weight=0.01,  # moves the policy whatever the rewards are
        rlvr__steps=2,
        sampling__temperature=1.0,
    )
    if reference == "start":
        assert lines[1]["kl"] > 10 * abs(lines[0]["kl"]), "no KL before the first step"
    else:  # the first step's rollouts again, and their KL from its formula
        backbone = make_backbone()
        start = load_file(folder / "stages/align/final/policy.safetensors")
        backbone.load_adapter_state(start)
        groups = sample_groups(
            backbone,
            batch_at(task.rlvr, 0, config.rlvr.prompts_per_step, config.seed, "rlvr"),
            group_size=config.rlvr.group_size,
            sampling=config.sampling,
            seed=(config.seed, "rlvr", 0),
        )
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        records = read_jsonl(folder / "rollouts" / "rlvr-0.jsonl")
        assert [rollout.text for rollout in rollouts] == [r["completion"] for r in records]
        expected = float(plain_kl(backbone, groups, kl_kind).sum())
        expected /= sum(len(rollout.token_ids) for rollout in rollouts)
        assert lines[0]["kl"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert "one optimizer step per batch: the ratio is 1" in play.text


def test_dynamic_sampling_fills_the_batch_with_groups_that_teach(play, task, monkeypatch):
    """Set rollouts: all right for the prompts of the first batch, one wrong for all others."""
    flat = {sample.key for sample in batch_at(task.rlvr, 0, 2, 0, "rlvr")}

    def set_groups(backbone, samples, *, group_size, sampling, seed):
        groups = []
        for sample in samples:
            answers = [sample.answer] * group_size
            if sample.key not in flat:
                answers[-1] = "neither"
            rollouts = []
            for answer in answers:
                parts = Parts("- digits: 3,7", "first 3", answer)
                ids = tuple(backbone.tokenize(parts.render()).tolist())
                zero_C = torch.zeros(len(ids))
                rollouts.append(Rollout(ids, parts.render(), parts, "end", zero_C, zero_C))
            groups.append(Group(sample, tuple(rollouts)))
        return groups

    monkeypatch.setattr("prism_lite.stages.rollout_batch.sample_groups", set_groups)
    config, folder, lines = play(run_rlvr, rlvr__preset="dapo", rlvr__steps=2)
    size = config.rlvr.group_size
    for line in lines:
        records = read_jsonl(folder / "rollouts" / f"rlvr-{line['step']}.jsonl")
        groups = [records[i : i + size] for i in range(0, len(records), size)]
        prompts = [group[0]["prompt_id"] for group in groups]
        assert len(set(prompts)) == len(prompts), "no prompt is sampled twice in a step"
        spread = [len({r["rewards"]["accuracy"] for r in group}) > 1 for group in groups]
        assert line["dynamic_sampling/num_filtered"] == spread.count(False)
        assert line["dynamic_sampling/num_kept"] == 2
        assert {"overlong", "accuracy", "format"} == set(records[0]["rewards"])
        kept = [i for i, has_spread in enumerate(spread) if has_spread][:2]
        for i, group in enumerate(groups):
            assert any(r["advantage"] for r in group) == (i in kept)
    assert lines[0]["dynamic_sampling/num_batches"] > 1
    assert lines[0]["dynamic_sampling/num_filtered"] == 2


def test_dynamic_sampling_without_anything_to_keep_says_so_once_and_continues(play):
    config, folder, lines = play(
        run_rlvr,
        rlvr__dynamic_sampling=True,
        rlvr__max_sampled_batches=3,
        rlvr__steps=2,
        sampling__max_completion_tokens=4,
    )
    assert [m["dynamic_sampling/num_batches"] for m in lines] == [3, 3]
    assert [m["dynamic_sampling/num_kept"] for m in lines] == [0, 0]
    filtered = [m["dynamic_sampling/num_filtered"] for m in lines]
    assert all(0 < n <= 3 * config.rlvr.prompts_per_step for n in filtered)
    assert all("loss" not in m for m in lines), "no loss is made up where there was no step"
    assert play.text.count("continues with 0 instead of 2") == 1
    assert not has_moved(folder)


def test_an_alarm_is_printed_once_and_counted_at_every_step(play):
    _, _, lines = play(run_rlvr, sampling__max_completion_tokens=4, rlvr__steps=3)
    assert [m["alarms/zero_spread_groups"] for m in lines] == [1.0] * 3
    assert play.text.count("alarm zero_spread_groups in rlvr step 0") == 1
    assert play.text.count("alarm zero_spread_groups") == 1

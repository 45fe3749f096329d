"""Advantages against hand-computed numbers and a loop in float64."""

from __future__ import annotations

import math

import pytest
import torch

from prism_lite.policy.advantages import (
    Verified,
    aligned_advantages,
    alignment_advantages,
    fill_unscored,
    group_zscore,
    reward_advantages,
)


def of_one_reward(reward_R: torch.Tensor, *, group_size: int, scale="group") -> torch.Tensor:
    return reward_advantages({"r": reward_R}, {"r": 1.0}, group_size=group_size, scale=scale)


def naive_alignment(perception, reasoning, well_formed, group_size, alpha, penalty):
    """METHOD section 3 in plain Python."""
    result = []
    for start in range(0, len(perception), group_size):
        rows = range(start, start + group_size)
        good = [row for row in rows if well_formed[row]]
        z = {row: 0.0 for row in rows}
        for weight, score in ((alpha, perception), (1 - alpha, reasoning)):
            if not good:
                continue
            mean = sum(score[row] for row in good) / len(good)
            deviation = math.sqrt(sum((score[row] - mean) ** 2 for row in good) / len(good))
            for row in good:
                z[row] += weight * (score[row] - mean) / deviation if deviation > 1e-6 else 0.0
        values = [z[row] if well_formed[row] else -penalty for row in rows]
        mean = sum(values) / group_size
        result += [value - mean for value in values]
    return result


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("malformed_rate", [0.0, 0.3, 0.7])
def test_alignment_advantages_equal_the_naive_loop(alpha, malformed_rate):
    generator = torch.Generator().manual_seed(int(100 * alpha + 10 * malformed_rate))
    perception_R = 3 * torch.randn(48, generator=generator)
    reasoning_R = torch.randn(48, generator=generator) - 2
    well_formed_R = torch.rand(48, generator=generator) >= malformed_rate
    found_R = alignment_advantages(
        perception_R,
        reasoning_R,
        group_size=6,
        well_formed_R=well_formed_R,
        alpha=alpha,
        malformed_penalty=1.25,
    )
    expected = naive_alignment(
        perception_R.tolist(), reasoning_R.tolist(), well_formed_R.tolist(), 6, alpha, 1.25
    )
    # float32 sums of six numbers
    torch.testing.assert_close(found_R, torch.tensor(expected), rtol=0, atol=2e-6)
    torch.testing.assert_close(found_R.view(-1, 6).mean(1), torch.zeros(8), rtol=0, atol=1e-6)


def test_alignment_advantages_by_hand():
    """Perception 1, 3 (z: -1, 1), reasoning 2, 0 (z: 1, -1), one malformed."""
    arguments = {
        "group_size": 3,
        "well_formed_R": torch.tensor([True, True, False]),
        "malformed_penalty": 3.0,
    }
    scores = torch.tensor([1.0, 3.0, 99.0]), torch.tensor([2.0, 0.0, -99.0])
    expected = {
        0.5: [1.0, 1.0, -2.0],  # 0, 0, -3 less their mean -1
        1.0: [0.0, 2.0, -2.0],  # -1, 1, -3
        0.0: [2.0, 0.0, -2.0],  # 1, -1, -3
    }
    for alpha, values in expected.items():
        found_R = alignment_advantages(*scores, alpha=alpha, **arguments)
        torch.testing.assert_close(found_R, torch.tensor(values), rtol=0, atol=1e-6)


def test_default_alpha_is_one_half():
    scores = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 1.0, 0.0])
    arguments = {"group_size": 3, "well_formed_R": torch.ones(3, dtype=torch.bool)}
    assert torch.equal(
        alignment_advantages(*scores, **arguments),
        alignment_advantages(*scores, alpha=0.5, **arguments),
    )


@pytest.mark.parametrize("garbage", [0.0, 1e30, -1e30, math.nan, math.inf])
def test_what_a_malformed_rollout_holds_is_not_looked_at(garbage):
    well_formed_R = torch.tensor([True, False, True, True])
    clean_R = torch.tensor([0.1, 0.0, 0.7, 0.4])
    dirty_R = clean_R.clone()
    dirty_R[1] = garbage
    arguments = {"group_size": 4, "well_formed_R": well_formed_R}
    assert torch.equal(
        alignment_advantages(dirty_R, dirty_R, **arguments),
        alignment_advantages(clean_R, clean_R, **arguments),
    )


def test_one_malformed_of_sixteen_leaves_the_spread_of_the_valid_ones():
    """METHOD.md section 5.5: the official order of operations cuts it from 1.00 to 0.18."""
    score_R = torch.randn(16, generator=torch.Generator().manual_seed(1))
    well_formed_R = torch.ones(16, dtype=torch.bool)
    well_formed_R[5] = False
    found_R = alignment_advantages(score_R, score_R, group_size=16, well_formed_R=well_formed_R)
    spread = found_R[well_formed_R].std(correction=0)
    assert float(spread) == pytest.approx(1.0, abs=1e-5)
    assert float(found_R[5]) < float(found_R[well_formed_R].mean()) - 1
    official_R = score_R.clone()
    official_R[5] = score_R[well_formed_R].min() - 10
    assert float(group_zscore(official_R, group_size=16)[well_formed_R].std(correction=0)) < 0.5


def test_a_group_without_spread_gives_zeros():
    flat_R = torch.full((4,), 0.3)
    every = torch.ones(4, dtype=torch.bool)
    assert not alignment_advantages(flat_R, flat_R, group_size=4, well_formed_R=every).any()
    assert not of_one_reward(torch.tensor([1.0, 1, 1, 1]), group_size=4).any()
    # 0.1 three times does not average to exactly 0.1: rounding must not become a z-score of 1
    for scale in ("group", "batch", "none"):
        assert not of_one_reward(torch.full((3,), 0.1), group_size=3, scale=scale).any()


def test_a_flat_channel_does_not_silence_the_other():
    flat_R, score_R = torch.zeros(4), torch.tensor([0.0, 1.0, 2.0, 3.0])
    every = torch.ones(4, dtype=torch.bool)
    found_R = alignment_advantages(flat_R, score_R, group_size=4, well_formed_R=every)
    torch.testing.assert_close(found_R, 0.5 * group_zscore(score_R, group_size=4))


def test_a_group_malformed_throughout_gives_zeros():
    nothing_R, none = torch.full((4,), torch.nan), torch.zeros(4, dtype=torch.bool)
    found_R = alignment_advantages(nothing_R, nothing_R, group_size=4, well_formed_R=none)
    assert torch.equal(found_R, torch.zeros(4))


def test_a_single_well_formed_rollout_is_above_the_malformed():
    well_formed_R = torch.tensor([False, True, False])
    score_R = torch.tensor([0.0, -7.0, 0.0])
    found_R = alignment_advantages(
        score_R, score_R, group_size=3, well_formed_R=well_formed_R, malformed_penalty=1.5
    )
    torch.testing.assert_close(found_R, torch.tensor([-0.5, 1.0, -0.5]))


def test_groups_do_not_mix():
    first, second = torch.tensor([0.0, 1.0]), torch.tensor([100.0, 300.0])
    found_R = of_one_reward(torch.cat([first, second]), group_size=2)
    torch.testing.assert_close(found_R, torch.tensor([-1.0, 1.0, -1.0, 1.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_an_error(bad):
    bad_R, good_R = torch.tensor([0.0, bad, 1.0]), torch.tensor([0.0, 1.0, 2.0])
    every = torch.ones(3, dtype=torch.bool)
    if not math.isnan(bad):  # a NaN among rewards is a function's None
        with pytest.raises(ValueError, match="not finite"):
            of_one_reward(bad_R, group_size=3)
    for scores in ((bad_R, good_R), (good_R, bad_R)):
        with pytest.raises(ValueError, match="not finite"):
            alignment_advantages(*scores, group_size=3, well_formed_R=every)


def test_rows_must_form_whole_groups():
    with pytest.raises(ValueError, match="7 rollouts"):
        of_one_reward(torch.zeros(7), group_size=3)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_must_be_a_weight(alpha):
    score_R = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="alpha"):
        alignment_advantages(
            score_R,
            score_R,
            group_size=2,
            well_formed_R=torch.ones(2, dtype=torch.bool),
            alpha=alpha,
        )


def test_a_floor_makes_small_deviations_small_advantages():
    """By hand: deviations 2 and 0.1 with a floor of 0.5 give z of 1 and 0.2; perception alone."""
    score_R = torch.tensor([2.0, -2.0, 0.1, -0.1])
    advantage_R = aligned_advantages(
        score_R,
        score_R,
        group_size=2,
        well_formed_R=torch.ones(4, dtype=torch.bool),
        alpha=1.0,
        floors=(0.5, 9.0),
    )
    torch.testing.assert_close(advantage_R, torch.tensor([1.0, -1.0, 0.2, -0.2]))


def zscores(values):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / deviation if deviation > 1e-6 else 0.0 for v in values]


def naive_mode(mode, aligned, malformed, wrong, reward, c, p_f, p_w):
    """One group by the six formulas of METHOD section 3, rollout by rollout."""
    rows = range(len(aligned))
    gate = [(1 - malformed[i]) * (1 - wrong[i]) for i in rows]
    penalty = [p_w * wrong[i] + p_f * malformed[i] for i in rows]
    if mode == "align":
        values = [aligned[i] - p_f * malformed[i] for i in rows]
    elif mode == "acc_gate":
        values = [c * aligned[i] - penalty[i] for i in rows]
    elif mode == "gated":
        values = [c * aligned[i] * gate[i] - penalty[i] for i in rows]
    elif mode == "rlvr":
        z = zscores(reward)
        values = [z[i] + c * aligned[i] * gate[i] for i in rows]
    elif mode == "rlvr_v2":
        z = zscores([reward[i] - penalty[i] for i in rows])
        values = [z[i] + c * aligned[i] * gate[i] for i in rows]
    else:
        z = zscores(
            [(1 - malformed[i]) * (reward[i] - p_w * wrong[i]) - p_f * malformed[i] for i in rows]
        )
        values = [z[i] + c * aligned[i] * (1 - malformed[i]) * (1 - 2 * wrong[i]) for i in rows]
    mean = sum(values) / len(values)
    return [value - mean for value in values]


@pytest.mark.parametrize("mode", ["align", "acc_gate", "gated", "rlvr", "rlvr_v2", "sign_align"])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_mode_equals_its_formula(mode, seed):
    generator = torch.Generator().manual_seed(seed)
    perception_R, reasoning_R = torch.randn(2, 24, generator=generator)
    well_formed_R = torch.rand(24, generator=generator) > 0.25
    correct_R = well_formed_R & (torch.rand(24, generator=generator) > 0.5)
    reward_R = 0.8 * correct_R.float() + 0.2 * well_formed_R.float()
    found_R = alignment_advantages(
        perception_R,
        reasoning_R,
        group_size=8,
        well_formed_R=well_formed_R,
        alpha=0.3,
        malformed_penalty=1.5,
        mode=mode,
        verified=Verified(reward_R, ~correct_R),
        weight=0.7,
        wrong_penalty=0.4,
    )
    parts = [
        group_zscore(score_R, group_size=8, counted_R=well_formed_R)
        for score_R in (perception_R, reasoning_R)
    ]
    aligned = (0.3 * parts[0] + 0.7 * parts[1]).tolist()
    malformed = (~well_formed_R).float().tolist()
    wrong = (well_formed_R & ~correct_R).float().tolist()  # wrong excludes malformed: one penalty
    expected = [
        value
        for start in (0, 8, 16)
        for value in naive_mode(
            mode,
            *(
                values[start : start + 8]
                for values in (aligned, malformed, wrong, reward_R.tolist())
            ),
            0.7,
            1.5,
            0.4,
        )
    ]
    torch.testing.assert_close(found_R, torch.tensor(expected), rtol=0, atol=3e-6)
    assert 0 < int(correct_R.sum()) < int(well_formed_R.sum()) < 24


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_scale_of_advantages(scale):
    generator = torch.Generator().manual_seed(3)
    reward_R = torch.randn(12, generator=generator, dtype=torch.float64)
    found_R = of_one_reward(reward_R, group_size=4, scale=scale)
    centred = [v - sum(g) / 4 for g in reward_R.view(3, 4).tolist() for v in g]
    if scale == "group":
        expected = [z for g in reward_R.view(3, 4).tolist() for z in zscores(g)]
    elif scale == "batch":
        values = reward_R.tolist()
        mean = sum(values) / 12
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 12)
        expected = [v / deviation for v in centred]
    else:
        expected = centred
    torch.testing.assert_close(found_R, torch.tensor(expected, dtype=torch.float64))


def test_gdpo_standardises_each_reward_before_the_sum():
    """The rare large format difference no longer drowns accuracy: both get a say of their weight."""
    generator = torch.Generator().manual_seed(4)
    accuracy_R = torch.rand(12, generator=generator, dtype=torch.float64).round()
    other_R = 100 * torch.randn(12, generator=generator, dtype=torch.float64)
    other_R[4:8] = 7.0  # no spread in one group
    found_R = reward_advantages(
        {"accuracy": accuracy_R, "other": other_R},
        {"accuracy": 0.8, "other": 0.2},
        group_size=4,
        combine="normalize_then_sum",
    )
    sums = []
    for start in (0, 4, 8):
        a = zscores(accuracy_R[start : start + 4].tolist())
        b = zscores(other_R[start : start + 4].tolist())
        sums += [0.8 * x + 0.2 * y for x, y in zip(a, b, strict=True)]
    deviation = math.sqrt(sum(v * v for v in sums) / 12)  # their mean is 0
    expected = torch.tensor([v / deviation for v in sums], dtype=torch.float64)
    torch.testing.assert_close(found_R, expected)


def trl_advantages(rewards, weights, group_size, scale, combine):
    """The rule for None of TRL 1.16's GRPOTrainer in plain Python, with our population deviations."""

    def mean(values):
        return sum(values) / len(values) if values else 0.0

    def deviation(values):
        return math.sqrt(mean([(value - mean(values)) ** 2 for value in values]))

    def scored(values):
        return [value for value in values if value is not None]

    def total(values_of_row):
        known = [w * v for w, v in zip(weights, values_of_row, strict=True) if v is not None]
        return sum(known) if known else None

    rows = list(zip(*rewards, strict=True))
    groups = [range(i, i + group_size) for i in range(0, len(rows), group_size)]
    if combine == "normalize_then_sum":
        normalized = []
        for values in rewards:
            column = [None] * len(values)
            for group in groups:
                known = scored([values[i] for i in group])
                spread = deviation(known)
                for i in group:
                    if values[i] is not None:
                        column[i] = (values[i] - mean(known)) / spread if spread > 1e-6 else 0.0
            normalized.append(column)
        totals = [total(row) for row in zip(*normalized, strict=True)]
        spread = deviation(scored(totals))
        return [0.0 if t is None else (t - mean(scored(totals))) / spread for t in totals]
    totals = [total(row) for row in rows]
    advantages = [0.0] * len(rows)
    for group in groups:
        known = scored([totals[i] for i in group])
        spread = {"group": deviation(known), "batch": deviation(scored(totals)), "none": 1.0}[scale]
        for i in group:
            if totals[i] is not None and deviation(known) > 1e-6:
                advantages[i] = (totals[i] - mean(known)) / spread
    return advantages


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("scale", "combine"),
    [
        ("group", "sum_then_normalize"),
        ("batch", "sum_then_normalize"),
        ("none", "sum_then_normalize"),
        ("group", "normalize_then_sum"),
    ],
)
def test_none_is_no_opinion_as_in_trl(seed, scale, combine):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(2, 24, generator=generator, dtype=torch.float64)
    rewards[torch.rand(2, 24, generator=generator) < 0.4] = math.nan
    rewards[:, 12:18] = math.nan  # a group without any reward
    rewards[:, 18:23] = math.nan  # and one with a single one
    rewards[0, 23] = 1.0
    assert rewards[:, :12].isnan().all(0).any()
    advantage_R = reward_advantages(
        {"a": rewards[0], "b": rewards[1]},
        {"a": 0.7, "b": -0.3},
        group_size=6,
        scale=scale,
        combine=combine,
    )
    plain = [[None if math.isnan(v) else v for v in values] for values in rewards.tolist()]
    expected = trl_advantages(plain, [0.7, -0.3], 6, scale, combine)
    torch.testing.assert_close(advantage_R, torch.tensor(expected, dtype=torch.float64))
    assert not advantage_R[12:].any()


def test_a_rollout_without_a_reward_does_not_move_the_others():
    reward_R = torch.tensor([0.0, math.nan, 1.0, 0.0, 1.0, 1.0])
    advantage_R = of_one_reward(reward_R, group_size=3)
    torch.testing.assert_close(advantage_R[:3], torch.tensor([-1.0, 0.0, 1.0]))
    filled_R = fill_unscored(torch.tensor([0.0, math.nan, 1.0, *[math.nan] * 3]), group_size=3)
    assert filled_R.tolist() == [0, 0.5, 1, 0, 0, 0]


def test_an_alignment_mode_leaves_out_a_rollout_without_a_reward():
    zero_R, every_R = torch.zeros(4), torch.ones(4, dtype=torch.bool)
    verified = Verified(torch.tensor([0.0, 1.0, math.nan, 1.0]), ~every_R)
    advantage_R = alignment_advantages(
        zero_R, zero_R, group_size=4, well_formed_R=every_R, mode="rlvr", verified=verified
    )
    three = group_zscore(torch.tensor([0.0, 1.0, 1.0]), group_size=3)
    expected_R = torch.tensor([three[0], three[1], 0.0, three[2]])
    torch.testing.assert_close(advantage_R, expected_R)

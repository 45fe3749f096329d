"""Parts longer than the discriminator reads: counted, reported, and no artefact for the probe."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from prism_lite.discriminator.model import discriminator_for
from prism_lite.discriminator.part_tokens import about_cuts, cut_metrics, read_text
from prism_lite.discriminator.probes import artefact_auc
from prism_lite.files import read_jsonl
from prism_lite.parts import Parts
from prism_lite.stages.align import run_align
from prism_lite.stages.warmup import _report_artefacts, run_warmup
from prism_lite.types import Sample, Turn
from tests.judging import CONFIG, TEACHER
from tests.micro import quiet_console

LIMIT = 16
# Micro parts are short: with its caption before it, a think is longer than the least limit.
SHORT = {"discriminator__max_part_tokens": LIMIT, "discriminator__reasoning_sees_caption": True}
SAID = f"longer than discriminator.max_part_tokens = {LIMIT}"


def test_shares_and_the_length_that_holds_99_percent():
    teacher, student = list(range(1, 201)), [20] * 100
    assert cut_metrics(teacher, student, 150) == {"disc/cut_teacher": 0.25, "disc/cut_student": 0}
    share, sentence = about_cuts(teacher, student, 150)
    assert share == 0.25
    assert "25.0% of the teacher's and 0.0% of the student's" in sentence
    assert "= 150 " in sentence and "Set it to 198, which holds 99%" in sentence
    assert cut_metrics(teacher, student, 198)["disc/cut_teacher"] == 0.01
    assert "Set it to" not in about_cuts(teacher, student, 198)[1]


def test_what_is_read_of_a_part_that_is_cut(backbone):
    for sees_caption in (False, True):
        config = dataclasses.replace(
            CONFIG, max_part_tokens=LIMIT, reasoning_sees_caption=sees_caption
        )
        discriminator = discriminator_for(backbone, config, seed=0)
        long = Parts("- digits: 3,7", "so " * 50 + "no", "no")
        tokens = discriminator.part_tokens(backbone, long)
        reasoning = f"{long.perception}\n{long.reasoning}" if sees_caption else long.reasoning
        uncut_ids = backbone.tokenize(reasoning)  # closed by the end token, as a part is
        assert tokens.lengths[1] == len(uncut_ids) > LIMIT
        assert tokens.branches[1].tolist() == [*uncut_ids[: LIMIT - 1].tolist(), backbone.end_id]
        assert tokens.is_cut
        text = read_text(backbone, long, tokens)
        assert text.startswith(long.perception) and "</answer>" not in text
    uncut = discriminator_for(backbone, CONFIG, seed=0).part_tokens(backbone, TEACHER)
    assert not uncut.is_cut and read_text(backbone, TEACHER, uncut) == TEACHER.render()


def test_the_artefact_probe_sees_what_is_scored(backbone):
    """Teachers three times as long as students, both cut at the same length: form says nothing."""
    config = dataclasses.replace(CONFIG, max_part_tokens=LIMIT)
    discriminator = discriminator_for(backbone, config, seed=0)
    context = SimpleNamespace(backbone=backbone, run=SimpleNamespace(console=quiet_console()))

    def probed(teacher_words: list[str], student_words: list[str]) -> tuple[float, float]:
        sides = [[Parts(w, w, w[:1]) for w in words] for words in (teacher_words, student_words)]
        samples = [Sample("x", (Turn("user", "?"),), teacher=p.render()) for p in sides[0]]
        uncut = artefact_auc([p.render() for p in sides[0]], [p.render() for p in sides[1]])
        pairs = list(zip(samples, sides[1], strict=True))
        return uncut, _report_artefacts(context, discriminator, pairs)  # type: ignore[arg-type]

    words = [f"{i % 10}," * 40 for i in range(40)]
    uncut, scored = probed([3 * word for word in words], words)
    assert uncut > 0.95
    assert scored == pytest.approx(0.5, abs=0.1)


def test_cut_parts_are_reported_before_the_warm_up_and_measured_in_it(play):
    _, _, lines = play(run_warmup, **SHORT, warmup__steps=1)
    probe = next(line for line in lines if "disc/artefact_auc" in line)
    assert probe["disc/cut_teacher"] > 0.01
    assert f"warning: {probe['disc/cut_teacher']:.1%} of the teacher's" in play.text
    assert SAID in play.text and "Set it to" in play.text
    play(run_warmup, warmup__steps=1)
    assert "0.0% of the teacher's and 0.0% of the student's parts are longer" in play.text
    assert "Set it to" not in play.text


def test_alignment_measures_cut_parts_each_step_and_warns(play, backbone):
    _, folder, lines = play(run_align, **SHORT, align__steps=2)
    for line in (m for m in lines if "disc/cut_student" in m):
        records = read_jsonl(folder / "rollouts" / f"align-{line['step']}.jsonl")
        found = [Parts(**r["parts"]) for r in records if "scores" in r]
        lengths = [
            len(backbone.tokenize(text)) for p in found for text in (p.perception, p.render())
        ]
        assert line["disc/cut_student"] == sum(n > LIMIT for n in lengths) / len(lengths)
        assert line["alarms/cut_parts"] == max(line["disc/cut_student"], line["disc/cut_teacher"])
    assert any("disc/cut_student" in line for line in lines)
    assert "alarm cut_parts in align" in play.text and SAID in play.text
    _, _, lines = play(run_align, align__steps=1)
    assert not any("alarms/cut_parts" in line for line in lines)

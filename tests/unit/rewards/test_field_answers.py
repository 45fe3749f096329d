"""The verifier on answers from public reports, on further instances of their kinds, and under load."""

# ruff: noqa: RUF001 - odd characters are what is tested
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_lite.rewards import accuracy_reward
from prism_lite.rewards.accuracy import answers_match, compare_answers, judge_completion
from prism_lite.rewards.answers import symbolic

FIELD = Path(__file__).parents[2] / "fixtures" / "field_answers.jsonl"
PAIRS = [json.loads(line) for line in FIELD.read_text(encoding="utf-8").splitlines()]
# (gold answer, prediction): why it is rejected though right
REJECTED = {
    ("quarter past nine", "9:15"): "times in words are not read",
    ("É. Zola", "E. Zola"): "accents are part of a text that is read (the table: café is not cafe)",
    (r"\sqrt{1/n}", r"\frac{1}{\sqrt{n}}"): "equal only where n is positive, which is not said",
}


def _completion(answer: str) -> str:
    return f"<caption>a bar</caption><think>so</think><answer>{answer}</answer>"


@pytest.mark.parametrize("pair", PAIRS, ids=[str(i) for i in range(len(PAIRS))])
def test_field_pairs(pair):
    verdict = judge_completion(
        _completion(pair["answer"]),
        pair["gold"],
        prompt=pair.get("prompt", ""),
        choices=pair.get("choices", ()),
    )
    assert not verdict.undecided or not pair["right"]
    is_right = bool(pair["right"]) and (pair["gold"], pair["answer"]) not in REJECTED
    assert verdict.matches == is_right, (pair, verdict)


def test_rejected_pairs_are_field_pairs():
    assert len(PAIRS) == 243 and len(REJECTED) <= 10
    right = {(pair["gold"], pair["answer"]) for pair in PAIRS if pair["right"]}
    assert REJECTED.keys() <= right


LINES = Path(__file__).with_name("kinds.tsv").read_text(encoding="utf-8").splitlines()
KINDS = [tuple(line.split("\t")) for line in LINES[1:]]  # kind, gold answer, prediction, right
KINDS += [("letter", f"3{c}", "3", str(int(c in "gms"))) for c in "abcdefghijkmnopqrstuvwxyz"]


@pytest.mark.parametrize(("kind", "gold", "predicted", "is_right"), KINDS)
def test_kinds(kind, gold, predicted, is_right):
    verdict = compare_answers(predicted, gold)
    assert not verdict.undecided
    assert verdict.matches == (is_right == "1"), verdict


NATURALS = st.integers(1, 99)
LETTERS = st.sampled_from("bcdhkmnpqrtwxyz")
MINUTES = st.tuples(st.integers(0, 23), st.integers(0, 59))


class TestProperties:
    @given(LETTERS)
    def test_factorial_is_not_its_argument(self, n):
        assert not answers_match(n, f"{n}!") and not answers_match(f"{n}!", n)
        assert answers_match(f"{n}!", f"{n}!")

    @given(MINUTES, MINUTES)
    def test_times_are_equal_only_as_written(self, left, right):
        times = [f"{hour}:{minute:02d}" for hour, minute in (left, right)]
        assert answers_match(*times) == (left == right)

    @given(NATURALS, NATURALS)
    def test_range_is_not_its_difference(self, low, high):
        assert not answers_match(str(low - high), f"{low}-{high}")
        assert answers_match(f"{low} - {high}", f"{low}–{high}")

    @given(NATURALS, NATURALS)
    def test_size_is_not_its_product(self, width, height):
        assert not answers_match(str(width * height), f"{width}x{height}")
        assert answers_match(f"{width} × {height}", f"{width}x{height}")

    @given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 5))
    def test_whole_numbers_take_no_ratio(self, left, right, factor):
        assert not answers_match(f"{left * factor}:{factor}", str(left))
        gold = f"{left}:{right}"
        if np.gcd(left, right) == 1:  # otherwise a score
            assert answers_match(f"{left * factor}:{right * factor}", gold)

    @settings(max_examples=25)
    @given(st.integers(30, 200), st.integers(30, 200))
    def test_small_powers_differ(self, left, right):
        golds = [rf"\frac{{1}}{{2^{{{exponent}}}}}" for exponent in (left, right)]
        assert answers_match(*golds) == (left == right)

    @pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair["right"]], ids=str)
    def test_equality_of_values_is_symmetric(self, pair):
        """But for an answer with its reason: only an answer is read as one, not a gold answer."""
        symmetric = {"equal numbers", "same text", "same words", "compared as times"}
        verdict = compare_answers(pair["answer"], pair["gold"])
        if verdict.matches and verdict.why in symmetric and ", since" not in pair["answer"]:
            assert compare_answers(pair["gold"], pair["answer"]).matches


class TestTrlColumns:
    @pytest.mark.parametrize(
        ("gold", "right", "wrong"),
        [
            (5, "5", "6"),
            (0, "0", "1"),
            (2.5, "5/2", "2"),
            (False, "no", "yes"),
            (True, "True", "no"),
            (np.int64(7), "7", "8"),
            (np.float32(0.5), "1/2", "1/3"),
            (np.array(["couch", "sofa"]), "sofa", "chair"),
            ([3, "three"], "3", "4"),
            (("couch", "sofa"), "couch", "chair"),
            ([[3], [3.0]], "3", "4"),
        ],
    )
    def test_golds_of_other_types(self, gold, right, wrong):
        completions = [_completion(right), _completion(wrong)]
        assert accuracy_reward(["", ""], completions, answer=[gold, gold]) == [1.0, 0.0]
        assert accuracy_reward(["", ""], completions, solution=[gold, gold]) == [1.0, 0.0]

    @pytest.mark.parametrize("gold", [None, "", " ", [], [None], float("nan"), [""]])
    def test_no_gold(self, gold):
        assert accuracy_reward([""], [_completion("5")], answer=[gold]) == [None]

    @pytest.mark.parametrize(
        "solution",
        ["5", r"So it is $\boxed{5}$.", "<think>2+3</think><answer>5</answer>", "2+3=5\n#### 5",
         r"First \boxed{4}, but then \boxed{5}."],
    )  # fmt: skip
    def test_solution(self, solution):
        completions = [_completion("5"), _completion("4")]
        assert accuracy_reward(["", ""], completions, solution=[solution] * 2) == [1.0, 0.0]
        mixed = accuracy_reward(["", ""], completions, answer=[None, 4], solution=[solution] * 2)
        assert mixed == [1.0, 1.0]

    def test_errors_name_the_column(self):
        with pytest.raises(ValueError, match="neither a column answer nor solution"):
            accuracy_reward([""], [_completion("5")])
        with pytest.raises(ValueError, match="solution has 1 rows and completions 2"):
            accuracy_reward(["", ""], [_completion("5")] * 2, solution=["5"])
        with pytest.raises(ValueError, match="is a dict: expected text"):
            accuracy_reward([""], [_completion("5")], answer=[{"text": "5"}])


ENDLESS = ("10^{10^{10^{10}}}+x", "x+5")


class TestUndecided:
    def test_no_reward_and_no_second_opinion(self, monkeypatch):
        asked = []
        worker = symbolic._running_worker()
        monkeypatch.setattr(symbolic, "_replies", {})
        ask = worker.ask
        monkeypatch.setattr(worker, "ask", lambda *pair: asked.append(pair) or ask(*pair))
        for _ in range(2):
            assert accuracy_reward([""], [_completion(ENDLESS[0])], answer=[ENDLESS[1]]) == [None]
        assert len(asked) == 1

    def test_another_accepted_answer_decides(self):
        golds = [[ENDLESS[1], ENDLESS[0]], [ENDLESS[1], "7"]]
        completions = [_completion(ENDLESS[0])] * 2
        assert accuracy_reward(["", ""], completions, answer=golds) == [1.0, None]

    def test_hung_worker_is_undecided(self, monkeypatch):
        monkeypatch.setattr(symbolic, "_replies", {})
        worker = symbolic._running_worker()
        ask = worker.ask
        monkeypatch.setattr(worker, "ask", lambda *pair: ask(*pair, hung_s=0.1))
        monkeypatch.setattr(symbolic, "TIME_LIMIT_S", 2.0)  # the guard is earlier
        assert compare_answers(*ENDLESS).undecided
        assert answers_match("(x+3)^2", "x^2+6x+9")  # by a new worker


LOADED = [  # each needs the worker
    (r"(x+1)^{3}", "x^3+3x^2+3x+1", True),
    (r"\frac{x^2-1}{x-1}", "x+1", True),
    (r"\sin^{2}(x)+\cos^{2}(x)", "1", True),
    (r"\frac{1}{\sqrt{3}+\sqrt{2}}", r"\sqrt{3}-\sqrt{2}", True),
    (r"y=\frac{3}{4}-\frac{x}{2}", "2x+4y-3=0", True),
    (r"(x+1)^{3}", "x^3+3x^2+3x+2", False),
    (r"(-\infty,-1)\cup(3,\infty)", r"(-\infty,-1)\cup(2,\infty)", False),
]


def test_verdicts_do_not_depend_on_load(monkeypatch):
    """Six busy loops on the worker's core, and the same verdicts three times over."""
    worker = symbolic._running_worker()
    cores = os.sched_getaffinity(0)
    busy = f"import os; os.sched_setaffinity(0, [{min(cores)}])\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(6)]
    os.sched_setaffinity(worker.process.pid, {min(cores)})
    try:
        for _ in range(3):
            monkeypatch.setattr(symbolic, "_replies", {})
            for predicted, gold, is_right in LOADED:
                verdict = compare_answers(predicted, gold)
                assert not verdict.undecided
                assert verdict.matches == is_right, (predicted, gold, verdict)
            assert len(symbolic._replies) == len(LOADED)
    finally:
        os.sched_setaffinity(worker.process.pid, cores)
        for loop in loops:
            loop.kill()
            loop.wait()

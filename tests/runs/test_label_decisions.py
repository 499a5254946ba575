"""Several labels a text: each with honest probabilities and the threshold that serves new texts best."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.label_set_metrics import Counts, binary_log_loss
from newsdesk.runs.calibration import (
    CALIBRATION,
    HeldOutRows,
    calibrate,
    read_calibration,
    read_held_out_rows,
    store_calibration,
)
from newsdesk.runs.label_decisions import LabelDecisions, rarest_labels

SHARES = np.array([0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.003])


def simulated(rows, *, seed=0, scale=1.0, shift=0.0, shares=SHARES):
    """Logits that are honest once shifted back and divided by the scale, and labels drawn by them."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(np.log(shares / (1 - shares)) * 1.5, 3.0, (rows, len(shares)))
    labels = generator.random(honest.shape) < 1 / (1 + np.exp(-honest))
    return (honest * scale + shift).astype(np.float32), labels


def f1(decisions, logits, labels):
    counts = Counts.of(decisions.assigned(decisions.probabilities(logits)), labels)
    return float(counts.micro_f1()), float(counts.macro_f1())


def test_a_known_scale_and_shift_are_found_for_each_label():
    scales, shifts = np.array([0.5, 1.0, 2.0, 4.0]), np.array([-1.0, 0.0, 1.0, 3.0])
    logits, labels = simulated(20_000, scale=scales, shift=shifts, shares=SHARES[:4])
    found = LabelDecisions.fit(logits, labels)
    assert found.scales == pytest.approx(1 / scales, rel=0.1)
    assert found.shifts == pytest.approx(-shifts / scales, abs=0.15)


def test_no_other_scale_or_shift_makes_frequent_labels_likelier():
    logits, labels = simulated(5_000, scale=2.0, shift=1.0, shares=SHARES[:2])
    found = LabelDecisions.fit(logits, labels)
    least = binary_log_loss(found.probabilities(logits), labels)
    for factor, step in ((0.8, 0.0), (1.25, 0.0), (1.0, 0.3), (1.0, -0.3)):
        other = replace(
            found,
            scales=tuple(factor * a for a in found.scales),
            shifts=tuple(step + b for b in found.shifts),
        )
        assert least < binary_log_loss(other.probabilities(logits), labels)


def test_rare_labels_are_calibrated_better_together_than_each_by_itself():
    logits, labels = simulated(300, seed=1, scale=2.0)
    new, truth = simulated(20_000, seed=2, scale=2.0)
    together = LabelDecisions.fit(logits, labels)
    alone = [LabelDecisions.fit(logits[:, [i]], labels[:, [i]]) for i in range(len(SHARES))]
    by_itself = np.hstack([each.probabilities(new[:, [i]]) for i, each in enumerate(alone)])
    uncalibrated = replace(together, scales=(1.0,) * len(SHARES), shifts=(0.0,) * len(SHARES))
    loss = binary_log_loss(together.probabilities(new), truth)
    assert loss < binary_log_loss(by_itself, truth)
    assert loss < binary_log_loss(uncalibrated.probabilities(new), truth)


@pytest.mark.parametrize("positives", [0, 1, 2])
def test_a_label_of_hardly_any_rows_gets_about_the_threshold_of_all_labels(positives):
    logits, labels = simulated(400)
    labels[:, -1] = False
    rows = np.argsort(logits[:, -1])  # the positives are where the classifier least expects them
    labels[rows[:positives], -1] = True
    found = LabelDecisions.fit(logits, labels)
    assert abs(found.thresholds[-1] - np.median(found.thresholds[:3])) < 0.2
    assert found.scales[-1] > 0


def test_a_frequent_label_gets_its_own_threshold():
    generator = np.random.default_rng(0)
    logits, labels = simulated(4_000, shares=np.array([0.3, 0.3]))
    labels[:, 1] = generator.random(4_000) < 0.08 + 0.3 * (logits[:, 1] > 0)  # never more than 38 % sure
    unsure = LabelDecisions.fit(logits, labels)
    assert unsure.thresholds[1] < 0.35 < unsure.thresholds[0]
    assert f1(unsure, logits, labels)[1] > f1(replace(unsure, thresholds=(0.5, 0.5)), logits, labels)[1] + 0.1


def test_tuned_thresholds_beat_one_half_on_new_texts():
    gains = []
    for seed in range(5):
        found = LabelDecisions.fit(*simulated(1_000, seed=seed))
        new = simulated(5_000, seed=100 + seed)
        half = replace(found, thresholds=(0.5,) * len(SHARES))
        gains.append(np.subtract(f1(found, *new), f1(half, *new)))
    micro, macro = np.mean(gains, axis=0)
    assert micro > 0
    assert macro > 0.01


def test_every_text_gets_a_label_only_where_the_rows_say_so():
    logits, labels = simulated(300)
    labels[~labels.any(axis=1), 0] = True
    assert LabelDecisions.fit(logits, labels).at_least_one
    assert not LabelDecisions.fit(logits[:99], labels[:99]).at_least_one  # too few to say
    labels[7] = False
    assert not LabelDecisions.fit(logits, labels).at_least_one


def test_the_label_that_comes_closest_is_assigned_where_one_must_be():
    decisions = LabelDecisions((1.0,) * 3, (0.0,) * 3, (0.5, 0.2, 0.8), at_least_one=True)
    probabilities = np.array(
        [[0.4, 0.19, 0.1], [0.4, 0.1, 0.7], [0.5, 0.2, 0.0], [0.0, 0.0, 0.0]], np.float32
    )
    assert decisions.assigned(probabilities).tolist() == [
        [False, True, False],  # 0.19 of 0.2
        [False, False, True],
        [True, False, False],  # float32(0.2) is above 0.2: see below
        [True, False, False],
    ] or decisions.assigned(probabilities)[2].tolist() == [True, True, False]
    assert not replace(decisions, at_least_one=False).assigned(probabilities)[[0, 1, 3]].any()
    assert decisions.assigned(probabilities[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([[3.0]], [[True]]),
        ([[3.0, -2.0]], [[False, False]]),
        ([[0.0, 0.0]] * 50, [[True, False]] * 50),  # constant, always and never
        (np.full((40, 2), 7.0), np.arange(80).reshape(40, 2) % 3 == 0),  # constant, sometimes
        (np.float32(1e38) * np.array([[1, -1], [-1, 1]] * 20), [[True, False], [False, True]] * 20),
        ([[1e-30, -1e-30], [-1e-30, 1e-30]] * 20, [[True, False], [False, True]] * 20),
        ([[9.0], [-9.0]] * 30, [[False], [True]] * 30),  # always wrong
    ],
)
def test_whatever_the_rows_decisions_are_finite_and_probabilities_too(logits, labels):
    logits, labels = np.array(logits, dtype=np.float32), np.array(labels)
    with np.errstate(all="raise", under="ignore"):
        found = LabelDecisions.fit(logits, labels)
        given = found.probabilities(logits)
    assert np.isfinite(given).all()
    shares = labels.mean(axis=0)
    assert binary_log_loss(given, labels) < 0.75
    assert ((given.mean(axis=0) > 0.3) == (shares > 0.3)).all()
    assert all(0.05 <= threshold <= 0.95 for threshold in found.thresholds)


@pytest.mark.parametrize("labels", [np.zeros((3, 3), bool), np.zeros(4, bool), np.zeros((0, 2), bool)])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match="labels of shape"):
        LabelDecisions.fit(np.zeros((4, 2))[: len(labels)], labels)


def test_calibrating_several_labels_says_what_it_changed():
    rows = HeldOutRows(*simulated(2_000, scale=3.0, shift=2.0), sha256="abc")
    found = calibrate(rows, "rows of a test")
    assert found.negative_log_likelihood.after < found.negative_log_likelihood.before / 1.5
    assert found.expected_calibration_error.after < found.expected_calibration_error.before / 3
    assert (found.temperature, found.rows, found.source) == (1.0, 2_000, "rows of a test")


def test_decisions_are_kept_with_their_rows(tmp_path):
    rows = HeldOutRows(*simulated(200), sha256="abc", readable=np.arange(200) > 3)
    stored = store_calibration(tmp_path, rows, "here")
    assert read_calibration(tmp_path) == stored
    read = read_held_out_rows(tmp_path)
    assert read.is_multi
    assert np.array_equal(read.labels, rows.labels)
    assert np.array_equal(read.logits, rows.logits)
    assert np.array_equal(read.readable, rows.readable)
    expected = stored.decisions.assigned(stored.decisions.probabilities(rows.logits))
    again = read_calibration(tmp_path).decisions
    assert np.array_equal(again.assigned(again.probabilities(read.logits)), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scales", [1.0]),
        ("scales", [0.0] * 8),
        ("shifts", [float("inf")] * 8),
        ("shifts", [float("nan")] * 8),
        ("thresholds", [1.5] * 8),
        ("thresholds", [float("nan")] * 8),
        ("thresholds", "0.5"),
        ("at_least_one", 1),
    ],
)
def test_damaged_decisions_are_refused(tmp_path, name, value):
    store_calibration(tmp_path, HeldOutRows(*simulated(50), sha256="abc"), "here")
    content = json.loads((tmp_path / CALIBRATION).read_text())
    content["decisions"][name] = value
    (tmp_path / CALIBRATION).write_text(json.dumps(content))
    with pytest.raises(UserError, match="missing or damaged"):
        read_calibration(tmp_path)


def test_one_label_a_text_leaves_no_decisions_in_the_file(tmp_path):
    rows = HeldOutRows(np.eye(2, dtype=np.float32), np.arange(2), "abc")
    assert store_calibration(tmp_path, rows, "here").decisions is None
    assert "decisions" not in json.loads((tmp_path / CALIBRATION).read_text())


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 3)])
def test_rows_of_several_labels_have_one_truth_for_each_logit(shape):
    with pytest.raises(ValueError, match="labels of shape"):
        HeldOutRows(np.zeros((2, 2), np.float32), np.zeros(shape, np.bool_), "abc")


def test_halves_share_the_rare_labels():
    logits, labels = simulated(2_000)
    first, second = HeldOutRows(logits, labels, "abc", readable=np.arange(2_000) > 3).halves()
    assert len(first.labels) + len(second.labels) == 2_000
    assert len(first.readable) == len(first.labels)
    rare = np.arange(len(SHARES)) >= 4
    assert (np.abs(first.labels.sum(axis=0) - second.labels.sum(axis=0))[rare] <= 6).all()


def test_the_rarest_label_of_each_row():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=np.bool_)
    assert rarest_labels(labels).tolist() == [1, 0, 3, 2, 1]

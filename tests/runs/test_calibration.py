"""A temperature: found where there is one, bounded where there is none, kept with the rows it stands on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from newsdesk.data.columns import TextLayout
from newsdesk.errors import UserError
from newsdesk.runs.calibration import (
    CALIBRATION,
    CALIBRATION_ROWS,
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    HeldOutRows,
    calibrate,
    fit_temperature,
    negative_log_likelihood,
    read_calibration,
    read_held_out_rows,
    softmax,
    store_calibration,
)
from newsdesk.runs.labels import Labels


def simulated(rows, temperature, *, classes=4, seed=0):
    """Logits that are ``temperature`` times too sure, and labels drawn from what they ought to be."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(scale=2.0, size=(rows, classes))
    cumulative = softmax(honest).astype(np.float64).cumsum(axis=1)
    labels = (generator.random((rows, 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)
    return (honest * temperature).astype(np.float32), labels.astype(np.int64)


def held_out(rows=400, temperature=2.0):
    return HeldOutRows(*simulated(rows, temperature), sha256="abc")


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 9.0])
def test_a_known_temperature_is_recovered(temperature):
    assert fit_temperature(*simulated(20_000, temperature)) == pytest.approx(temperature, rel=0.03)


def test_no_other_temperature_makes_the_labels_likelier():
    logits, labels = simulated(2_000, 2.0)
    found = fit_temperature(logits, labels)
    least = negative_log_likelihood(logits, labels, found)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert least < negative_log_likelihood(logits, labels, factor * found)


def test_many_right_rows_ask_for_no_more_certainty_than_their_number_can_show():
    logits = np.eye(3, dtype=np.float32)[np.arange(98) % 3] * 5
    labels = np.arange(98) % 3
    sure = softmax(logits, fit_temperature(logits, labels)).max(axis=1)
    # One row in 99 counts as spread over three classes: two thirds of it are wrong.
    assert sure == pytest.approx(np.full(98, 1 - 2 / 3 / 99), abs=1e-5)


@pytest.mark.parametrize(
    ("logits", "labels", "temperature"),
    [
        ([[7.0], [3.0]], [0, 0], 1.0),  # one class
        ([[2.0, 2.0], [5.0, 5.0]], [0, 1], 1.0),  # nothing to sharpen
        ([[9.0, 0.0], [0.0, 9.0]], [1, 0], HIGHEST_TEMPERATURE),  # all wrong
        ([[1e-3, 0.0]] * 400, [0] * 400, LOWEST_TEMPERATURE),  # right, and hardly to be told
    ],
)
def test_where_no_temperature_is_best_it_stays_within_its_bounds(logits, labels, temperature):
    assert fit_temperature(np.array(logits), np.array(labels)) == pytest.approx(temperature)


def test_one_row_is_enough_for_a_moderate_temperature():
    assert LOWEST_TEMPERATURE < fit_temperature(np.array([[3.0, 0.0]]), np.array([0])) < HIGHEST_TEMPERATURE


def test_calibrating_says_what_it_changed():
    found = calibrate(held_out(), "rows of a test")
    assert found.expected_calibration_error.after < found.expected_calibration_error.before / 2
    assert found.negative_log_likelihood.after < found.negative_log_likelihood.before
    assert (found.rows, found.source, found.sha256) == (400, "rows of a test", "abc")
    assert "bound" not in found.how
    wrong = HeldOutRows(np.array([[9.0, 0.0]], np.float32), np.array([1]), "abc")
    assert "more than the bound" in calibrate(wrong, "a row").how


def test_what_is_kept_is_read_back(tmp_path):
    rows = held_out()
    stored = store_calibration(tmp_path, rows, "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == [CALIBRATION, CALIBRATION_ROWS]
    assert read_calibration(tmp_path) == stored
    read = read_held_out_rows(tmp_path)
    assert np.array_equal(read.logits, rows.logits)
    assert np.array_equal(read.labels, rows.labels)
    assert (read.sha256, read.logits.dtype, read.labels.dtype) == ("abc", np.float32, np.int64)


def test_distances_and_what_was_readable_are_kept_beside_the_rows(tmp_path):
    rows = held_out()
    store_calibration(tmp_path, rows, "here")
    read = read_held_out_rows(tmp_path)
    assert (read.distances, read.readable) == (None, None)
    distances = np.arange(len(rows.labels), dtype=np.float32)
    store_calibration(tmp_path, replace(rows, distances=distances, readable=distances > 3), "here")
    read = read_held_out_rows(tmp_path)
    assert np.array_equal(read.distances, distances)
    assert np.array_equal(read.readable, distances > 3)
    assert np.array_equal(read.logits, rows.logits)
    with pytest.raises(ValueError, match="distances of shape"):
        replace(rows, distances=distances[:-1])


def test_a_folder_without_one_has_none(tmp_path):
    assert read_calibration(tmp_path) is None
    assert read_held_out_rows(tmp_path) is None


@pytest.mark.parametrize(
    "change", [{"temperature": 0}, {"temperature": float("nan")}, {"temperature": "1"}, {"rows": None}]
)
def test_a_damaged_calibration_is_refused(tmp_path, change):
    store_calibration(tmp_path, held_out(), "here")
    content = json.loads((tmp_path / CALIBRATION).read_text()) | change
    if change.get("rows", 1) is None:
        del content["rows"]
    (tmp_path / CALIBRATION).write_text(json.dumps(content))
    with pytest.raises(UserError, match="missing or damaged"):
        read_calibration(tmp_path)


def test_damaged_rows_are_refused(tmp_path):
    store_calibration(tmp_path, held_out(), "here")
    whole = (tmp_path / CALIBRATION_ROWS).read_bytes()
    (tmp_path / CALIBRATION_ROWS).write_bytes(whole[:-9])
    with pytest.raises(UserError, match="missing or damaged"):
        read_held_out_rows(tmp_path)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [([[1.0, 2.0]], [0, 1]), ([1.0, 2.0], [0, 1]), ([[np.nan, 1.0]], [0]), (np.empty((0, 2)), [])],
)
def test_rows_that_cannot_be_calibrated_on_are_refused(logits, labels):
    with pytest.raises(ValueError, match="logits"):
        HeldOutRows(np.array(logits, dtype=np.float32), np.array(labels, dtype=np.int64), "abc")


def test_softmax_divides_by_the_temperature():
    logits = np.array([[2.0, 4.0]])
    assert softmax(logits, 2.0) == pytest.approx(softmax(np.array([[1.0, 2.0]])))


def test_a_calibration_of_other_labels_is_refused(tmp_path):
    """Whoever reads it with the labels that it is to be of: a number of theirs would be looked up in it."""
    rows = held_out()
    store_calibration(tmp_path, rows, "here")
    layout, classes = TextLayout(("text",)), rows.logits.shape[1]
    fitting = Labels(tuple(map(str, range(classes))), layout, 16)
    assert read_calibration(tmp_path, fitting) == read_calibration(tmp_path)
    assert read_held_out_rows(tmp_path, fitting) is not None
    for other in (replace(fitting, names=("a", "b", *fitting.names)), replace(fitting, task="multi")):
        with pytest.raises(UserError, match="missing or damaged"):
            read_held_out_rows(tmp_path, other)
    with pytest.raises(UserError, match="missing or damaged"):
        read_calibration(tmp_path, replace(fitting, task="multi"))

"""Drift: what changes is found soon, and what does not change raises hardly any alarm. By simulation."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.serving.drift import DriftDetector, StreamWatch

EVEN = np.full(4, 0.25)


def texts_until_alarm(detector, cells, most):
    for start in range(0, most, 16):
        detector.see(cells[start : start + 16].tolist())
        if detector.is_alarmed:
            return start + 16
    return most + 1


def test_a_shift_of_ten_points_is_found_within_500_texts():
    """Ten of a hundred texts move from one label to another: 19 of 20 such streams are found out in time."""
    generator = np.random.default_rng(0)
    moved = np.array([0.35, 0.15, 0.25, 0.25])
    delays = []
    for _ in range(100):
        detector = DriftDetector(generator.multinomial(5000, EVEN))
        detector.see(generator.choice(4, 320, p=EVEN).tolist())
        delays.append(texts_until_alarm(detector, generator.choice(4, 512, p=moved), 496))
    found = np.array(delays)
    assert (found <= 496).mean() >= 0.9
    assert np.median(found) < 300


@pytest.mark.parametrize("shares", [EVEN, np.array([0.6, 0.2, 0.1, 0.06, 0.04])], ids=["even", "uneven"])
def test_a_stream_that_does_not_change_raises_at_most_one_alarm_in_100_000_texts(shares):
    generator = np.random.default_rng(1)
    alarms, texts = 0, 0
    for _ in range(2):
        detector = DriftDetector(generator.multinomial(3000, shares))
        for _ in range(50):
            alarms += detector.see(generator.choice(len(shares), 2000, p=shares).tolist())
        texts += detector.texts
    assert texts == 200_000
    assert alarms <= 2


def test_an_alarm_ends_when_the_stream_is_as_before():
    generator = np.random.default_rng(2)
    detector = DriftDetector(generator.multinomial(5000, EVEN))
    detector.see([0] * 400)
    assert detector.is_alarmed
    assert detector.distance > 0.3
    detector.see(generator.choice(4, 1600, p=EVEN).tolist())
    assert not detector.is_alarmed
    assert detector.distance < 0.1


def test_labels_and_confidence_are_watched_apart():
    generator = np.random.default_rng(3)

    def answers(count, sureness):
        best = generator.integers(0, 3, count)
        sure = sureness(generator.random(count))
        found = np.repeat((1 - sure)[:, None] / 2, 3, axis=1)
        found[np.arange(count), best] = sure
        return found

    watch = StreamWatch(answers(2000, lambda drawn: 0.5 + drawn / 2))
    watch.see(answers(640, lambda drawn: 0.5 + drawn / 4))
    assert watch.kinds["confidence"].is_alarmed
    assert not watch.kinds["labels"].is_alarmed


def test_a_hundred_labels_are_watched_by_their_commonest():
    shares = np.r_[np.full(5, 0.15), np.full(95, 0.25 / 95)]
    generator = np.random.default_rng(4)

    def answers(count, p):
        return np.eye(100)[generator.choice(100, count, p=p)] * 0.9 + 0.001

    watch = StreamWatch(answers(2000, shares))
    watch.see(answers(640, np.r_[0.0, 0.3, shares[2:]]))
    assert watch.kinds["labels"].is_alarmed


def test_one_cell_cannot_drift():
    with pytest.raises(ValueError, match="two cells"):
        DriftDetector(np.array([7]))

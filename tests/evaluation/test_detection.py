"""AUROC and false positives are what their definitions say, ties and all."""

from __future__ import annotations

import numpy as np
import pytest

from newsdesk.evaluation.detection import area_under_roc, false_positive_rate

OWN = np.array([1.0, 2.0, 2.0, 5.0])
FOREIGN = np.array([2.0, 6.0, 0.0])


def test_area_is_the_share_of_pairs_in_the_right_order_with_ties_by_half():
    pairs = [(foreign > own) + (foreign == own) / 2 for own in OWN for foreign in FOREIGN]
    assert area_under_roc(OWN, FOREIGN) == pytest.approx(np.mean(pairs))
    assert area_under_roc(OWN, OWN + 10) == 1
    assert area_under_roc(OWN, OWN) == 0.5


def test_area_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    own, foreign = generator.normal(0, 1, 300).round(1), generator.normal(1, 2, 200).round(1)
    expected = metrics.roc_auc_score([0] * 300 + [1] * 200, np.concatenate([own, foreign]))
    assert area_under_roc(own, foreign) == pytest.approx(expected)


@pytest.mark.parametrize(("recall", "rate"), [(0.25, 1 / 3), (0.75, 2 / 3), (1.0, 2 / 3), (0.01, 1 / 3)])
def test_false_positives_pass_where_the_wanted_share_of_own_texts_does(recall, rate):
    assert false_positive_rate(OWN, FOREIGN, recall) == pytest.approx(rate)


@pytest.mark.parametrize("measure", [area_under_roc, false_positive_rate])
def test_both_kinds_of_text_are_needed(measure):
    for own, foreign in ((OWN, OWN[:0]), (OWN[:0], OWN)):
        with pytest.raises(ValueError, match="both are needed"):
            measure(own, foreign)

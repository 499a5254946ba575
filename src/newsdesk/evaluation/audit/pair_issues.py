"""Texts that may have several labels: which of those given are likely wrong, and which likely missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.folds import assign_folds
from newsdesk.data.stratification import LabelSets
from newsdesk.errors import missing_package
from newsdesk.evaluation.audit.audited_rows import AuditedData, joined_names
from newsdesk.evaluation.audit.findings import (
    KINDS_OF_FINDING,
    Judgement,
    Kind,
    LabelFindings,
    PairFinding,
    SeveralLabels,
    Verdict,
    too_few,
)
from newsdesk.evaluation.audit.label_issues import MOST_NEIGHBOURS, Rows
from newsdesk.label_set_metrics import Counts
from newsdesk.runs.label_decisions import LabelDecisions
from newsdesk.training.linear_baseline import has_words, tfidf_vectorizer

Floats = NDArray[np.float64]

LIKELY = 0.5
"""The chance of a fault from which on it is a finding."""

_LEAST_RANK = 0.75  # mean rank of a label's texts among the others: 0.5 is chance, 1 is perfect
_WRONG_BELOW = 0.8  # rank
_ANCHOR, _MOST_ANCHOR, _ANCHORED = 0.5, 0.75, 500
_LEAST_GIVEN = 0.01  # of the given labels have lower log-odds than any that is taken for missing


@dataclass(frozen=True)
class PairIssues:
    """What out-of-fold scores say about each label of each text.

    Attributes:
        micro_f1: of the labels that the scores assign, against the given ones, in [0, 1].
        majority: the micro F1 of giving every text the most frequent label alone.
        judged: bool (labels,): whether the label can be told from the others well enough.
        chances: float64 (rows, labels) in [0, 1]: the estimated chance that a given label is wrong, or that
            one that is not given is missing; 0 for labels that are not judged.
        misfits: float64 (rows, labels) in [0, 1]: orders the labels given, and those not given, by how badly
            that fits; chances follow it.
        wrong: the estimated share of wrong ones among the given labels that are judged, in [0, 1].
        missing: the estimated share of missing ones among the labels that texts should have, in [0, 1].
        assigned: bool (rows, labels): those that the scores assign.
    """

    micro_f1: float
    majority: float
    judged: NDArray[np.bool_]
    chances: Floats
    misfits: Floats
    wrong: float
    missing: float
    assigned: LabelSets

    def findings(self) -> list[tuple[int, int]]:
        """(row, label) wherever a fault is more likely than not, the likeliest first; ties in row order."""
        rows, labels = np.nonzero(self.chances >= LIKELY)
        order = np.lexsort((-self.misfits[rows, labels], -self.chances[rows, labels]))
        return list(zip(rows[order].tolist(), labels[order].tolist(), strict=True))


def out_of_fold_log_odds(
    texts: Sequence[str],
    embeddings: NDArray[np.float32],
    labels: LabelSets,
    clusters: Rows,
    *,
    folds: int,
    seed: int,
) -> Floats:
    """The log-odds of each label of each row by cross-validation: the mean of what two classifiers say.

    One sees the meaning: how many of the row's nearest neighbours by embedding have the label (as many as the
    square root of the rows learned from, at most 50). The other sees the words: a linear SVM for each label
    on TF-IDF. What each says becomes log-odds label by label (`LabelDecisions.fit`).

    Args:
        texts: (rows,); the words' weights, which know no labels, come from all of them.
        embeddings: float32 (rows, dimensions), each of length 1.
        labels: bool (rows, labels).
        clusters: int64 (rows,); rows of one cluster, such as copies of one text, share a fold.
        folds: how many parts, dealt by iterative stratification.
        seed: decides the folds.

    Returns float64 (rows, labels). Raises UserError where scikit-learn is missing.
    """
    try:
        from sklearn.neighbors import NearestNeighbors
        from sklearn.svm import LinearSVC
    except ImportError:
        raise missing_package("scikit-learn", "train", "an audit") from None
    fold_of = assign_folds(labels, clusters, folds, seed)
    words: Any = tfidf_vectorizer(len(texts)).fit_transform(texts) if has_words(texts) else None
    of_neighbours, of_words = np.zeros(labels.shape), np.zeros(labels.shape)
    for fold in range(folds):
        held_out, learned = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        if not len(held_out) or not len(learned):
            continue
        count = min(MOST_NEIGHBOURS, math.ceil(math.sqrt(len(learned))))
        nearest = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(embeddings[learned])
        having = nearest.kneighbors_graph(embeddings[held_out]) @ labels[learned].astype(np.float64)
        share = (having + 0.5) / (count + 1)
        of_neighbours[held_out] = np.log(share / (1 - share))
        for label in range(labels.shape[1] if words is not None else 0):
            given = labels[learned, label]
            side: Any = 1.0 if given.all() else -1.0
            if given.any() and not given.all():
                svm = LinearSVC(random_state=seed).fit(words[learned], given)
                side = svm.decision_function(words[held_out])
            of_words[held_out, label] = side
    heads = [of_neighbours, *([] if words is None else [of_words])]
    fitted = [LabelDecisions.fit(head, labels).log_odds(head) for head in heads]
    return np.asarray(np.mean(fitted, axis=0), dtype=np.float64)


def judge_pairs(log_odds: Floats, labels: LabelSets, clusters: Rows) -> PairIssues:
    """How likely each given label is wrong, and each other one missing; all are (rows, labels).

    **Wrong.** A label given at random fits its text as well as it fits texts without it: its rank among those
    is uniform. So five fourths of the given labels below rank 0.8 estimate how many are wrong (Storey, A
    direct approach to false discovery rates, 2002), and the chance of each is that share over the density of
    given labels at its rank, which rises with it (the local false discovery rate of Efron et al., 2001).

    **Missing.** Where scores are highest, texts should have the label, and the share of those without it is
    the share of missing ones (as in Elkan and Noto, Learning classifiers from only positive and unlabeled
    data, 2008): where the upper half of the given labels is, or of many the upper quarter. Elsewhere as many
    are missing for each one given, and the chance is their number over that of all texts without it there.

    Densities and shares are isotonic regressions over all judged labels. A label is judged if two different
    texts have it, some text has not, and its texts rank at 0.75 or higher among the others on average.
    """
    decisions = LabelDecisions.fit(log_odds, labels)
    fitted, probabilities = decisions.log_odds(log_odds), decisions.probabilities(log_odds)
    assigned = decisions.assigned(probabilities)
    ranks = _ranks(log_odds, labels)
    judged = np.array([_can_be_told(ranks[:, k], labels[:, k], clusters) for k in range(labels.shape[1])])
    chances, misfits = np.zeros(labels.shape), np.where(labels, 1 - ranks, probabilities)
    wrong = missing = 0.0
    if judged.any():
        given, lacking = labels & judged, ~labels & judged
        chances[given], wrong = _wrong(ranks[given])
        least = np.quantile(fitted[given], _LEAST_GIVEN)
        at = lacking & (fitted >= least)
        chances[at], missing = _missing(fitted[given], fitted[at])
    rows = labels.sum(axis=0)
    return PairIssues(
        micro_f1=float(Counts.of(assigned, labels).micro_f1()),
        majority=float(2 * rows.max() / (len(labels) + rows.sum())),
        judged=judged,
        chances=chances,
        misfits=np.asarray(misfits, dtype=np.float64),
        wrong=wrong,
        missing=missing,
        assigned=assigned,
    )


def _ranks(log_odds: Floats, labels: LabelSets) -> Floats:
    """The share of the texts without a label whose log-odds of it are lower, (rows, labels); ties half."""
    ranks = np.zeros(labels.shape)
    for label in range(labels.shape[1]):
        without = np.sort(log_odds[~labels[:, label], label])
        below = sum(np.searchsorted(without, log_odds[:, label], side) for side in ("left", "right"))
        ranks[:, label] = below / max(2 * len(without), 1)
    return ranks


def _can_be_told(ranks: Floats, given: NDArray[np.bool_], clusters: Rows) -> bool:
    texts = len(np.unique(clusters[given]))
    return texts >= 2 and not given.all() and float(ranks[given].mean()) >= _LEAST_RANK


def _wrong(ranks: Floats) -> tuple[Floats, float]:
    """The chance that each given label is wrong by its rank, (given,), and the share of wrong ones."""
    from sklearn.isotonic import IsotonicRegression

    share = min(1.0, float((ranks < _WRONG_BELOW).mean() / _WRONG_BELOW))
    uniform = (np.arange(len(ranks)) + 0.5) / len(ranks)
    is_given = np.repeat([1.0, 0.0], len(ranks))
    fitted = IsotonicRegression(out_of_bounds="clip").fit(np.concatenate([ranks, uniform]), is_given)
    among_both = fitted.predict(ranks)
    with np.errstate(divide="ignore", invalid="ignore"):
        chances = share * (1 - among_both) / among_both
    return np.clip(np.nan_to_num(chances, nan=0.0), 0.0, 1.0), share


def _missing(given: Floats, lacking: Floats) -> tuple[Floats, float]:
    """The chance that each label not given is missing by its log-odds, (lacking,), and the missing share."""
    from sklearn.isotonic import IsotonicRegression

    if not len(lacking):
        return lacking, 0.0
    high = np.quantile(given, np.clip(1 - _ANCHORED / len(given), _ANCHOR, _MOST_ANCHOR))
    lack, have = int((lacking >= high).sum()), int((given >= high).sum())
    share = lack / (lack + have)
    is_lacking = np.repeat([0.0, 1.0], [len(given), len(lacking)])
    falling = IsotonicRegression(increasing=False, out_of_bounds="clip")
    lacks = falling.fit(np.concatenate([given, lacking]), is_lacking).predict(lacking)
    with np.errstate(divide="ignore", invalid="ignore"):
        chances = share / (1 - share) * (1 - lacks) / lacks
    return np.clip(np.nan_to_num(chances, nan=0.0), 0.0, 1.0), share


def judge_sets(
    rows: AuditedData,
    sets: NDArray[np.bool_],
    embeddings: NDArray[np.float32],
    clusters: Rows,
    *,
    folds: int,
    seed: int,
) -> Verdict:
    """Wrong and missing labels where a row may have several. Raises UserError where none can be judged."""
    if not any(len(np.unique(clusters[given])) >= 2 for given in sets.T):
        raise too_few(f"no label of {rows.table.path.name} has two different texts")
    log_odds = out_of_fold_log_odds(rows.examples.texts, embeddings, sets, clusters, folds=folds, seed=seed)
    found = judge_pairs(log_odds, sets, clusters)
    pairs = _pairs(rows, sets, found)
    return Verdict(
        accuracy=found.micro_f1,
        majority=found.majority,
        noise=found.wrong,
        judgements=_set_judgements(rows, sets, found, pairs),
        several=_several(rows, found, pairs),
    )


def _pairs(rows: AuditedData, sets: NDArray[np.bool_], found: PairIssues) -> tuple[PairFinding, ...]:
    names, pairs = rows.examples.label_names, []
    for row, label in found.findings():
        suggested, kind = sets[row].copy(), KINDS_OF_FINDING[0 if sets[row, label] else 1]
        suggested[label] = not sets[row, label]
        pairs.append(
            PairFinding(
                row=row,
                line=rows.table.lines[row],
                given=rows.labels[row],
                suggested=joined_names(suggested, names),
                finding=kind,
                label=names[label],
                probability=float(found.chances[row, label]),
                text=rows.examples.texts[row],
            )
        )
    return tuple(pairs)


def _several(rows: AuditedData, found: PairIssues, pairs: Sequence[PairFinding]) -> SeveralLabels:
    counts = Counter((one.label, one.finding) for one in pairs)
    expected: dict[Kind, float] = {
        kind: round(sum(one.probability for one in pairs if one.finding == kind), 1)
        for kind in KINDS_OF_FINDING
    }
    of_labels = zip(
        rows.examples.label_names, rows.examples.label_rows().tolist(), found.judged.tolist(), strict=True
    )
    labels = tuple(
        LabelFindings(name, count, judged, *(counts[name, kind] for kind in KINDS_OF_FINDING))
        for name, count, judged in of_labels
    )
    return SeveralLabels(found.missing, expected, labels, tuple(pairs))


def _set_judgements(
    rows: AuditedData, sets: NDArray[np.bool_], found: PairIssues, pairs: Sequence[PairFinding]
) -> tuple[Judgement, ...]:
    """Every row, that of the likeliest fault first."""
    wanted = np.where(found.judged, found.assigned, sets)
    suspects = {one.row for one in pairs}
    likely = found.chances >= LIKELY
    for row in suspects:
        wanted[row] = sets[row] ^ likely[row]
    worst, misfit = found.chances.max(axis=1), (found.misfits * found.judged).max(axis=1)
    return tuple(
        Judgement(
            row=row,
            line=rows.table.lines[row],
            given=rows.labels[row],
            suggested=joined_names(wanted[row], rows.examples.label_names),
            probability=float(worst[row]),
            quality=1 - float(worst[row]),
            text=rows.examples.texts[row],
            suspect=row in suspects,
        )
        for row in np.lexsort((-misfit, -worst)).tolist()
    )

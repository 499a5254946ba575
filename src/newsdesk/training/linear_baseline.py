"""The baseline: a linear model that trains in seconds, which an encoder has to beat."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.examples import Examples, aligned_labels
from newsdesk.data.words import words_of
from newsdesk.errors import UserError, counted, missing_package
from newsdesk.label_set_metrics import Counts, bootstrap_intervals
from newsdesk.metrics import wilson_interval
from newsdesk.progress import Progress
from newsdesk.runs.label_decisions import rarest_labels
from newsdesk.runs.off_topic import stratified_rows
from newsdesk.stored import OPTIONAL, UNSTORED

Features = Literal["words 1-2", "characters 1-3", "characters 2-5"]
"""What a linear model counts: n-grams of so many words or characters; the longer ones stay within words."""

_WORDS: Features = "words 1-2"
_FEATURES: dict[Features, dict[str, Any]] = {
    # scikit-learn's own words drop single letters, and with them the U and the S of U.S.
    _WORDS: {"ngram_range": (1, 2), "tokenizer": words_of, "token_pattern": None},
    "characters 1-3": {"ngram_range": (1, 3), "analyzer": "char"},
    "characters 2-5": {"ngram_range": (2, 5), "analyzer": "char_wb"},
}
_RARE_WORDS_DROPPED_FROM_ROWS = 1000
_ROWS_CROSS_VALIDATED, _ROWS_HELD_OUT_ONCE = 2000, 3000
_ROWS_LEARNED_BEFORE_TRAINING = 20_000
_BEYOND_CHANCE = 1.64


@dataclass(frozen=True)
class BaselineResult:
    """The figures of a baseline on the test rows.

    Attributes:
        accuracy: share of test rows it classifies correctly, 0 to 1; where a text may have several labels, of
            those that get just the true ones.
        accuracy_interval: its 95 % Wilson interval (low, high).
        seconds: wall time of training and predicting.
        description: what it is, in a line.
        predicted: the label it gives each test row; not stored, so empty where the result was read.
        features: the n-grams that it counts.
        validation: accuracy of each kind of n-grams on rows held out of the training rows, 0 to 1; None where
            there were too few to choose by.
        micro_f1: F1 over all labels of all texts, 0 to 1; as the next two None where a text has one label.
        micro_f1_interval: its 95 % interval (low, high), by drawing texts with replacement.
        macro_f1: mean F1 over the labels that occur.
        assigned: which labels it gives each test row, (rows, labels); not stored.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    seconds: float
    description: str
    predicted: tuple[str, ...] = field(default=(), metadata=UNSTORED)
    features: str = _WORDS
    validation: Mapping[str, float] | None = None
    micro_f1: float | None = field(default=None, metadata=OPTIONAL)
    micro_f1_interval: tuple[float, float] | None = field(default=None, metadata=OPTIONAL)
    macro_f1: float | None = field(default=None, metadata=OPTIONAL)
    assigned: NDArray[np.bool_] | None = field(default=None, metadata=UNSTORED, compare=False)

    def with_sets(self, assigned: NDArray[np.bool_], labels: NDArray[np.bool_]) -> BaselineResult:
        """It with the figures of the labels assigned to texts, by the true ones; both (rows, labels)."""
        counts = Counts.of(assigned, labels)
        return replace(
            self,
            micro_f1=float(counts.micro_f1()),
            micro_f1_interval=bootstrap_intervals(assigned, labels, [Counts.micro_f1])[0],
            macro_f1=float(counts.macro_f1()),
            assigned=assigned,
        )


def linear_baseline(
    train: Examples, test: Examples, *, seed: int, progress: Progress | None = None
) -> BaselineResult:
    """Weigh n-grams by TF-IDF and separate the classes by a linear SVM (Joachims, 1998).

    The n-grams are words and word pairs or, where they do better on rows held out of ``train``, characters:
    see ``choose_features``. Term frequencies are sublinear, 1 + ln(count); the SVM is one against the rest
    with C = 1 and squared hinge loss, chosen on rows split off AG News' and Reuters R8's training rows.
    ``seed`` orders the rows for its coordinate descent and deals them to folds. Runs on one core.

    Where a text may have several labels it gets those on whose side of the SVM it is or, where all training
    rows have one, the nearest. Its features are then chosen by the rarest label of each row.
    Raises UserError where scikit-learn or labels are missing, ``train`` does not name a test row's class,
    or the training rows hold fewer than two classes or not one word.
    """
    try:
        import sklearn
    except ImportError as error:
        raise missing_package("scikit-learn", "train", "the linear baseline") from error
    train_labels = aligned_labels(train, train.label_names)
    counted_wrong = () if test.matching is None else test.matching.counted_wrong
    test_labels = aligned_labels(test, (*train.label_names, *counted_wrong))
    _check_learnable(train, train_labels)
    if progress is not None:
        progress(0, None, "fitting the baseline", "rows")
    begin = time.perf_counter()
    classes = rarest_labels(train_labels) if train.is_multi else train_labels
    features, validation = choose_features(train.texts, classes, seed)
    fit = _fit_and_assign if train.is_multi else _fit_and_predict
    predicted: NDArray[Any] = fit(features, train.texts, train_labels, test.texts, seed)
    seconds = time.perf_counter() - begin
    if train.is_multi:  # labels that are counted as errors are never assigned
        predicted = np.pad(predicted, ((0, 0), (0, test_labels.shape[1] - predicted.shape[1])))
    same = predicted == test_labels
    correct = int(same.all(axis=1).sum() if train.is_multi else same.sum())
    found = BaselineResult(
        accuracy=correct / len(test),
        accuracy_interval=wilson_interval(correct, len(test)),
        seconds=round(seconds, 1),
        description=f"TF-IDF of {features}, linear SVM (scikit-learn {sklearn.__version__})",
        features=features,
        validation=validation,
    )
    if not train.is_multi:
        return replace(found, predicted=tuple(train.label_names[i] for i in predicted))
    return found.with_sets(predicted, test_labels)


def remark_on_baseline(
    train: Examples, validation: Examples, *, seed: int, progress: Progress | None = None
) -> str | None:
    """What a linear model makes of the validation rows, a sentence; None where it cannot be fitted.

    So that whoever is about to train for an hour knows what the encoder has to beat. Of more than 20,000
    training rows it learns from so many, each class in its share.
    """
    if not len(validation):
        return None
    learned = train
    if len(train) > _ROWS_LEARNED_BEFORE_TRAINING:
        labels = aligned_labels(train, train.label_names)
        labels = rarest_labels(labels) if train.is_multi else labels
        learned = train.select(stratified_rows(labels, _ROWS_LEARNED_BEFORE_TRAINING, seed=seed))
    try:
        found = linear_baseline(learned, validation, seed=seed, progress=progress)
    except UserError:  # a single class, or not one word
        return None
    low, high = found.micro_f1_interval or found.accuracy_interval
    share = found.accuracy if found.micro_f1 is None else found.micro_f1
    figure = "" if found.micro_f1 is None else " micro F1"
    part = f", learned from {len(learned):,} rows" if len(learned) < len(train) else ""
    return (
        f"a linear model (TF-IDF of {found.features}, SVM{part}) reaches {share:.2%}{figure} "
        f"[{low:.2%}, {high:.2%}] on the {counted(len(validation), 'row')} that validations measure on: "
        "what the encoder has to beat"
    )


def choose_features(
    texts: Sequence[str], labels: NDArray[np.int64], seed: int
) -> tuple[Features, dict[str, float] | None]:
    """Which n-grams serve best, by cross-validation on these rows alone, and the accuracy of each, in [0, 1].

    Words stay unless others are better by more than chance would have it: by 1.64 standard errors of the
    difference between the two (McNemar, 1947), a one-sided test at 5 %. Rows beyond the first 2,000, in
    random order, are too many for five folds: one third of at most 3,000 is held out once. Without two
    classes of two rows nothing can be validated, and words are taken. (Words are characters where a script
    has no spaces: ``words_of``.)
    """
    counts = np.bincount(labels)
    usable = np.flatnonzero(counts[labels] >= 2)
    if len(np.unique(labels[usable])) < 2:
        return _WORDS, None
    right: dict[Features, list[NDArray[np.bool_]]] = {features: [] for features in _FEATURES}
    for learned, held_out in _folds(labels, usable, seed):
        for features in _FEATURES:
            predicted = _fit_and_predict(
                features, [texts[i] for i in learned], labels[learned], [texts[i] for i in held_out], seed
            )
            right[features].append(predicted == labels[held_out])
    answers = {features: np.concatenate(parts) for features, parts in right.items()}
    chosen = max(_FEATURES, key=lambda features: int(answers[features].sum()))  # the first of equals: words
    gained = int((answers[chosen] & ~answers[_WORDS]).sum())
    lost = int((answers[_WORDS] & ~answers[chosen]).sum())
    if gained - lost <= _BEYOND_CHANCE * sqrt(gained + lost):
        chosen = _WORDS
    return chosen, {features: float(found.mean()) for features, found in answers.items()}


def _folds(
    labels: NDArray[np.int64], usable: NDArray[np.int64], seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to learn from and rows to predict, both sorted, each class in both wherever it has two rows."""
    from sklearn.model_selection import StratifiedKFold

    order = np.random.Generator(np.random.PCG64(seed)).permutation(usable)
    rows = np.sort(order[:_ROWS_HELD_OUT_ONCE])
    few = len(rows) <= _ROWS_CROSS_VALIDATED
    parts = min(5 if few else 3, int(np.bincount(labels[rows]).max()))
    folds = StratifiedKFold(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class of fewer rows than folds is in some of them: as good as it gets
        warnings.filterwarnings("ignore", message="The least populated class")
        pairs = list(folds.split(rows, labels[rows]))
    for learned, held_out in pairs if few else pairs[:1]:
        if len(np.unique(labels[rows[learned]])) > 1:
            yield rows[learned], rows[held_out]


def _fit_and_predict(
    features: Features,
    texts: Sequence[str],
    labels: NDArray[np.int64],
    test_texts: Sequence[str],
    seed: int,
) -> NDArray[np.int64]:
    from sklearn.svm import LinearSVC

    vectorizer = tfidf_vectorizer(len(texts), features)
    try:
        counted = vectorizer.fit_transform(texts)
    except ValueError:  # these texts share no n-gram
        return np.full(len(test_texts), np.bincount(labels).argmax())
    classifier = LinearSVC(C=1.0, random_state=seed).fit(counted, labels)
    return np.asarray(classifier.predict(vectorizer.transform(test_texts)), dtype=np.int64)


def _fit_and_assign(
    features: Features,
    texts: Sequence[str],
    labels: NDArray[np.bool_],
    test_texts: Sequence[str],
    seed: int,
) -> NDArray[np.bool_]:
    """The labels that one SVM for each of them gives the test texts, (test texts, labels)."""
    from sklearn.svm import LinearSVC

    vectorizer = tfidf_vectorizer(len(texts), features)
    try:
        counted = vectorizer.fit_transform(texts)
    except ValueError:  # these texts share no n-gram
        return np.tile(labels.mean(axis=0) > 0.5, (len(test_texts), 1))
    asked = vectorizer.transform(test_texts)
    sides = np.where(labels.any(axis=0), np.inf, -np.inf) * np.ones((len(test_texts), 1))
    for label in np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)):
        classifier = LinearSVC(C=1.0, random_state=seed).fit(counted, labels[:, label])
        sides[:, label] = classifier.decision_function(asked)
    assigned = sides > 0
    if labels.any(axis=1).all():
        assigned[np.arange(len(sides)), sides.argmax(axis=1)] = True
    return assigned


def tfidf_vectorizer(rows: int, features: Features = _WORDS) -> Any:
    """scikit-learn's TF-IDF over n-grams, not yet fitted, for so many texts to learn from."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        **_FEATURES[features],
        lowercase=features != _WORDS,
        sublinear_tf=True,
        min_df=2 if rows > _RARE_WORDS_DROPPED_FROM_ROWS else 1,
        dtype=np.float32,
    )


def has_words(texts: Iterable[str]) -> bool:
    """Whether these texts hold anything but punctuation."""
    return any(map(words_of, texts))


def _check_learnable(train: Examples, labels: NDArray[Any]) -> None:
    if train.is_multi and (labels == labels[0]).all():
        raise UserError(
            "the linear baseline needs training rows with and without some label",
            found=f"{counted(len(train), 'row')} that all have the same labels in {train.source}",
        )
    if (labels == labels[0]).all():
        raise UserError(
            "the linear baseline needs training rows of at least two classes",
            found=f"{counted(len(train), 'row')} of {train.label_names[labels[0]]!r} in {train.source}",
        )
    if not has_words(train.texts):
        raise UserError(
            "the linear baseline found no words in the training texts",
            found=f"{counted(len(train), 'text')} in {train.source}",
        )

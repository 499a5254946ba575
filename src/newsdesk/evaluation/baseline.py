"""The yardstick: a linear model that trains in seconds, which an encoder has to beat."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.examples import Examples
from newsdesk.data.words import words_of
from newsdesk.errors import UserError, missing_package
from newsdesk.evaluation.alignment import aligned_labels
from newsdesk.metrics import wilson_interval
from newsdesk.stored import UNSTORED

_RARE_WORDS_DROPPED_FROM_ROWS = 1000


@dataclass(frozen=True)
class BaselineResult:
    """How a baseline did on the test rows.

    Attributes:
        accuracy: share of test rows it classifies correctly, 0 to 1.
        accuracy_interval: its 95 % Wilson interval (low, high).
        seconds: wall time of training and predicting.
        description: what it is, in a line.
        predicted: the label it gives each test row; not stored, so empty where the result was read.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    seconds: float
    description: str
    predicted: tuple[str, ...] = field(default=(), metadata=UNSTORED)


def linear_baseline(train: Examples, test: Examples, *, seed: int) -> BaselineResult:
    """Weigh words and word pairs by TF-IDF and separate the classes by a linear SVM (Joachims, 1998).

    Term frequencies are sublinear, 1 + ln(count); the SVM is one against the rest with C = 1 and squared
    hinge loss, chosen on rows split off AG News' and Reuters R8's training rows. ``seed`` orders the rows
    for its coordinate descent. Runs on one core.
    Raises UserError where scikit-learn or labels are missing, ``train`` does not name a test row's class,
    or the training rows hold fewer than two classes or not one word.
    """
    try:
        import sklearn
    except ImportError as error:
        raise missing_package("scikit-learn", "train", "the linear baseline") from error
    train_labels = aligned_labels(train, train.label_names)
    test_labels = aligned_labels(test, train.label_names)
    _check_learnable(train, train_labels)
    begin = time.perf_counter()
    predicted = _fit_and_predict(train.texts, train_labels, test.texts, seed)
    seconds = time.perf_counter() - begin
    correct = int((predicted == test_labels).sum())
    return BaselineResult(
        accuracy=correct / len(test),
        accuracy_interval=wilson_interval(correct, len(test)),
        seconds=round(seconds, 1),
        description=f"TF-IDF 1-2-grams, linear SVM (scikit-learn {sklearn.__version__})",
        predicted=tuple(train.label_names[i] for i in predicted),
    )


def _fit_and_predict(
    texts: Sequence[str], labels: NDArray[np.int64], test_texts: Sequence[str], seed: int
) -> NDArray[np.int64]:
    from sklearn.svm import LinearSVC

    vectorizer = word_vectorizer(len(texts))
    classifier = LinearSVC(C=1.0, random_state=seed).fit(vectorizer.fit_transform(texts), labels)
    return np.asarray(classifier.predict(vectorizer.transform(test_texts)), dtype=np.int64)


def word_vectorizer(rows: int) -> Any:
    """scikit-learn's TF-IDF over words and word pairs, not yet fitted, for so many texts to learn from."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        tokenizer=words_of,  # scikit-learn's own drops one-letter words, and with them the U and S of U.S.
        token_pattern=None,
        lowercase=False,
        min_df=2 if rows > _RARE_WORDS_DROPPED_FROM_ROWS else 1,
        dtype=np.float32,
    )


def has_words(texts: Iterable[str]) -> bool:
    """Whether ``word_vectorizer`` finds anything in these texts."""
    return any(map(words_of, texts))


def _check_learnable(train: Examples, labels: NDArray[np.int64]) -> None:
    if (labels == labels[0]).all():
        raise UserError(
            "the linear baseline needs training rows of at least two classes",
            found=f"{len(train)} rows of {train.label_names[labels[0]]!r} in {train.source}",
        )
    if not has_words(train.texts):
        raise UserError(
            "the linear baseline found no words in the training texts",
            found=f"{len(train)} texts in {train.source}",
        )

"""How far a text is from what a classifier was trained on: a distance between features, and its p-value.

Features are the states of the tokens after two thirds of the layers, averaged over the text: deeper layers
keep what tells the classes apart and lose the rest, by which off-topic texts show (docs/trust.md has the
comparison). The distance is Mahalanobis's to the nearest class (Lee et al., 2018), with a covariance that
depends on the length of the text: an average of few tokens is far from everything without being off topic.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from newsdesk.files import stored_tensors, write_bytes
from newsdesk.model.tokenizer import TokenIds, lengths_of

OFF_TOPIC = "off_topic.safetensors"
MOST_ROWS = 2000
"""Training rows that a score is fitted on."""

SHORTEST_CUT = 4  # tokens kept of a text that is cut, its closing one not counted

_RIDGE = 0.01  # share of the mean variance that is added to every direction: rows may be fewer than features
_MOST_BY_LENGTH = 0.95  # of a direction's variance: some is left to texts that are endlessly long
_FORMAT = "1"
_FIX = "fit it again with newsdesk calibrate"

Values = NDArray[np.floating]
Floats = NDArray[np.float32]
Halves = NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class OffTopicScore:
    """What is needed to say how far off topic a text is; made by `fit_off_topic`.

    Attributes:
        projection: float32 (features, features), or float16, to coordinates that vary independently, each by
            1 at the usual length.
        centres: float32 (classes, features), the classes' means in these coordinates.
        by_length: float32 (features,), how a coordinate's variance grows with 1 / tokens.
        usual_inverse_length: the mean of 1 / tokens over the rows it was fitted on.
        reference: float32 (rows,), distances of held-out texts of the training topics, ascending.
        facts: numbers of rows, as text by name.
    """

    projection: Floats | Halves
    centres: Floats
    by_length: Floats
    usual_inverse_length: float
    reference: Floats
    facts: Mapping[str, str] = field(default_factory=dict)

    def distances(self, features: Values, tokens: NDArray[np.integer]) -> Floats:
        """Squared Mahalanobis distance to the nearest class, (rows,); greater is further off topic.

        ``features`` is (rows, features), ``tokens`` the length of each text, (rows,).
        """
        inverse = 1 / tokens.astype(np.float32)[:, None] - np.float32(self.usual_inverse_length)
        deviation = np.sqrt(1 + self.by_length * inverse)
        points = features @ self.projection.astype(np.float32, copy=False)
        to_each = [(((points - centre) / deviation) ** 2).sum(axis=1) for centre in self.centres]
        return np.min(to_each, axis=0)  # type: ignore[no-any-return]

    def halved(self) -> Self:
        """The same score in half the memory: its projection in float16, where that can hold it.

        A distance changes by less than a hundredth of what it changes by from one text to another.
        """
        with np.errstate(over="ignore"):
            halves = self.projection.astype(np.float16)
        return replace(self, projection=halves) if np.isfinite(halves).all() else self

    def p_values(self, distances: Values) -> Floats:
        """Share of the held-out texts that are at least as far off topic, (rows,), never 0.

        A conformal p-value (Vovk et al., 2005; Bates et al., 2023): of texts like the held-out ones, at most
        a share p gets p or less. The smallest is 1 / (held-out rows + 1).
        """
        return self._p_values(distances, 1)

    def on_topic(self, distances: Values, level: float) -> NDArray[np.bool_]:
        """Which of the rows that the reference was made of pass the filter of ``level``, (rows,).

        A promise about texts with a p-value above ``level`` needs calibration rows drawn as these texts are.
        The filter's cutoff is the k-th largest distance of the reference, k = level * (rows + 1) rounded
        down: the row that sets it is no random one, and is left out. The nearer ones are, given the cutoff,
        independent draws of the texts that pass (a property of order statistics). So the comparison counts
        the row itself, which ``p_values`` of new texts does not.
        """
        return np.asarray(self._p_values(distances, 0) > level, dtype=np.bool_)

    def _p_values(self, distances: Values, itself: int) -> Floats:
        rows = len(self.reference)
        at_least = rows - np.searchsorted(self.reference, distances, side="left")
        return np.asarray((itself + at_least) / (1 + rows), dtype=np.float32)

    def with_reference(self, distances: Values) -> Self:
        """The same score with these distances of held-out texts, (rows,). Raises ValueError without rows."""
        if not len(distances):
            raise ValueError("a p-value needs at least one row to compare with")
        facts = {**self.facts, "held_out_rows": str(len(distances))}
        return replace(self, reference=np.sort(distances).astype(np.float32), facts=facts)

    def save(self, file: Path) -> None:
        """Write it as safetensors, atomically."""
        from safetensors.numpy import save

        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        tensors["usual_inverse_length"] = np.array([self.usual_inverse_length], dtype=np.float64)
        write_bytes(file, save(tensors, metadata={"format": _FORMAT, **self.facts}))

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """The score that a run or an exported model carries; None where it has none. Raises as ``load``."""
        file = folder / OFF_TOPIC
        return cls.load(file) if os.path.lexists(file) else None

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what ``save`` wrote. Raises UserError when it is missing or damaged."""
        with stored_tensors(file, fix=_FIX) as content:
            facts = dict(content.metadata() or {})
            tensors: dict[str, Any] = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            if facts.pop("format", None) != _FORMAT:
                raise ValueError(f"a format other than {_FORMAT}")
            usual = float(tensors.pop("usual_inverse_length")[0])
            features = len(tensors["by_length"])
            shapes = {"projection": (features, features), "by_length": (features,)}
            shapes["centres"] = (len(tensors["centres"]), features)
            shapes["reference"] = (tensors["reference"].size,)
            for name, shape in shapes.items():
                if tensors[name].shape != shape or not np.isfinite(tensors[name]).all():
                    raise ValueError(f"{name} is {tensors[name].shape}, not {shape} numbers")
            if not (len(tensors["centres"]) and len(tensors["reference"])):
                raise ValueError("centres or reference without rows")
            if not (0 <= usual <= 1 and (tensors["by_length"] >= 0).all()):
                raise ValueError("by_length or usual_inverse_length is out of its range")
            return cls(**tensors, usual_inverse_length=usual, facts=facts)


_TENSORS = ("projection", "centres", "by_length", "reference")


def off_topic_score(
    features_of: Callable[[Sequence[TokenIds]], Floats],
    train: Sequence[TokenIds],
    labels: NDArray[np.integer],
    held_out: Sequence[TokenIds],
) -> tuple[OffTopicScore, Floats] | None:
    """A classifier's score from rows it learned from and rows it did not; None where none were held out.

    Up to `MOST_ROWS` training rows are taken, and every second once more, cut short, which shows how features
    depend on length where all rows are long. Beside the score come the distances of all held-out rows,
    (rows,), in their order: its reference is sorted.

    Args:
        features_of: what computes features (rows, features) of token ids, the classifier itself.
        train: token ids of the training rows.
        labels: their class ids, (rows,).
        held_out: token ids of rows of the same kind.
    """
    if not held_out:
        return None
    rows = stratified_rows(labels, MOST_ROWS)
    whole = [train[row] for row in rows]
    generator = np.random.Generator(np.random.PCG64(0))
    sequences = whole + [cut_short(sequence, generator) for sequence in whole[::2]]
    of_class = np.concatenate([labels[rows], labels[rows][::2]])
    fitted = fit_off_topic(features_of(sequences), lengths_of(sequences), of_class)
    distances = fitted.distances(features_of(held_out), lengths_of(held_out))
    return replace(fitted, facts={"fitted_rows": str(len(sequences))}).with_reference(distances), distances


def fit_off_topic(
    features: Values, tokens: NDArray[np.integer], labels: NDArray[np.integer]
) -> OffTopicScore:
    """Fit the distance on training texts, some of them cut short; the reference is still empty.

    The covariance of a text's features is taken as A + B / tokens: what differs between texts, and what
    differs between tokens and averages out. One regression of the products of deviations on 1 / tokens gives
    both, and coordinates in which both are diagonal.

    Args:
        features: (rows, features).
        tokens: the length of each text, (rows,), at least 1.
        labels: class ids, (rows,); classes without rows have no centre.
    """
    exact = np.asarray(features, dtype=np.float64)
    inverse = 1 / np.asarray(tokens, dtype=np.float64)
    classes, of_class = np.unique(labels, return_inverse=True)
    centres = np.stack([exact[of_class == number].mean(axis=0) for number in range(len(classes))])
    deviations = exact - centres[of_class]
    whitening = _whitening(deviations)
    by_length, axes = _by_length(deviations @ whitening, inverse)
    projection = whitening @ axes
    return OffTopicScore(
        projection.astype(np.float32),
        (centres @ projection).astype(np.float32),
        by_length.astype(np.float32),
        float(inverse.mean()),
        np.zeros(0, dtype=np.float32),
    )


def _whitening(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """(features, features), to coordinates of unit covariance."""
    covariance = deviations.T @ deviations / len(deviations)
    mean_variance = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    ridge = _RIDGE * mean_variance * np.eye(len(covariance))
    return np.linalg.inv(np.linalg.cholesky(covariance + ridge)).T


def _by_length(
    points: NDArray[np.float64], inverse: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slopes of the variances in 1 / tokens, (features,), and their axes, (features, features)."""
    if not np.ptp(inverse):
        return np.zeros(points.shape[1]), np.eye(points.shape[1])
    slopes = (points.T * (inverse - inverse.mean())) @ points / len(points) / inverse.var()
    values, axes = np.linalg.eigh(slopes)
    return np.clip(values, 0, _MOST_BY_LENGTH / float(inverse.mean())), axes


def stratified_rows(labels: NDArray[np.integer], most: int, *, seed: int = 0) -> NDArray[np.int64]:
    """At most ``most`` row numbers, ascending, each class in its share of all rows."""
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    places = np.linspace(0, len(labels) - 1, min(most, len(labels))).round().astype(np.int64)
    return np.sort(by_class[places])


def cut_short(sequence: TokenIds, generator: np.random.Generator) -> TokenIds:
    """The beginning of a text's token ids, of random length, and its closing token; the shortest stay."""
    if len(sequence) <= SHORTEST_CUT + 1:
        return sequence
    kept = int(generator.integers(SHORTEST_CUT, len(sequence) - 1))
    return np.concatenate([sequence[:kept], sequence[-1:]])

"""True labels in a model's own order of classes: data may name the same classes in another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from newsdesk.data.examples import Examples
from newsdesk.data.labels import LabelMatcher
from newsdesk.errors import UserError, counted


def aligned_labels(examples: Examples, label_names: Sequence[str]) -> NDArray[np.int64]:
    """The class of every row as an id into ``label_names``, shape (rows,); matched as by `LabelMatcher`.

    Raises UserError when there are no rows, no labels, or a row's class is not among ``label_names``.
    """
    if examples.labels is None:
        raise UserError(
            "these rows have no labels to compare with",
            found=f"{len(examples)} unlabelled texts in {examples.source}",
            fix="give labelled rows, or classify these with newsdesk predict",
        )
    if len(examples) == 0:
        raise UserError("there are no rows to evaluate", found=f"an empty split in {examples.source}")
    ids = LabelMatcher(label_names).matches(examples.label_names)
    ids_here = np.array([ids.get(name, -1) for name in examples.label_names], dtype=np.int64)
    labels = ids_here[examples.labels]
    if (unknown := labels < 0).any():
        name = examples.label_names[int(examples.labels[unknown][0])]
        raise UserError(
            f"{examples.source} has rows of the class {name!r}, which the model does not know",
            found=f"{counted(int(unknown.sum()), 'row')} of unknown classes; "
            f"the model knows {', '.join(label_names)}",
            fix="rename the classes or drop those rows; to learn new classes, train on them",
        )
    return labels

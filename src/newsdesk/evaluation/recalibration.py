"""A run or exported model is calibrated anew, each folder by the logits that it computes itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from newsdesk.data.examples import Examples, aligned_labels
from newsdesk.errors import counted
from newsdesk.evaluation.evaluate import require_plausible_numbers
from newsdesk.prediction.open_model import RunClassifier, open_model
from newsdesk.runs.calibration import Calibration, HeldOutRows, store_calibration
from newsdesk.runs.exported import KINDS, ExportedModel, find_exported
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.off_topic import MOST_ROWS, OFF_TOPIC, off_topic_score, stratified_rows

if TYPE_CHECKING:
    from newsdesk.data.load import TrainingData
    from newsdesk.progress import Progress


def folders_of(found: RunFolder | ExportedModel) -> list[RunFolder | ExportedModel]:
    """An exported model alone; a run with the exports in its folder, by which it may predict."""
    if isinstance(found, ExportedModel):
        return [found]
    return [found, *filter(None, (find_exported(found.path / "export" / kind) for kind in KINDS))]


def calibrate_on(
    rows: Examples,
    folders: Sequence[RunFolder | ExportedModel],
    *,
    progress: Progress | None = None,
) -> dict[Path, Calibration]:
    """Fit and keep the calibration of each folder on labelled rows that nothing was learned from.

    Exported models are sealed again, runs are left to the caller. ``progress`` is called with the
    rows done by each. Raises UserError for rows without labels or of unknown classes, and damaged folders.
    """
    made = {}
    for folder in folders:
        labels = aligned_labels(rows, folder.labels.names)
        classifier = open_model(folder, engine="own", checks="all", progress=progress)
        encoded = classifier.encode(rows.texts)
        logits, distances = classifier.outputs(encoded.ids, progress=progress)
        require_plausible_numbers(rows, labels, logits, folder.labels.names)
        held_out = HeldOutRows(logits, labels, rows.fingerprint(), distances, encoded.readable)
        source = f"{counted(len(rows), 'row')} of {rows.source}"
        made[folder.path] = store_calibration(folder.path, held_out, source, folded=classifier.folded)
        if classifier.off_topic is not None and distances is not None:
            classifier.off_topic.with_reference(distances).save(folder.path / OFF_TOPIC)
        if isinstance(folder, ExportedModel):
            folder.seal_calibration()
    return made


def give_off_topic_score(run: RunFolder, data: TrainingData, progress: Progress | None = None) -> None:
    """Fit the off-topic score of a run that was made without one, on its own rows."""
    classifier = RunClassifier(run, progress=progress)
    assert data.train.labels is not None  # or it could not have learned from them
    train = data.train.select(stratified_rows(data.train.labels, MOST_ROWS))
    assert train.labels is not None
    held_out = classifier.token_ids(data.calibrating.texts)
    found = off_topic_score(classifier.features, classifier.token_ids(train.texts), train.labels, held_out)
    if found is not None:
        found[0].save(run.off_topic)

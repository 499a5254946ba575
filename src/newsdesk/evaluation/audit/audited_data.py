"""What ``audit --data`` and ``--test`` say, as rows to be audited and rows they must not share texts with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from newsdesk.data.datasets import DATA_SETS, has_test_rows
from newsdesk.data.dialect import Dialect
from newsdesk.data.examples import Examples
from newsdesk.data.labels import LabelMatcher
from newsdesk.data.layout import TextLayout, label_column, labels_with_faults, text_layout, to_examples
from newsdesk.data.load import load_split, require_two_classes
from newsdesk.data.table import Table
from newsdesk.errors import UserError
from newsdesk.sources.source import Progress

_SPLITS = ("train", "test")


@dataclass(frozen=True)
class AuditedData:
    """Rows to be audited, and the other split of the same data, if there is one.

    Attributes:
        table: the rows as the file has them.
        layout: how they became texts.
        examples: texts and class ids, in the same order.
        label_column: the column that holds the class.
        other: the split whose texts must not be among these.
    """

    table: Table
    layout: TextLayout
    examples: Examples
    label_column: str
    other: Table | None

    @property
    def labels(self) -> list[str]:
        """The label of each row by name."""
        assert self.examples.labels is not None  # load_audited demands them
        return [self.examples.label_names[label] for label in self.examples.labels]

    def other_rows(self) -> tuple[Sequence[str], Sequence[str]]:
        """Texts and labels of the other split; labels are empty where it has no such column.

        Labels that stand for a class of the audited rows are called as there, others as they are.
        """
        if self.other is None:
            return (), ()
        texts = self.layout.for_table(self.other).texts(self.other)
        if self.label_column not in self.other.columns:
            return texts, [""] * len(texts)
        labels = labels_with_faults(self.other, self.label_column)[0]
        matcher = LabelMatcher(self.examples.label_names)
        ids = matcher.positions(set(labels) - {""}) or matcher.matches(set(labels))
        return texts, [matcher.names[ids[label]] if label in ids else label for label in labels]


def load_audited(
    data: str,
    *,
    split: str,
    test: str | None,
    text: Sequence[str] | None,
    label: str | None,
    template: str | None,
    normaliser: str,
    dialect: Dialect,
    progress: Progress | None,
) -> AuditedData:
    """Read and lay out the rows that the flags of an audit name; they mean what they mean to ``audit``.

    Raises UserError for anything that keeps the rows from being read, and unless two classes have rows.
    """
    dialect = dialect.asking(text, label, template)
    found = load_split(data, split, dialect=dialect, progress=progress)
    layout = text_layout(found.table, text=text, label=label, template=template, normaliser=normaliser)
    examples = to_examples(
        found.table,
        text=layout.text_columns,
        label=label,
        template=layout.template,
        normaliser=layout.normaliser,
        labelled=True,
    )
    require_two_classes(examples)
    column = label_column(found.table, label, layout.text_columns)
    assert column is not None  # or the rows had no labels
    other = _other_split(data, split, test, dialect, progress)
    if other is not None and other.path.samefile(found.table.path):
        raise UserError(
            "the audited rows and those they are compared with are the same file",
            found=str(other.path),
            fix="give another file with --test, or leave it out",
        )
    return AuditedData(found.table, layout, examples, column, other)


def _other_split(
    data: str, split: str, test: str | None, dialect: Dialect, progress: Progress | None
) -> Table | None:
    """The table that ``--test`` names; without it the other split of the data, where it has one."""
    folder = Path(data).expanduser()
    if test is None:
        has_other = data in DATA_SETS or (folder.is_dir() and has_test_rows(folder))
        test = next(name for name in _SPLITS if name != split) if has_other else None
    if test is None:
        return None
    source = data if test in _SPLITS and not Path(test).exists() else test
    return load_split(source, test if source == data else "test", dialect=dialect, progress=progress).table

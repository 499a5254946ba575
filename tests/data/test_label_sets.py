"""Texts with several labels are read alike however a file writes them, and split so that no label is lost."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from newsdesk.cli.data import render_check
from newsdesk.config import DataSection, load_recipe
from newsdesk.data.check import Together, check
from newsdesk.data.columns import TextLayout, label_column
from newsdesk.data.examples import Examples, aligned_labels, hold_out, joined, split
from newsdesk.data.labelled import LabelFormat, to_examples
from newsdesk.data.load import first_rows, load_training_data
from newsdesk.data.stratification import label_counts, stratified
from newsdesk.data.stream import read_table
from newsdesk.errors import UserError
from newsdesk.evaluation.rows import evaluation_rows
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.labels import Labels

ROWS = (
    ("Budget talks at the stadium", ("money", "sport")),
    ("Goal in extra time", ("sport",)),
    ("Rain expected", ()),
    ("Banks raise rates", ("money",)),
)
NAMES = ("money", "sport")
SETS = [[True, True], [False, True], [False, False], [True, False]]


def as_jsonl(path: Path) -> Path:
    rows = ({"text": text, "topics": list(labels)} for text, labels in ROWS)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_csv(path: Path, cell, header=("text", "topics")) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *((text, *cell(labels)) for text, labels in ROWS)])
    return path


def as_parquet(path: Path) -> Path:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"text": [text for text, _ in ROWS], "topics": [list(labels) for _, labels in ROWS]}
    parquet.write_table(pa.table(columns), path)
    return path


def marked(yes: str, no: str):
    return lambda labels: [yes if name in labels else no for name in NAMES]


WAYS = {
    "jsonl": (as_jsonl, {"label": "topics"}),
    "parquet": (as_parquet, {"label": "topics"}),
    "python lists": (lambda path: as_csv(path, lambda labels: [repr(list(labels))]), {"label": "topics"}),
    "json lists": (lambda path: as_csv(path, lambda labels: [json.dumps(labels)]), {"label": "topics"}),
    "separator": (
        lambda path: as_csv(path, lambda labels: [" ; ".join(labels)]),
        {"label": "topics", "label_separator": ";"},
    ),
    "lines": (
        lambda path: as_csv(path, lambda labels: ["\n".join(labels)]),
        {"label": "topics", "label_separator": r"\n"},
    ),
    **{
        f"{yes!r} and {no!r}": (
            lambda path, yes=yes, no=no: as_csv(path, marked(yes, no), ("text", *NAMES)),
            {"label_columns": NAMES},
        )
        for yes, no in (("1", "0"), ("true", "False"), ("YES", ""), ("1.0", "0"))
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_labels_are_the_same_however_a_file_writes_them(tmp_path, way):
    write, flags = WAYS[way]
    path = tmp_path / ("wire.jsonl" if way == "jsonl" else "wire.parquet" if way == "parquet" else "wire.csv")
    examples = to_examples(read_table(write(path)), **flags)
    assert examples.is_multi
    assert examples.label_names == NAMES
    assert examples.labels is not None
    assert examples.labels.dtype == np.bool_
    assert examples.labels.tolist() == SETS
    assert examples.texts == tuple(text for text, _ in ROWS)
    report = check(path, **flags)
    assert report.malformed == ()
    assert report.label_counts == {"money": 2, "sport": 2}


def test_class_ids_of_the_hub_are_named_in_lists_too(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    label = {"names": ["anger", "joy", "fear"], "_type": "ClassLabel"}
    for feature in ({"feature": label, "_type": "Sequence"}, {"feature": label, "_type": "List"}, [label]):
        metadata = json.dumps({"info": {"features": {"labels": feature}}})
        table = pa.table({"text": ["a", "b", "c"], "labels": [[0, 2], [], [1]]})
        parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
        examples = to_examples(read_table(tmp_path / "a.parquet"))
        assert examples.label_names == ("anger", "joy", "fear")
        assert examples.labels is not None
        assert examples.labels.tolist() == [[True, False, True], [False] * 3, [False, True, False]]


def write(path: Path, *cells: object) -> Path:
    rows = [{"text": f"text {number}", "label": cell} for number, cell in enumerate(cells)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("cells", "task", "is_multi", "note"),
    [
        ([["a", "b"], ["a"]], "auto", True, "a text may have several labels (lists in 'label'): 1.50 on"),
        ([["a"], ["b"], ["b", "b"]], "auto", False, "each list in 'label' has one label"),
        ([["a"], ["b"]], "multi", True, "a text may have several labels (data.task = multi)"),
        (["a", "b"], "multi", True, "1.00 on average, 1 at most, 0 texts without any"),
        (["a", "b"], "auto", False, None),
        ([["a"], ["b"]], "single", False, None),
    ],
)
def test_a_file_decides_on_the_task_and_the_log_says_so(tmp_path, cells, task, is_multi, note):
    path = write(tmp_path / "a.jsonl", *cells)
    data = load_training_data(DataSection(train=str(path), task=task, validation_share=0.0), seed=0)
    assert data.train.is_multi is is_multi
    assert [each for each in data.notes if note and note in each] or not (note or data.notes)


def test_several_labels_are_refused_where_a_text_has_one_and_the_flag_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", ["a"], ["a", "b"])
    with pytest.raises(UserError, match="line 2: the row has several labels") as refused:
        to_examples(read_table(path), task="single")
    assert "--task multi" in str(refused.value.fix)


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        ({"label_separator": ""}, "the separator of labels is empty"),
        ({"label_separator": ";", "label_columns": ["a"]}, "not in both"),
        ({"label": "a", "label_columns": ["a", "b"]}, "not in both"),
        ({"label_columns": ["a", "b", "a"]}, "a label column is named twice"),
        ({"label_columns": ["label", "2"]}, "a label column is named twice"),
        ({"label_separator": ";", "task": "single"}, "where a text has one class"),
        ({"label_columns": ["a", "b"]}, "there is no column 'a'"),
    ],
)
def test_what_cannot_be_meant_together_is_refused_in_one_sentence(tmp_path, flags, wrong):
    path = write(tmp_path / "a.jsonl", "a", "b")
    with pytest.raises(UserError, match=wrong) as refused:
        to_examples(read_table(path), **flags)
    assert refused.value.fix


def test_cells_that_are_neither_0_nor_1_are_told_by_their_line(tmp_path):
    path = tmp_path / "wire.csv"
    path.write_text("text,money,sport\nBanks lend,1,0\nGoal,maybe,1\nRain,2,\n")
    with pytest.raises(UserError, match=r"line 3: the label column 'money' holds neither 0 nor 1"):
        to_examples(read_table(path), label_columns=NAMES)
    assert [fault.line for fault in check(path, label_columns=NAMES).malformed] == [3, 4]


def test_classes_are_named_as_where_a_text_has_one(tmp_path):
    numbers = to_examples(read_table(write(tmp_path / "a.jsonl", [10, 9], [2.0], ["02"])))
    assert numbers.label_names == ("2", "9", "10")
    assert numbers.labels is not None
    assert numbers.labels.tolist() == [[False, True, True], [True, False, False], [True, False, False]]
    path = write(tmp_path / "b.jsonl", ["Sport", "World"], ["sport "], ["Sport"], ["sport"])
    assert to_examples(read_table(path)).label_names == ("Sport", "World", "sport")
    assert to_examples(read_table(path), merge_case=True).label_names == ("Sport", "World")


def several(sets, names=("a", "b", "c"), texts=None) -> Examples:
    labels = np.array(sets, dtype=np.bool_)
    return Examples(tuple(texts or (f"text {i}" for i in range(len(labels)))), labels, names, "test")


def test_examples_tell_rows_apart_by_their_labels():
    first, second = several([[1, 0, 0], [0, 1, 1]]), several([[1, 0, 0], [0, 1, 0]])
    assert first.fingerprint() == several([[1, 0, 0], [0, 1, 1]]).fingerprint() != second.fingerprint()
    assert joined([first, second]).select([3, 0]).labels.tolist() == [
        [False, True, False],
        [True, False, False],
    ]
    assert first.label_rows().tolist() == [1, 1, 1]
    single = Examples(("x",), np.array([0]), ("a", "b", "c"), "test")
    with pytest.raises(ValueError, match="labels of the same classes"):
        joined([first, single])
    with pytest.raises(ValueError, match="2 label names"):
        several([[1, 0, 0]], ("a", "b"))


def test_alignment_goes_by_name_and_refuses_a_label_that_some_text_has():
    rows = several([[1, 0, 0], [0, 1, 0]])
    assert aligned_labels(rows, ("B", "x", "A")).tolist() == [[False, False, True], [True, False, False]]
    with pytest.raises(UserError, match=r"(?s)the class 'b'.*1 row of unknown classes"):
        aligned_labels(rows, ("a", "c"))


# --- splits


def drawn(rows: int, seed: int = 0) -> Examples:
    """Rows of 12 labels whose frequencies fall from a third to a thousandth, some together, some none."""
    generator = np.random.default_rng(seed)
    shares = 0.35 * 0.6 ** np.arange(12)
    sets = generator.random((rows, 12)) < shares
    sets[:, 3] |= sets[:, 6]
    return several(sets, tuple("abcdefghijkl"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [None, 0.02, 0.3])
def test_labels_give_in_proportion_and_rare_ones_five_rows(seed, share):
    examples = drawn(3000, seed)
    train, held_out = (part.label_rows() for part in hold_out(examples, share, seed=seed))
    rows = train + held_out
    proportion = rows * (share or 1 / 15)
    assert train[rows >= 2].min() >= 1
    assert held_out[rows >= 10].min() >= 5
    assert held_out[(rows >= 2) & (rows < 10)].min(initial=1) >= 1
    wanted = np.maximum(proportion, np.minimum(5, rows - 1))
    assert np.abs(held_out - wanted).max() <= 4 + 0.05 * wanted.max()
    assert len(hold_out(examples, share, seed=seed).validation) >= round(3000 * (share or 1 / 15)) - 20


def test_rows_without_a_label_give_in_proportion():
    examples = several([[0, 0, 0]] * 600 + [[1, 1, 0]] * 300 + [[0, 0, 1]] * 300)
    held_out = hold_out(examples, 0.1, seed=0).validation
    assert label_counts(held_out.labels).tolist() == [30, 30, 30, 60]


def test_a_label_of_one_row_and_one_whose_rows_are_one_text_stay_in_training():
    sets = [[1, 0, 0]] * 40 + [[0, 1, 0]] * 6 + [[0, 0, 1]]
    texts = [f"text {i}" for i in range(40)] + ["One  text", "one text"] * 3 + ["alone"]
    for seed in range(5):
        splits = hold_out(several(sets, texts=texts), 0.2, seed=seed)
        assert splits.train.label_rows()[1:].tolist() == [6, 1]


def test_copies_of_a_text_stay_together():
    examples = drawn(600)
    texts = [f"News  {i // 3}" if i % 2 else f"news {i // 3} " for i in range(600)]
    for seed in range(3):
        splits = hold_out(several(examples.labels, examples.label_names, texts), None, seed=seed)
        seen = [{" ".join(text.casefold().split()) for text in part.texts} for part in splits]
        assert not seen[0] & seen[1]
        assert len(splits.validation) >= 100


def test_the_seed_alone_decides_what_is_held_out_and_its_choice_is_pinned():
    examples = several([[i % 2, i % 3 == 0, i % 5 == 0] for i in range(40)])
    chosen = [hold_out(examples, 0.1, seed=seed).validation.texts for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] == PINNED


PINNED = (*("text 6", "text 7", "text 12", "text 15", "text 16"), *("text 21", "text 31", "text 33"))


def test_samples_are_of_exactly_the_rows_asked_for_and_keep_every_label():
    examples = drawn(2000)
    for rows in (60, 500, 1999):
        first = first_rows(examples, rows, seed=1)
        assert len(first) == rows
        assert first.label_rows().min() >= 1
    assert len(first_rows(several([[1, 1, 1], [1, 0, 0], [0, 1, 0]]), 1, seed=0)) == 1
    with pytest.raises(UserError, match=r"(?s)2 training rows cannot cover 3 classes.*train_rows=3"):
        first_rows(several(np.eye(3)), 2, seed=0)
    copies = several([[1, 1, 0]] * 10, texts=["same"] * 10)
    assert tuple(map(len, split(copies, 3, seed=0))) == (7, 3)
    with pytest.raises(UserError, match=r"(?s)too few rows would be left.*3 rows of 3 labels; 2 set aside"):
        split(several(np.eye(3)), 2, seed=0)


def test_parts_have_their_share_of_each_label_and_are_closer_than_by_chance():
    examples = drawn(4000)
    part = stratified(examples.labels, [0.2] * 5, seed=0)
    chance = np.random.default_rng(0).integers(0, 5, 4000)

    def farthest(parts):
        rows = np.array([label_counts(examples.labels[parts == each]) for each in range(5)])
        return np.abs(rows - label_counts(examples.labels) / 5).max(axis=0)

    assert farthest(part)[:-1].max() <= 3
    assert np.abs(np.bincount(part) - 800).max() <= 25
    assert farthest(part).mean() < 0.2 * farthest(chance).mean()


# --- the labels of a run


@pytest.fixture
def run(tmp_path):
    def run(task: str = "multi", **data: object) -> RunFolder:
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir(exist_ok=True)
        folder.write_recipe(
            load_recipe(None, {f"data.{key}": value for key, value in data.items()}).to_toml()
        )
        folder.write_labels(Labels(NAMES, TextLayout(("text",)), 128, task=task))
        return folder

    return run


def test_a_file_is_read_as_the_run_was_whatever_it_shows(tmp_path, run):
    one_each = write(tmp_path / "a.jsonl", ["Sport"], "money")
    assert evaluation_rows(run(), str(one_each), "test").labels.tolist() == [[False, True], [True, False]]
    joined_cells = as_csv(tmp_path / "b.csv", lambda labels: ["|".join(labels)])
    learned = run(label="topics", label_separator="|")
    assert evaluation_rows(learned, str(joined_cells), "test").labels.tolist() == SETS
    columns = as_csv(tmp_path / "c.csv", marked("1", "0"), ("text", *NAMES))
    assert evaluation_rows(run(label_columns=NAMES), str(columns), "test").labels.tolist() == SETS
    for flags in ({"label_columns": NAMES}, {"label_columns": NAMES[::-1]}):
        assert evaluation_rows(learned, str(columns), "test", **flags).labels.tolist() == SETS
    listed = as_jsonl(tmp_path / "d.jsonl")
    found = evaluation_rows(run(label_columns=NAMES), str(listed), "test", label="topics")
    assert found.labels.tolist() == SETS


def test_a_run_of_one_class_a_text_refuses_several(tmp_path, run):
    with pytest.raises(UserError, match="line 1: the row has several labels"):
        evaluation_rows(run("single"), str(write(tmp_path / "a.jsonl", ["money", "sport"])), "test")
    with pytest.raises(UserError, match="where a text has one class"):
        evaluation_rows(run("single"), str(write(tmp_path / "a.jsonl", "money")), "test", label_separator=";")


def test_unknown_labels_are_refused_dropped_or_counted_label_by_label(tmp_path, run):
    path = write(tmp_path / "a.jsonl", ["money", "rain"], ["SPORT"], [], ["rain", "hail"])
    with pytest.raises(UserError, match=r"2 of 4 rows in a\.jsonl have labels that are not") as refused:
        evaluation_rows(run(), str(path), "test")
    assert "'rain' (2 rows, lines 1, 4), 'hail' (1 row, line 4)" in str(refused.value.found)
    dropped = evaluation_rows(run(), str(path), "test", unknown_labels="drop")
    assert dropped.texts == ("text 1", "text 2")
    assert dropped.labels.tolist() == [[False, True], [False, False]]
    said: list[str] = []
    wrong = evaluation_rows(run(), str(path), "test", unknown_labels="count-wrong", notice=said.append)
    assert wrong.label_names == ("money", "sport", "rain", "hail")
    assert wrong.labels.astype(int).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert any(
        "2 of 4 rows, whose labels are not classes of the run, are counted as errors" in s for s in said
    )


def test_joined_labels_that_a_run_does_not_know_name_the_separator(tmp_path, run):
    path = write(tmp_path / "a.jsonl", "money", "sport; money")
    with pytest.raises(UserError) as refused:
        evaluation_rows(run(), str(path), "test")
    assert "--label-separator ';'" in str(refused.value.fix)


def test_what_is_stored_of_a_run_with_one_class_a_text_is_as_it_was(run):
    labels = run("single").labels
    assert labels.task == "single"
    assert "task" not in (run("single").path / "labels.json").read_text()
    assert json.loads((run("multi").path / "labels.json").read_text())["task"] == "multi"


# --- the check


def test_the_check_counts_labels_a_text_and_names_those_that_go_together(tmp_path):
    cells = [["grain", "wheat"]] * 8 + [["grain"]] * 6 + [["wheat", "GRAIN"]] + [["gold"]] * 9 + [[]] * 2
    cells += [["gold", "nan"]] * 6
    report = check(write(tmp_path / "a.jsonl", *cells))
    assert report.several is not None
    assert (report.several.most, report.several.without) == (2, 2)
    assert report.several.mean == pytest.approx(45 / 32)
    assert report.several.together[0] == Together("nan", "gold", 6, 1.0)
    assert Together("wheat", "grain", 9, 8 / 9) in report.several.together
    assert report.unlabelled.count == 0
    lines = render_check(report)
    assert "labels a text: mean 1.41, at most 2; 2 texts without any" in lines
    assert "  100% of 6 texts with nan have gold, too" in lines
    faults = {fault.wrong: fault for fault in report.label_faults}
    assert faults["one class in several spellings"].lines == (15,)
    assert faults["a class that looks like a missing label"].lines == tuple(range(27, 33))


def test_texts_with_different_labels_are_conflicts_whatever_their_order(tmp_path):
    rows = [("same", ["a", "b"]), ("same", ["b", "a"]), ("other", ["a", "b"]), ("other", ["a"])]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    report = check(path)
    assert report.conflicts.lines == ((3, 4),)
    assert "texts with different labels: 1 (2 rows)" in render_check(report)


def test_the_check_proposes_the_separator_that_then_leaves_nothing_to_say(tmp_path):
    path = write(tmp_path / "a.jsonl", *["money", "sport", "money;sport"] * 6)
    (fault,) = check(path).label_faults
    assert "--label-separator ';'" in fault.fix
    assert check(path, label_separator=";").is_ok


def test_many_combinations_of_few_labels_are_no_free_text(tmp_path):
    cells = [f"{first};{second}" for first in "abcdefg" for second in "abcdefg" if first < second]
    fault, _rare = check(write(tmp_path / "a.jsonl", *cells, "a", "b", "c")).label_faults
    assert "--label-separator ';'" in fault.fix


def test_the_separator_may_be_written_as_it_is_typed():
    assert LabelFormat.of(label_separator=r"\n").separator == "\n"


def test_a_list_is_found_under_a_name_in_the_plural_unless_another_column_is_the_class(tmp_path):
    sets = (["money", "gold"], ["money"])
    rows = [{"text": f"rates rise {number}", "topics": sets[number % 2]} for number in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert label_column(read_table(path)) == "topics"
    path.write_text("\n".join(json.dumps({**row, "category": "a"}) for row in rows))
    assert label_column(read_table(path)) == "category"

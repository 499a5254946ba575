"""Usual layouts need no flags, flags overrule them, and labels never become the wrong ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newsdesk.data.columns import TextLayout, label_column, text_layout
from newsdesk.data.labelled import AG_NEWS_LABELS, labels_with_faults, to_examples
from newsdesk.data.stream import read_table
from newsdesk.data.table import Table
from newsdesk.errors import UserError
from newsdesk.stored import from_content, to_content


def table(columns: str, *rows: tuple[object, ...], **more: object) -> Table:
    lines = tuple(range(2, len(rows) + 2))
    return Table(Path("wire.csv"), tuple(columns.split(",")), rows, lines, has_header=True, **more)  # type: ignore[arg-type]


def examples_of(table, *, text=None, label=None, template=None, normaliser="none", **settings):
    layout = text_layout(table, text=text, label=label, template=template, normaliser=normaliser)
    return to_examples(table, layout, label=label, **settings)


@pytest.mark.parametrize("header", ["", "class_index,title,description\n", "Class Index,Title,Description\n"])
def test_official_ag_news_needs_no_flags_with_or_without_a_header(tmp_path, header):
    path = tmp_path / "train.csv"
    path.write_text(header + '"3","Oil rises","Prices up."\n"1","","Talks fail."\n"4","Probe lands",""\n')
    examples = to_examples(read_table(path))
    assert examples.label_names == AG_NEWS_LABELS == ("World", "Sports", "Business", "Sci/Tech")
    assert examples.labels is not None
    assert examples.labels.tolist() == [2, 0, 3]
    assert examples.texts == ("Oil rises Prices up.", "Talks fail.", "Probe lands")
    assert examples.source == str(path)


def test_class_numbers_count_off_the_classes_of_a_run_from_0_and_the_mapping_is_kept():
    hub = table("text,label", ("Oil rises", "2"), ("Match won", "0"))
    examples = to_examples(hub, label_names=AG_NEWS_LABELS)
    assert examples.label_names == AG_NEWS_LABELS
    assert examples.labels is not None
    assert examples.labels.tolist() == [2, 0]
    assert examples.matching is not None
    assert examples.matching.positions == {"0": "World", "2": "Business"}
    assert to_examples(hub).label_names == ("0", "2")


def test_names_that_a_parquet_file_declares_are_used_and_minus_one_means_unlabelled():
    names = {"label": AG_NEWS_LABELS}
    examples = to_examples(table("text,label", ("a", 3), ("b", 0), class_names=names))
    assert examples.label_names == AG_NEWS_LABELS
    assert examples.labels is not None
    assert examples.labels.tolist() == [3, 0]
    assert to_examples(table("text,label", ("a", -1), ("b", -1), class_names=names)).labels is None


def test_numbers_are_ids_where_a_parquet_file_declares_names_that_are_numbers():
    stars = {"label": ("1", "2", "3")}
    found = labels_with_faults(table("text,label", ("a", 0), ("b", 1), ("c", 2), class_names=stars), "label")
    assert found == (("1", "2", "3"), ())


def test_declared_names_are_matched_by_name_whatever_the_order_of_the_run():
    names = ("Business", "Sci/Tech", "Sports", "World")
    examples = to_examples(table("class_index,title", ("1", "a"), ("3", "b")), label_names=names)
    assert examples.labels is not None
    assert [names[i] for i in examples.labels] == ["World", "Business"]


def test_a_run_whose_classes_are_numbers_reads_official_ag_news_where_its_numbers_are_the_same():
    official = table("class_index,title", ("1", "a"), ("4", "b"))
    examples = to_examples(official, label_names=["1", "2", "3", "4"])
    assert examples.labels is not None
    assert examples.labels.tolist() == [0, 3]
    with pytest.raises(UserError, match=r"no label in wire\.csv is a class of the run"):
        to_examples(official, label_names=["0", "1", "2", "3"])


def test_oranges_category_and_text_are_recognised_and_names_sorted():
    examples = to_examples(table("Category,Text", ("trade", "b"), ("acq", "a"), ("trade", "c")))
    assert examples.label_names == ("acq", "trade")
    assert examples.labels is not None
    assert examples.labels.tolist() == [1, 0, 1]


def test_numeric_labels_are_sorted_as_numbers_and_whole_floats_are_integers():
    examples = to_examples(table("text,label", ("a", 10), ("b", 9.0), ("c", "2")))
    assert examples.label_names == ("2", "9", "10")
    assert to_examples(table("text,label", ("a", 0.5), ("b", True))).label_names == ("0.5", "True")


def test_flags_name_any_columns():
    wire = table("id,kopf,rumpf,ressort", ("7", "Tor", "Es fiel.", "Sport"))
    examples = examples_of(wire, text=["rumpf", "kopf"], label="ressort", normaliser="whitespace")
    assert examples.texts == ("Es fiel. Tor",)
    assert examples.label_names == ("Sport",)


def test_a_column_named_as_label_is_not_text_and_one_named_as_text_is_no_label():
    wire = table("title,text,topic", ("a", "b", "c"))
    assert text_layout(wire, label="title").text_columns == ("text",)
    assert label_column(wire, text=["topic"]) is None


def test_a_template_shapes_the_text_and_names_its_columns():
    wire = table("title,description,label", ("Oil", "It rose.", "x"), ("Rain", None, "y"))
    examples = examples_of(wire, template="{title}: {description} {{end}}")
    assert examples.texts == ("Oil: It rose. {end}", "Rain:  {end}")
    layout = text_layout(wire, template="{description}")
    assert layout.text_columns == ("description",)


@pytest.mark.parametrize(
    "template",
    ["{title.__class__}", "{title[0]}", "{}", "{0}", "{title!r}", "{title:>99}", "{nowhere}", "{title", "}"],
)
def test_a_template_reaches_nothing_but_columns(template):
    with pytest.raises(UserError, match="template"):
        examples_of(table("title,label", ("Oil", "x")), template=template)


def test_a_single_column_of_any_name_is_text_without_labels():
    examples = to_examples(table("was", ("Oil",), ("Rain",)))
    assert examples.texts == ("Oil", "Rain")
    assert examples.labels is None
    assert examples.label_names == ()


def test_labelled_false_ignores_the_labels_and_true_demands_them():
    wire = table("text,label,topic", ("Oil", "", "x"))
    assert to_examples(wire, labelled=False).labels is None
    assert to_examples(wire).labels is None
    with pytest.raises(UserError, match="every cell of label is empty"):
        to_examples(wire, labelled=True)
    with pytest.raises(UserError, match="has no labels"):
        to_examples(table("text", ("Oil",)), labelled=True)


def test_the_class_that_a_file_declares_wins_over_usual_names():
    wire = table("Author,Category,Text", ("ann", "x", "hello"), class_column="Author")
    assert to_examples(wire).label_names == ("ann",)
    assert label_column(wire, text=["Author"]) == "Category"
    assert label_column(wire, "Category") == "Category"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"text": ["headline"]}, "no column 'headline'.*id, kopf.*--text"),
        ({"text": ["kopf"], "label": "topic"}, "no column 'topic'.*id, kopf.*--label"),
        ({}, "which column.*id, kopf.*--text"),
    ],
)
def test_a_column_that_is_missing_or_unclear_lists_those_there_are_and_the_flag(arguments, said):
    with pytest.raises(UserError, match=f"(?s){said}"):
        examples_of(table("id,kopf", ("1", "Tor")), **arguments)


def test_several_columns_that_could_be_the_class_are_not_guessed_but_label_itself_is():
    with pytest.raises(UserError, match=r"(?s)topic, category.*--label topic"):
        to_examples(table("text,topic,category", ("a", "b", "c")))
    assert label_column(table("text,topic,Label", ("a", "b", "c"))) == "Label"


def test_a_table_without_rows_is_an_error_unless_only_predicting():
    with pytest.raises(UserError, match="holds no rows"):
        to_examples(table("text,label"))
    assert len(to_examples(table("text,label"), labelled=False)) == 0


@pytest.mark.parametrize(
    ("rows", "names", "said"),
    [
        ([("a", "x"), ("b", "z")], ["x", "y"], "'z' .1 row, line 3.; the run's classes are x, y"),
        ([("a", "0"), ("b", "2")], ["x", "y"], "'0' .1 row, line 2., '2' .1 row, line 3.*x, y"),
        ([("a", "Xx")], ["x"], "'Xx' .1 row, line 2"),
        ([("a", "x")], [f"n{i}" for i in range(30)], "n19 and 10 more"),
        ([("a", "x"), ("b", " "), ("c", None)], None, "line 3: the row has no label.*2 such rows among 3"),
    ],
)
def test_a_label_that_is_unknown_or_missing_names_its_line(rows, names, said):
    with pytest.raises(UserError, match=f"(?s){said}"):
        to_examples(table("text,label", *rows), label_names=names)


@pytest.mark.parametrize("label", ["0", "5", "x"])
def test_a_class_index_outside_ag_news_names_its_line_and_the_numbers(label):
    with pytest.raises(UserError, match=r"(?s)line 3: the label '.'.*1 World, .*4 Sci/Tech"):
        to_examples(table("class_index,title", ("1", "a"), (label, "b")))


def test_a_class_index_alone_is_no_sign_of_ag_news():
    assert to_examples(table("class_index,text", ("7", "a"))).label_names == ("7",)


def test_each_cell_is_normalised_before_the_columns_are_joined():
    wire = table("title,description,label", ("Oil", "quot;Up quot; it goes", "x"))
    assert examples_of(wire, normaliser="ag_news").texts == ('Oil "Up" it goes',)


def test_cells_that_are_no_text_name_their_line():
    assert to_examples(table("text,label", (7, "x"), (float("nan"), "y"))).texts == ("7", "")
    assert labels_with_faults(table("text,label", ("a", float("nan"))), "label") == (("",), ())
    with pytest.raises(UserError, match=r"(?s)line 3: column 'text' holds no text.*list"):
        to_examples(table("text,label", ("a", "x"), (["b"], "y")))


def test_a_layout_goes_through_json_and_renders_the_same_later():
    layout = TextLayout(("title", "description"), "{title} | {description}", "ag_news")
    again = from_content(TextLayout, json.loads(json.dumps(to_content(layout))))
    assert again == layout
    assert again.text_of(1, {"title": "Oracle #39;s", "description": "bid", "id": 3}) == "Oracle's | bid"
    with pytest.raises(UserError, match="no column 'description'"):
        again.text_of(1, {"title": "x"})


def test_a_layout_falls_back_to_the_columns_of_a_table_that_lacks_its_own():
    layout = TextLayout(("title", "description"), "{title} | {description}", "ag_news")
    assert layout.for_table(table("title,description,text", ("a", "b", "c"))) is layout
    other = layout.for_table(table("text", ("Oracle #39;s",)))
    assert other == TextLayout(("text",), None, "ag_news")
    with pytest.raises(UserError, match="which column"):
        layout.for_table(table("a,b", ("1", "2")))


def test_a_layout_with_an_unknown_normaliser_or_template_column_is_refused_at_once():
    with pytest.raises(UserError, match="no text normaliser"):
        TextLayout(("text",), normaliser="upper")
    with pytest.raises(UserError, match="template"):
        TextLayout(("text",), template="{title}")


def test_the_shared_ag_news_rows_become_balanced_examples():
    folder = Path(__file__).resolve().parents[3] / "shared" / "ag_news"
    if not folder.is_dir():
        pytest.skip("real AG News rows are not beside the repository (../shared/ag_news)")
    examples = examples_of(read_table(folder / "test.csv"), normaliser="ag_news")
    assert examples.labels is not None
    assert [int((examples.labels == i).sum()) for i in range(4)] == [950] * 4
    assert not any("#39;" in text or "quot;" in text or "\\" in text for text in examples.texts)


def test_rows_without_a_label_are_left_out_with_the_unknown_ones_if_asked():
    wire = table("text,label", ("a", "x"), ("b", ""), ("c", "z"), ("d", None), ("e", "X"))
    with pytest.raises(UserError, match=r"line 3: the row has no label.*"):
        to_examples(wire, label_names=["x", "y"])
    examples = to_examples(wire, label_names=["x", "y"], unknown_labels="drop")
    assert examples.texts == ("a", "e")
    assert examples.matching is not None
    assert "2 rows without a label left out" in examples.matching.notes()
    assert (examples.matching.unlabelled, examples.matching.unknown[0].lines) == (2, (4,))

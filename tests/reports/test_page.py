"""The page: whole in itself, safe whatever the data hold, and readable by machines that read aloud."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from newsdesk.errors import UserError
from newsdesk.metrics import evaluate_probabilities
from newsdesk.prediction.explanation import WordWeight
from newsdesk.reports.content import QuotedRow, gather
from newsdesk.reports.page import EXCERPT, pieces, render_page, ruler
from newsdesk.reports.parts import Missing
from newsdesk.reports.plots import draw_charts
from report_runs import build_run

HOSTILE = (
    "</title></style></svg><script>alert(1)</script>",
    '" onmouseover="alert(2)" x="',
    "{{ 7 * 7 }}$x^2$",
    "日本 #0b6570 & co",
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Outline(HTMLParser):
    """Elements of a page in order, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def no_classifier():
    raise UserError("no classifier here")


def content_of(folder, **settings):
    made = build_run(folder, **settings)
    return gather(made.run, "test", texts=made.rows.texts, classifier=no_classifier, quote=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """Class names and texts, each of which tries to break out."""
    texts = [f"{text} {number}" for number in range(100) for text in HOSTILE]
    content = content_of(tmp_path_factory.mktemp("run") / "<i>run", names=HOSTILE, texts=texts)
    return render_page(content, draw_charts(content))


@pytest.fixture(scope="module")
def outline(page) -> Outline:
    return Outline(page)


def test_nothing_from_the_data_breaks_out(outline):
    assert outline.open == []
    assert outline.named("script") == []
    assert outline.named("i") == []
    assert not [name for _, attributes in outline.elements for name in attributes if name.startswith("on")]
    text = "".join(outline.words)
    for name in HOSTILE:
        assert name in text


def test_the_page_asks_nothing_of_anyone(page, outline):
    (policy,) = [
        meta["content"]
        for meta in outline.named("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; style-src-elem 'sha256-")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert not {"link", "img", "iframe", "object", "script", "base", "form"} & {
        tag for tag, _ in outline.elements
    }
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", page)
    targets = [
        value for _, a in outline.elements for key, value in a.items() if "href" in key or key == "src"
    ]
    assert targets
    assert all(target.startswith("#") for target in targets)


def test_what_was_said_of_the_training_is_on_the_page(page):
    assert "<li>no validation row for 1 of 4 classes: &lt;b&gt;rare&lt;/b&gt; (1 row)</li>" in page


def test_headings_nest_and_ids_are_unique(outline):
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    named = " ".join(
        str(a[key]) for _, a in outline.elements for key in a if key == "aria-labelledby"
    ).split()
    jumps = [a["href"][1:] for a in outline.named("a")]
    assert set(named) | set(jumps) <= set(ids)


def test_every_chart_has_a_name_words_and_a_table_of_its_numbers(page, outline):
    charts = outline.named("svg")
    assert len(charts) == 6
    assert all(chart["role"] == "img" for chart in charts)
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert len(figures) == 6
    for figure in figures:
        assert re.search(r"<title id=[^>]*>\S", figure)
        assert re.search(r"<desc id=[^>]*>\S", figure)
        assert figure.count("<tr>") > 2


def test_charts_follow_the_pages_theme(page):
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    tags = "".join(re.findall(r"<[^>]*>", drawings))
    assert "var(--accent)" in tags
    assert not re.search(r"#[0-9a-f]{6}\b|font-family|<style|<metadata", tags)


def test_many_classes_are_told_by_a_picture_and_the_largest_confusions(tmp_path):
    content = content_of(tmp_path / "run", names=[f"class {n}" for n in range(20)])
    page = render_page(content, draw_charts(content))
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.named("svg")) == 7
    assert "Largest confusions" in page


def test_a_bare_run_has_no_blank_charts_and_says_what_to_run(tmp_path):
    made = build_run(tmp_path / "wire")
    made.run.metrics.unlink()
    made.run.log.unlink()
    content = gather(made.run, "test", texts=Missing("none"), classifier=no_classifier, quote=True)
    outline = Outline(render_page(content, draw_charts(content)))
    assert outline.open == []
    assert outline.named("svg") == []
    assert "newsdesk report" in "".join(outline.words)


def test_a_text_is_cut_and_its_weighty_words_stand_apart():
    text = "goal by the coach " + "x" * EXCERPT
    weights = ((0, 4, 2.0), (5, 7, 0.1), (12, 17, -1.0), (18, 18 + EXCERPT, 2.0))
    words = tuple(WordWeight(text[start:end], start, end, weight) for start, end, weight in weights)
    shown = list(pieces(QuotedRow(0, "a", "b", 0.1, 0.9, text, words)))
    assert "".join(piece.text for piece in shown) == text[:EXCERPT] + "…"
    marked = [(piece.text, piece.side, piece.strength) for piece in shown if piece.side != "plain"]
    assert marked == [("goal", "for", 3), ("coach", "against", 2)]


def test_the_ruler_holds_the_interval_and_begins_below_it(tmp_path):
    content = content_of(tmp_path / "run")
    metrics = content.evaluation.measured.metrics
    scale = ruler(metrics.accuracy, metrics.accuracy_interval, None)
    assert scale.start % 5 == 0
    assert 0 < scale.low < scale.share < scale.high <= 100
    share = scale.start / 100 + scale.share / 100 * (1 - scale.start / 100)
    assert share == pytest.approx(metrics.accuracy)


def test_the_same_run_gives_the_same_page(tmp_path):
    content = content_of(tmp_path / "run", count=100)
    assert render_page(content, draw_charts(content)) == render_page(content, draw_charts(content))


ARABIC, HEBREW = "سياسة", "ספורט 2"
TEXTS = {
    "ar": "أعلن الرئيس اليوم عن خطة جديدة بقيمة 12.5 مليار دولار",
    "he": "ראש הממשלה הודיע היום (שלישי) על תוכנית חדשה",
    "zh": "股基打头阵 新基金公司生产线开工",
    "": "Der Bundespräsident hat heute ein Programm angekündigt",
}


@pytest.fixture(scope="module")
def right_to_left(tmp_path_factory) -> str:
    texts = [f"{text} {number}" for number in range(100) for text in TEXTS.values()]
    names = (ARABIC, HEBREW, "体育", "World")
    content = content_of(tmp_path_factory.mktemp("run") / "صحيفة", names=names, texts=texts)
    return render_page(content, draw_charts(content))


def test_every_quoted_text_has_its_own_direction_and_language(right_to_left):
    quotes = Outline(right_to_left).named("blockquote")
    assert len(quotes) > 8
    assert {quote["dir"] for quote in quotes} == {"auto"}
    assert {quote["lang"] for quote in quotes} <= set(TEXTS)
    assert {"ar", "he"} <= {quote["lang"] for quote in quotes}
    for tag, text in TEXTS.items():
        for quote in re.findall(r"<blockquote[^>]*>[^<]*" + re.escape(text), right_to_left):
            assert quote.startswith(f'<blockquote dir="auto" lang="{tag}">')


@pytest.mark.parametrize(("label", "tag"), [(ARABIC, "ar"), (HEBREW, "he"), ("体育", "zh")])
def test_every_label_is_isolated_and_has_its_language(right_to_left, label, tag):
    outside_of_charts = re.sub(r"<svg.*?</svg>", "", right_to_left, flags=re.DOTALL)
    assert outside_of_charts.count(f'<bdi lang="{tag}">{label}</bdi>') == outside_of_charts.count(label)


def test_the_page_stays_english_and_its_name_may_be_another_language(right_to_left):
    outline = Outline(right_to_left)
    assert outline.named("html") == [{"lang": "en"}]
    assert outline.named("h1") == [{"dir": "auto", "lang": "ar"}]
    assert "<title>\u2068صحيفة\u2069 on test: newsdesk report</title>" in right_to_left
    assert "<bdi>World</bdi>" in right_to_left


def test_words_that_decided_are_isolated_from_their_numbers(tmp_path, monkeypatch):
    class Explained:
        def __init__(self, _classifier, text, target):
            end = text.index(" ")
            self.words = (WordWeight(text[:end], 0, end, 1.5),)

    monkeypatch.setattr("newsdesk.reports.parts.explain", Explained)
    made = build_run(tmp_path / "run", names=(ARABIC, HEBREW), texts=[TEXTS["ar"]] * 400)
    content = gather(made.run, "test", texts=made.rows.texts, classifier=lambda: None, quote=True)
    page = render_page(content, draw_charts(content))
    assert '<bdi lang="ar">أعلن</bdi>&nbsp;+1.50' in page
    assert '<blockquote dir="auto" lang="ar"><mark class="for strength-3">أعلن</mark> الرئيس' in page


def test_likely_label_errors_come_with_a_lower_bound_or_with_why_they_cannot_be_judged(tmp_path):
    content = content_of(tmp_path / "run")
    assert content.evaluation.suspects.least_accuracy is None
    text = " ".join("".join(Outline(render_page(content, ())).words).split())
    assert "a lower bound, since errors made the same way every time look right" in text
    suspects = replace(content.evaluation.suspects, least_accuracy=0.625)
    weak = replace(content, evaluation=replace(content.evaluation, suspects=suspects))
    text = " ".join("".join(Outline(render_page(weak, ())).words).split())
    assert "an accuracy below 62.5 % (half of the way" in text
    assert "lower bound" not in text


def test_intervals_on_few_rows_are_called_approximate(tmp_path):
    content = content_of(tmp_path)
    evaluation = content.evaluation
    measured = evaluation.measured
    for rows, is_approximate in ((199, True), (200, False)):
        names = measured.metrics.label_names
        labels = np.arange(rows) % len(names)
        metrics = evaluate_probabilities(np.eye(len(names))[labels], labels, names)
        few = replace(evaluation, measured=replace(measured, metrics=metrics))
        text = render_page(replace(content, evaluation=few), ())
        assert ("approximate here: on fewer than 200 rows" in text) is is_approximate

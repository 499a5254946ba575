"""News formats are read as they come: items, their texts by role, their subjects; and nothing hostile is."""

from __future__ import annotations

import gzip
import json
import time
import zipfile
from pathlib import Path

import pytest

from newsdesk.data.check import check
from newsdesk.data.columns import TextLayout, label_column, text_layout
from newsdesk.data.dialect import Dialect
from newsdesk.data.fields import value_at
from newsdesk.data.labelled import labels_with_faults, to_examples
from newsdesk.data.news import prose
from newsdesk.data.stream import open_rows, read_table, read_with_faults
from newsdesk.data.table import BadRow, Row, Table
from newsdesk.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "news_formats"
MEDIA_TOPICS = "http://cv.iptc.org/newscodes/mediatopic/"

NINJS_1 = {
    "uri": "urn:x:1",
    "versioncreated": "2026-05-01T08:00:00Z",
    "headline": "Rates rise",
    "body_xhtml": "<p>The bank &amp; the <b>fed</b>eral <i>fund</i>.</p><p>Second&nbsp;line</p>",
    "subject": [{"name": "economy", "scheme": MEDIA_TOPICS, "code": "04000000"}],
}
NINJS_2 = {
    "uri": "urn:x:2",
    "pubstatus": "usable",
    "headlines": [{"role": "teaser", "value": "Guess!"}, {"role": "main", "value": "Striker scores"}],
    "bodies": [
        {"role": "html", "contenttype": "text/html", "value": "<p>A goal.</p>"},
        {"role": "text", "contenttype": "text/plain", "value": "A goal <sic>."},
    ],
    "subjects": [{"name": "sport", "uri": f"{MEDIA_TOPICS}15000000", "literal": "15000000"}],
}
NINJS_3 = {
    "uri": "urn:x:3",
    "versionCreated": "2026-05-01T08:00:00Z",
    "descriptions": [{"role": "caption", "contentType": "text/plain", "value": "A robot."}],
    "title": "Photo",
    "subjects": [{"name": "science", "literal": "medtop:13000000"}, {"name": "Robots", "literal": "r2"}],
}
ITEMS = [NINJS_1, NINJS_2, NINJS_3]
TEXTS = (
    "Rates rise The bank & the federal fund.\nSecond line",
    "Striker scores A goal <sic>.",
    "Photo A robot.",
)

NEWSML = """<?xml version="1.0"?>
<newsMessage xmlns="http://iptc.org/std/nar/2006-10-01/"><header><sender>x</sender></header><itemSet>
<packageItem guid="p"><itemRef residref="a"/></packageItem>
<newsItem guid="a" xml:lang="en">
 <itemMeta><itemClass qcode="ninat:text"/></itemMeta>
 <contentMeta><subject qcode="medtop:15000000"><name xml:lang="de">Sport (de)</name>
  <name xml:lang="en">sport</name></subject>
  <headline>Striker &#8220;scores&#8221;</headline></contentMeta>
 <contentSet><inlineXML contenttype="application/nitf+xml"><nitf xmlns="http://iptc.org/std/NITF/2006-10-18/">
  <head><title>no</title></head><body><body.head><hedline><hl1>no</hl1></hedline></body.head>
  <body.content><p>One
   line.</p><p>Another.</p></body.content></body></nitf></inlineXML></contentSet>
</newsItem>
<newsItem guid="b" xml:lang="en"><contentMeta><headline>Plain</headline></contentMeta>
 <contentSet><inlineData contenttype="text/plain">As &lt;is&gt;.</inlineData></contentSet></newsItem>
<newsItem guid="c" xml:lang="en"><contentMeta><headline>Web</headline></contentMeta>
 <contentSet><inlineXML contenttype="application/xhtml+xml"><html xmlns="http://www.w3.org/1999/xhtml">
 <head><title>no</title></head><body><p>To <em>the</em> point</p></body></html></inlineXML></contentSet>
</newsItem>
</itemSet></newsMessage>"""
RSS = """<?xml version="1.0" encoding="windows-1252"?><rss version="2.0"
 xmlns:content="http://purl.org/rss/1.0/modules/content/" xmlns:media="http://search.yahoo.com/mrss/"><channel>
<title>Channel</title><language>en</language>
<item><title>Caf\xe9 opens</title><media:title>no</media:title><link>http://x/1</link><category>Business</category>
 <description>&lt;p&gt;Profit &amp;amp; loss&lt;/p&gt;</description>
 <content:encoded><![CDATA[<p>All of <b>it</b></p><script>no()</script>]]></content:encoded></item>
<item><title>Undeclared&nbsp;entity</title><description>Short</description></item>
</channel></rss>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom" xml:lang="en"><title>Feed</title>
<entry><id>tag:x,1</id><title type="html">Less &amp;lt; more</title><category term="sport" label="Sport"/>
 <content type="xhtml"><div xmlns="http://www.w3.org/1999/xhtml"><p>One</p><p>Two</p></div></content></entry>
<entry><id>tag:x,2</id><title>A &lt;b&gt; stays</title>
 <summary type="html">&lt;i&gt;In&lt;/i&gt; short</summary></entry></feed>"""


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, content: str | bytes | list | dict) -> Path:
        path = tmp_path / name
        if isinstance(content, list | dict):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def texts_of(path: Path) -> tuple[str, ...]:
    table = read_table(path)
    return text_layout(table).texts(table)


def test_ninjs_of_every_version_and_shape_gives_the_same_texts(write):
    lines = "".join(f"{json.dumps(item)}\n" for item in ITEMS)
    spread = "\n".join(json.dumps(item, indent=2) for item in ITEMS)
    for path in (
        write("a.json", ITEMS),
        write("b.json", json.dumps(ITEMS, indent=1)),
        write("c.jsonl", lines),
        write("d.json", spread),
        write("e.jsonl.gz", gzip.compress(lines.encode())),
    ):
        assert texts_of(path) == TEXTS
        assert read_table(path).read_as.endswith("ninjs 1, 2, 3")
    assert texts_of(write("f.json", json.dumps(NINJS_2, indent=2))) == TEXTS[1:2]


def test_newsml_gives_every_item_with_the_text_of_its_content(write):
    path = write("a.xml", NEWSML)
    assert texts_of(path) == ("Striker “scores” One line.\nAnother.", "Plain As <is>.", "Web To the point")
    assert read_table(path).column("uri") == ("a", "b", "c")
    assert read_table(path).lines == (4, 14, 16)
    assert labels_with_faults(read_table(path), "subject") == (("sport", "", ""), ())
    assert read_table(path).column("subject.code")[0] == ["medtop:15000000"]


def test_feeds_give_every_entry_with_its_fullest_text(write):
    rss = read_table(write("a.rss", RSS.encode("cp1252")))
    assert text_layout(rss).texts(rss) == ("Café opens All of it", "Undeclared entity Short")
    assert rss.column("description") == ("Profit & loss", "Short")
    assert labels_with_faults(rss, "subject")[0] == ("Business", "")
    atom = read_table(write("a.xml", ATOM))
    assert text_layout(atom).texts(atom) == ("Less < more One\nTwo", "A <b> stays In short")
    assert atom.column("subject.0.code") == ("sport", None)
    assert (rss.news, atom.news) == ("RSS", "Atom")


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("subject", ("economy", "sport", "")),
        ("subject.0.name", ("economy", "sport", "science")),
        ("subject.0.code", ("medtop:04000000", "medtop:15000000", "medtop:13000000")),
        ("subject[scheme=medtop].name", ("economy", "sport", "science")),
        ("subject[level=1]", ("economy", "sport", "science")),
        ("subject[name=Robots].code", ("", "", "r2")),
    ],
)
def test_a_label_is_a_subject_by_the_rule_that_is_named(write, label, found):
    table = read_table(write("a.json", ITEMS))
    labels, faults = labels_with_faults(table, label)
    assert labels == found
    if label == "subject":
        assert faults[0].wrong == "the row has several labels"
        assert faults[0].found == "science, Robots"
        assert "subject.0.name" in str(faults[0].fix)


def test_several_subjects_are_several_labels_unless_a_rule_leaves_one(write):
    path = write("a.json", ITEMS)
    several = to_examples(read_table(path), labelled=True)
    assert several.label_names == ("Robots", "economy", "science", "sport")
    assert several.labels is not None
    assert several.labels.sum(axis=1).tolist() == [1, 1, 2]
    with pytest.raises(UserError, match="line 1: the row has several labels"):
        to_examples(read_table(path), task="single", labelled=True)
    assert (
        to_examples(read_table(path), label="subject.0.code", labelled=True).label_names[0]
        == "medtop:04000000"
    )


def test_paths_lead_into_nested_values_of_any_file(write):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"id": n, "doc": {"parts": [{"t": f"text {n}"}], "kind": "a.b"}, "a.b": "dot"} for n in (1, 2)]
    path = write("a.parquet", b"")
    parquet.write_table(pa.Table.from_pylist(rows), path)
    for table in (read_table(path), read_table(write("a.json", rows))):
        layout = text_layout(table, text=["doc.parts.0.t"])
        assert layout.texts(table) == ("text 1", "text 2")
        assert text_layout(table, template="{id}: {doc.parts.0.t}").texts(table) == ("1: text 1", "2: text 2")
        assert table.column("a.b") == ("dot", "dot")
        with pytest.raises(
            UserError, match=r"no row has 'doc.parts.0.u'\nfound: doc.parts.0 in line 1 has t\n"
        ):
            text_layout(table, text=["doc.parts.0.u"])
    csv = read_table(write("a.csv", "doc,label\nx,y\n"))
    with pytest.raises(
        UserError, match=r"no row has 'doc.parts'\nfound: doc in line 2 has a value of type str\n"
    ):
        text_layout(csv, text=["doc.parts"])


def test_markup_under_a_path_is_text_too():
    assert value_at(NINJS_2, "bodies.0.value") == "A goal."
    assert value_at(NINJS_2, "headlines[role=main].0.value") == "Striker scores"
    assert value_at(NINJS_1, "body_xhtml") == TEXTS[0].removeprefix("Rates rise ")
    assert value_at({"body_xhtml": "<p>not news</p>"}, "body_xhtml") == "<p>not news</p>"
    assert value_at({"score": {"value": 3}}, "score.value") == 3


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a  b\n c", "a b c"),
        ("<p>a</p>b<br/>c", "a\nb\nc"),
        ("<b>a</b>b&#8212;&mdash;&#x2014;&lt;p&gt;", "ab———<p>"),
        ("1 < 2 > 0 <3", "1 < 2 > 0 <3"),
        ('<a title="x > y" href=z>a</a>', "a"),
        ("<script>if (a<b) 'x'</script>a<style>p{}</style><!-- c --><!DOCTYPE html>b", "ab"),
        ("a<![CDATA[ <b> ]]>c<!-- never closed", "a <b> c"),
        ("&#99999999999999;&nosuch;&amp", "&#99999999999999;&nosuch;&"),
        ("<ul><li>a<li>b</ul>so\u00adft", "a\nb\nsoft"),
        ("<head><title>no</title><body>a<script src='x'/>b<head/>c", "abc"),
        ("<SCRIPT>no</Script >a<P CLASS=b>b</P>", "a\nb"),
    ],
)
def test_markup_becomes_the_text_that_a_reader_sees(markup, text):
    assert prose(markup) == text


@pytest.mark.parametrize(
    "piece", ["<", "<!--", "<a ", '<a "', "<script>", "<![CDATA[", "&#9", "</", "<script", "<p>", "<a '\""]
)
def test_no_markup_takes_more_than_linear_time(piece):
    began = time.perf_counter()
    prose(piece * (400_000 // len(piece)))
    assert time.perf_counter() - began < 5


ENTITIES = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
ITEM = "<rss><channel><item><title>{}</title></item></channel></rss>"


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (f'<!DOCTYPE r [<!ENTITY l0 "lol">{ENTITIES}]>{ITEM.format("&l9;")}', "declares a document type"),
        (
            f'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]>{ITEM.format("&x;")}',
            "declares a document type",
        ),
        (f'<!DOCTYPE rss SYSTEM "http://127.0.0.1/x.dtd">{ITEM.format("a")}', "declares a document type"),
        (
            f'<!DOCTYPE r [<!ENTITY a "{"a" * 50_000}">]>{ITEM.format("&a;" * 50_000)}',
            "declares a document type",
        ),
        (ITEM.format("x" * 1_000_001), "a cell is too long"),
        (ITEM.format("x" * 20_000_000), "an item is too long"),
        (f'<rss a="{"x" * 30_000_000}"/>', "a tag is too long"),
        (ITEM.format("<a>" * 100_000 + "</a>" * 100_000), "nested too deeply"),
        (ITEM.format("<a/>" * 100_001), "an item has too many elements"),
        ("<a>" * 100_000 + "</a>" * 100_000, "XML of a kind that newsdesk does not read"),
        (ITEM.format("x")[:-8], "the XML breaks off or is damaged here"),
        (ITEM.format("x").encode().replace(b"x", b"\xff"), "the XML breaks off or is damaged here"),
        (b'<?xml version="1.0" encoding="no-such"?><rss/>', "declares an encoding that is not known"),
        ('{"uri": "urn:x"}', "it is not XML"),
        ("<!DOCTYPE html><html></html>", "is not the text file that its name says"),
        (
            "<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'/>",
            "XML of a kind that newsdesk does not read",
        ),
        (b"\x1f\x8b", "is not the text file that its name says"),
        ("", "is empty"),
        ("<rss/>", "holds no news item"),
        ('<packageItem xmlns="http://iptc.org/std/nar/2006-10-01/"/>', "holds no news item"),
    ],
)
def test_xml_that_is_not_news_is_one_sentence(write, content, wrong):
    with pytest.raises(UserError) as caught:
        read_table(write("a.xml", content))
    assert wrong in caught.value.wrong
    assert len(caught.value.wrong) + len(caught.value.found or "") < 500


def test_bad_items_are_set_aside_and_the_others_read(write):
    items = "".join(f"<item><title>{text}</title></item>" for text in ("a", "b" * 2000, "c"))
    path = write("a.xml", f"<rss><channel>\n{items}</channel></rss>")
    table, faults = read_with_faults(path, Dialect(max_characters=1000))
    assert table.column("headline") == ("a", "c")
    assert [(fault.line, fault.wrong) for fault in faults] == [(2, "a cell is too long")]
    nested = {"uri": "u", "bodies": [{"value": "x" * 2000}]}
    _, (fault,) = read_with_faults(write("a.jsonl", [nested, NINJS_2]), Dialect(max_characters=1000))
    assert fault.wrong == "a cell is too long"


def test_a_large_feed_is_never_in_memory_as_a_whole(tmp_path):
    path = tmp_path / "a.xml"
    with path.open("w") as stream:
        stream.write("<rss><channel>")
        for number in range(20_000):
            stream.write(f"<item><title>{number}</title><description>{'x' * 200}</description></item>")
        stream.write("</channel></rss>")
    with open_rows(path) as rows:
        first = next(rows.rows)
        assert isinstance(first, Row)
        assert rows.share_read is not None
        assert rows.share_read() < 0.5
        assert sum(1 for row in rows.rows if not isinstance(row, BadRow)) == 19_999


def test_the_check_of_a_file_says_what_was_recognised(write):
    report = check(write("a.json", [NINJS_1, NINJS_2]))
    assert (report.text_columns, report.label_column) == (("headline", "body"), "subject")
    assert report.label_counts == {"economy": 1, "sport": 1}
    assert report.read_as == "encoding utf-8; ninjs 1, 2"
    assert report.news == "ninjs 1, 2; 2 subjects, by scheme: medtop (2)"
    assert check(write("b.json", [{"uri": "u", "pubstatus": "usable"}])).empty.count == 1


def test_the_wrong_ending_is_named(write):
    with pytest.raises(UserError, match=r"a\.json is XML or HTML, not JSON"):
        read_table(write("a.json", RSS.encode("cp1252")))
    with pytest.raises(UserError, match=r"a\.xml, line 1: it is not XML"):
        read_table(write("a.xml", ITEMS))


def test_other_json_is_read_as_before(write):
    table = read_table(write("a.jsonl", '{"uri": "u", "headline": "h", "section": "s"}\n'))
    assert table.news == ""
    with pytest.raises(UserError, match="is one JSON object"):
        read_table(write("b.json", {"items": [{"a": 1}]}))


def shared_files() -> list[Path]:
    return sorted(path for path in SHARED.rglob("*") if path.suffix in (".json", ".xml"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="IPTC's examples are not at ../shared/news_formats")
def test_every_example_of_iptc_is_read_or_refused_with_a_true_sentence():
    files = shared_files()
    assert len(files) == 25
    without_text = []
    for path in files:
        if path.name == "1.4_businesswire-newsml-20130731006140.json":
            with pytest.raises(UserError) as caught:
                read_table(path)
            assert caught.value.found == "the key 'broadband' twice in one object"
            continue
        table = read_table(path)
        assert table.news == ("NewsML-G2" if path.suffix == ".xml" else f"ninjs {path.name[0]}")
        texts = text_layout(table).texts(table)
        assert not any("<p" in text or "&amp;" in text for text in texts)
        without_text += [path.name] * texts.count("")
    assert without_text == ["LISTING_24_News_Message_conveying_a_complete_News_Package.xml"] * 4


def test_newsml_falls_back_to_what_there_is_and_chooses_names_by_language(write):
    path = write(
        "a.xml",
        """<newsItem xmlns="http://iptc.org/std/nar/2006-10-01/" guid="a" xml:lang="de-AT"><contentMeta>
        <headline role="hld:teaser">no</headline><headline role="hld:main">Ja</headline>
        <description>So &amp; so</description><subject qcode="medtop:20000822" type="cpnat:abstract">
        <name xml:lang="en">sport</name><name xml:lang="de">Sport</name>
        <broader qcode="medtop:15000000"/></subject>
        </contentMeta><contentSet><remoteContent href="x"/><inlineXML/></contentSet></newsItem>""",
    )
    table = read_table(path)
    assert text_layout(table).texts(table) == ("Ja So & so",)
    assert labels_with_faults(table, "subject")[0] == ("Sport",)
    (subject,) = table.column("subject")[0]
    assert (subject["code"], subject["broader"]) == ("medtop:20000822", ["medtop:15000000"])
    html = NEWSML.replace("text/plain", "text/html").replace(
        "As &lt;is&gt;.", "&lt;p&gt;As&lt;/p&gt;&lt;p&gt;is"
    )
    assert texts_of(write("b.xml", html))[1] == "Plain As\nis"


def test_categories_without_a_name_are_none(write):
    path = write("a.rss", ITEM.format("x</title><category> </category><title>"))
    assert read_table(path).column("subject") == (None,)


def test_old_and_oddly_encoded_feeds_are_read_too(write):
    rdf = """<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns="{}"
     xmlns:dc="http://purl.org/dc/elements/1.1/"><channel><title>no</title></channel>
     <item><title>Müller trifft</title><link>http://x/1</link><dc:subject>sport</dc:subject></item></rdf:RDF>"""
    for namespace in ("http://purl.org/rss/1.0/", "http://my.netscape.com/rdf/simple/0.9/"):
        for encoding in ("utf-8", "utf-16", "utf-8-sig"):
            table = read_table(write("a.xml", rdf.format(namespace).encode(encoding)))
            assert table.column("headline") == ("Müller trifft",)
            assert table.column("uri") == ("http://x/1",)
            assert labels_with_faults(table, "subject")[0] == ("sport",)
    shift_jis = '<?xml version="1.0" encoding="Shift_JIS"?>' + ITEM.format("株価 上昇")
    assert read_table(write("b.rss", shift_jis.encode("shift_jis"))).column("headline") == ("株価 上昇",)
    stated = read_table(write("c.rss", ITEM.format("Zürich").encode("cp1252")), Dialect(encoding="cp1252"))
    assert stated.column("headline") == ("Zürich",)


def test_what_a_run_learned_from_is_found_in_news_by_its_part(write):
    table = read_table(write("a.json", ITEMS))
    assert TextLayout(("title",)).for_table(table).text_columns == ("headline",)
    assert TextLayout(("title", "description")).for_table(table).text_columns == ("headline", "body")
    assert TextLayout(("bodies.0.value",)).for_table(table).texts(table)[1] == "A goal."
    feed = read_table(write("a.rss", RSS.encode("cp1252")))
    assert TextLayout(("title", "description")).for_table(feed).text_columns == ("headline", "description")
    assert TextLayout(("headline", "body")).for_table(
        read_table(write("a.csv", "text,n\na,1\n"))
    ).text_columns == ("text",)


def test_a_column_of_classes_beside_subjects_has_to_be_chosen(write):
    item = NINJS_2 | {"category": "desk 1"}
    with pytest.raises(UserError, match=r"several columns of a\.json could be the class"):
        to_examples(read_table(write("a.json", [item, item])), labelled=True)
    assert label_column(read_table(write("b.json", [item | {"label": "x"}, item]))) == "label"
    without = {key: value for key, value in item.items() if key != "subjects"}
    assert label_column(read_table(write("c.json", [without, without]))) == "category"


@pytest.mark.parametrize("packed", ["a.xml.gz", "a.zip"])
def test_packed_news_is_read_and_held_to_the_same_limits(tmp_path, packed):
    def write(content: str) -> Path:
        path = tmp_path / packed
        if packed.endswith(".gz"):
            path.write_bytes(gzip.compress(content.encode()))
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("feed.xml", content)
        return path

    assert read_table(write(NEWSML)).column("uri") == ("a", "b", "c")
    with pytest.raises(UserError, match="packed too tightly"):
        read_table(write(ITEM.format("x" * 50_000_000)))


def test_a_table_of_news_names_its_parts_alike_in_every_format(write):
    for path in (write("a.json", ITEMS), write("a.xml", NEWSML), write("a.rss", RSS.encode("cp1252"))):
        table: Table = read_table(path)
        assert text_layout(table).text_columns == ("headline", "body")

"""Normalisers undo what they name, leave ordinary text alone, and change nothing a second time."""

from __future__ import annotations

import random

import pytest

from newsdesk.data.words import NORMALISERS, normalise
from newsdesk.errors import UserError


@pytest.mark.parametrize(
    ("damaged", "restored"),
    [
        ("Oracle #39;s bid", "Oracle's bid"),
        ("killer  #39;may be local #39;", "killer 'may be local'"),
        ("#39;Tis over", "'Tis over"),
        ("Oracle&#39;s bid", "Oracle's bid"),
        ("the  quot;jBPM. quot; tool", 'the "jBPM." tool'),
        ("&quot;Halo&quot; fans", '"Halo" fans'),
        ("AT amp;T and Marsh  amp; McLennan", "AT&T and Marsh & McLennan"),
        ("AT&amp;T", "AT&T"),
        ("A&amp;amp;B", "A&B"),
        ("AT #38;T", "AT&T"),
        ("news for &lt;b&gt;...&lt;/b&gt; Scientists", "news for ... Scientists"),
        ("&amp;lt;b&amp;gt;bold", "bold"),
        ('Corp. &lt;A HREF="http://x/?a=B.O"&gt;BA.N&lt;/A&gt; posted', "Corp. BA.N posted"),
        ("one&lt;/p&gt;&lt;p&gt;two&lt;br/&gt;three", "one two three"),
        ("Gateway &lt;GTW.N&gt;, the maker", "Gateway <GTW.N>, the maker"),
        ("Suzuki  lt;7269.T gt; said", "Suzuki <7269.T> said"),
        (r"over\$55 and US\$2 billion", "over$55 and US$2 billion"),
        (" #36;8.8 billion", "$8.8 billion"),
        (r"Disney Co.  is\increasing", "Disney Co. is increasing"),
        (r"Firm Keyhole\\After a tip", "Firm Keyhole After a tip"),
        (r"bought \\$1", "bought $1"),
        ("system's nbsp;icy&nbsp;\\wanderers. nbsp;", "system's icy wanderers."),
        ("cut  #151; the first", "cut — the first"),
        ("TORONTO  #x2014; Suspended", "TORONTO — Suspended"),
        ("the Elys eacute;e", "the Elysée"),
        ("Ky. Company Wins Grant (AP)", "Ky. Company Wins Grant (AP)"),
    ],
)
def test_ag_news_escapes_are_undone(damaged, restored):
    assert normalise(damaged, "ag_news") == restored


@pytest.mark.parametrize(
    "text",
    [
        "C#39 and C#39;",
        "AT&T; R&D; Q&A;",
        "an amp; it hums",
        "the euro; the pound; the cent;",
        "Stocks Up 7; Oil Flat; gains of 0.2; more",
        "ranked #7; then #12.",
        "a < b and c > d",
        "x &notreal; y &copy 2004",
        'She said "it\'s" (AP)',
        "Chávez — café",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert normalise(text, "ag_news") == text


@pytest.mark.parametrize("name", NORMALISERS)
def test_every_normaliser_is_idempotent(name):
    entities = [
        "&",
        "amp;",
        "lt;",
        "gt;",
        "#39;",
        "#38;",
        "#92;",
        "#32;",
        "quot;",
        "nbsp;",
        "&lt;",
        "&amp;lt;",
    ]
    tags = ["<", ">", "b", "/p", "a href=", "<b>", "</b>", "<!--", "-->"]
    others = ["\\", "$", " ", "  ", "\n", ";", "#", "39", "x", "é", "\u00a0", "&NotEqualTilde;", "#xD800;"]
    pieces = [*entities, *tags, *others]
    generator = random.Random(7)
    for _ in range(5000):
        text = "".join(generator.choices(pieces, k=generator.randint(0, 14)))
        once = normalise(text, name)
        assert normalise(once, name) == once, text


def test_none_keeps_every_character_and_whitespace_only_folds_space():
    assert normalise(" a \n&amp;  b", "none") == " a \n&amp;  b"
    assert normalise(" a \n&amp;  b", "whitespace") == "a &amp; b"


def test_an_unknown_normaliser_lists_the_known_ones():
    with pytest.raises(UserError, match="none, whitespace, ag_news"):
        normalise("text", "agnews")

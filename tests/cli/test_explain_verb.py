from __future__ import annotations

import pytest

from newsdesk.cli.predict import render_explanations
from newsdesk.prediction.explanation import Explanation, WordWeight

WORDS = (WordWeight("goal", 0, 4, 1.5), WordWeight("the", 5, 8, 0.01), WordWeight("bank", 9, 13, -0.5))
EXPLANATION = Explanation("goal the bank", "Sports", 0.9, "Sports", 0.9, 2.2, -0.1, WORDS)


def test_without_colour_the_numbers_say_it_all():
    lines = render_explanations([EXPLANATION], top=2)
    assert lines[:4] == ["Sports 90.0%", "goal the bank", "  +1.50  goal", "  -0.50  bank"]
    assert lines[4].startswith("log-odds +2.20, of an empty text -0.10")


def test_on_a_terminal_words_are_marked_by_sign_and_strength(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    line = render_explanations([EXPLANATION], top=2)[1]
    assert line == "\x1b[1;7;32mgoal\x1b[0m the \x1b[31mbank\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32" not in render_explanations([EXPLANATION], top=2)[1]


@pytest.mark.parametrize("text", ["", "[bold]goal[/]", "a\nb :smile:"])
def test_texts_are_shown_as_they_are(text):
    shown = "\n".join(
        render_explanations([Explanation(text, "Sports", 0.9, "World", 0.1, 0.0, 0.0, ())] * 2, top=3)
    )
    assert shown.count(f"Sports 90.0%; explained: World 10.0%\n{text}\n") == 2

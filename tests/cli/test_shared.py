"""The pieces that every verb is made of."""

from __future__ import annotations

import json

import click
import pytest

from newsdesk.cli.shared import Flag, Verb, Verbs, flag, names_of, note, reading_flags, say


@pytest.fixture
def call(monkeypatch):
    """Run a verb ``do`` of a group with the prefix DESK; returns what its function returns."""

    def call(verb, *arguments, **environment):
        group = Verbs("desk", commands=[verb], context_settings={"auto_envvar_prefix": "DESK"})
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return group.main(["do", *arguments], standalone_mode=False, obj={})

    return call


@click.command("do", cls=Verb)
@flag("--input", "source")
@flag("-k", "--top-k", "k", type=int, default=1)
@flag("--set", "overrides", multiple=True)
@flag("--header/--no-header", default=None)
def do(source, k, overrides, header):
    return source, k, overrides, header


def test_a_flag_is_the_variable_that_it_is_called(call):
    variables = {"DESK_DO_INPUT": "-", "DESK_DO_TOP_K": "3", "DESK_DO_SET": "a=1 b=2", "DESK_DO_HEADER": "0"}
    assert call(do, **variables) == ("-", 3, ("a=1", "b=2"), False)


def test_a_flag_is_not_the_variable_of_its_parameter(call):
    assert call(do, DESK_DO_SOURCE="x", DESK_DO_K="9", DESK_DO_OVERRIDES="x") == (None, 1, (), None)


def test_the_command_line_wins_over_the_environment_and_empty_is_unset(call):
    assert call(do, "--top-k", "5", DESK_DO_TOP_K="3", DESK_DO_INPUT="") == (None, 5, (), None)


def test_a_variable_that_makes_no_sense_is_wrong_usage(call):
    with pytest.raises(click.BadParameter, match="many"):
        call(do, DESK_DO_TOP_K="many")


def test_reading_flags_keep_their_order_and_number():
    @click.command()
    @reading_flags("text", "dialect")
    def verb(**reading):
        """Take the flags."""

    assert [parameter.name for parameter in verb.params] == [
        *("text", "header", "delimiter", "quote", "encoding"),
        *("max_characters", "max_columns", "max_unpacked"),
    ]
    assert all(isinstance(parameter, Flag) for parameter in verb.params)


def test_verbs_are_listed_as_they_were_added():
    group = Verbs("desk", commands=[click.Command("write"), click.Command("edit")])
    assert group.list_commands(click.Context(group)) == ["write", "edit"]


@pytest.mark.parametrize(
    ("joined", "names"),
    [(None, None), ("", ()), ("title", ("title",)), (" title, body ,", ("title", "body"))],
)
def test_names_are_separated_by_commas(joined, names):
    assert names_of(joined) == names


def test_lines_are_printed_as_they_are_and_all_else_as_json(capsys):
    say(["one", "two – ü"])
    assert capsys.readouterr().out == "one\ntwo – ü\n"
    for value in ({"a": "ü"}, [{"a": 1}], [1]):
        say(value)
        assert json.loads(capsys.readouterr().out) == value


def test_notes_go_to_standard_error_unwrapped_and_unchanged(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = "saved to runs/[bold]/a-path-that-is-longer-than-the-terminal-is-wide/1234.csv"
    note(text)
    assert capsys.readouterr() == ("", text + "\n")

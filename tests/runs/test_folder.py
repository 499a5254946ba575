"""A run folder says what it is, whether it is finished, and what each of its files should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from newsdesk.data.columns import TextLayout
from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.runs.folder import HEADER, MANIFEST, RunFolder, open_run, require_free, staged
from newsdesk.runs.labels import Labels
from newsdesk.runs.manifest import BaseFacts, Manifest

SEALED = Manifest(newsdesk="0.1.0", versions={}, base=BaseFacts("b", "b", None), seed=42)
LABELS = Labels(("cold", "hot"), TextLayout(("title", "body"), "{title}. {body}", "ag_news"), 64)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.write_recipe("[lora]\n")
    run.write_labels(LABELS)
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    return run


def test_every_part_has_its_place(tmp_path: Path):
    run = RunFolder(tmp_path)
    parts = (run.adapter, run.tokenizer, run.recipe, run.log, run.metrics)
    names = ["adapter", "tokenizer", "recipe.toml", "log.jsonl", "metrics.json"]
    assert [part.relative_to(tmp_path).as_posix() for part in parts] == names


def test_labels_are_read_back_as_written(run: RunFolder):
    assert RunFolder(run.path).labels == LABELS


def test_the_manifest_has_the_facts_and_the_hash_of_every_other_file(run: RunFolder):
    (run.path / ".hidden").mkdir()
    (run.path / ".hidden" / "part").write_text("x")
    run.seal(SEALED)
    assert run.manifest.seed == 42
    files = ("adapter/adapter_config.json", "labels.json", "recipe.toml")
    assert run.manifest.files == {name: sha256_of(run.path / name) for name in files}


def test_sealing_anew_keeps_the_facts_and_sees_new_files(run: RunFolder):
    run.seal(SEALED)
    before = run.manifest
    run.metrics.write_text("{}")
    run.reseal()
    assert run.manifest.seed == 42
    assert run.manifest.files.keys() - before.files.keys() == {"metrics.json"}
    assert RunFolder(run.path).manifest == run.manifest


def test_a_finished_run_opens(run: RunFolder):
    run.seal(SEALED)
    assert open_run(run.path) == run


def test_an_unfinished_run_is_said_to_be_unfinished(run: RunFolder):
    with pytest.raises(UserError, match="is unfinished") as raised:
        open_run(run.path)
    assert "manifest.json, which is written last" in (raised.value.found or "")
    assert f"--out {run.path} --resume" in (raised.value.fix or "")


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path):
    with pytest.raises(UserError, match="there is no run at") as raised:
        open_run(tmp_path / "nowhere")
    assert raised.value.found == "no such folder"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="there is no run at") as raised:
        open_run(tmp_path / "file")
    assert raised.value.found == "a file, not a folder"
    with pytest.raises(UserError, match="is not a run of newsdesk") as raised:
        open_run(tmp_path)
    assert raised.value.found == "file"
    (tmp_path / "file").unlink()
    with pytest.raises(UserError, match="is not a run of newsdesk") as raised:
        open_run(tmp_path)
    assert raised.value.found == "an empty folder"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}", b"[]", b'{"labels": ["a"], "text": {}}'])
def test_damaged_labels_are_said_to_be_damaged(run: RunFolder, content: bytes):
    (run.path / "labels.json").write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.json is missing or damaged"):
        _ = run.labels


def test_a_missing_or_damaged_manifest_is_said_to_be_so(run: RunFolder):
    for content in (None, "{"):
        if content is not None:
            (run.path / MANIFEST).write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json is missing or damaged"):
            _ = RunFolder(run.path).manifest


def test_a_place_is_free_when_nothing_is_there(tmp_path: Path):
    require_free(tmp_path / "new", overwrite=False)
    (tmp_path / "empty").mkdir()
    require_free(tmp_path / "empty", overwrite=False)
    (tmp_path / "empty" / ".staging").mkdir()  # of a training killed while it prepared
    require_free(tmp_path / "empty", overwrite=False)


def test_a_place_that_is_taken_is_refused_and_only_a_run_may_be_replaced(tmp_path: Path, run: RunFolder):
    for kind in ("an unfinished run", "a finished run"):
        with pytest.raises(UserError, match="is not empty") as raised:
            require_free(run.path, overwrite=False)
        assert raised.value.found == kind
        assert "--overwrite" in (raised.value.fix or "")
        require_free(run.path, overwrite=True)
        run.seal(SEALED)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not empty") as raised:
            require_free(tmp_path / "thesis", overwrite=overwrite)
        assert raised.value.found == "no run of newsdesk, but chapter.tex"
        assert "--overwrite" not in (raised.value.fix or "")
        with pytest.raises(UserError, match="is a file"):
            require_free(tmp_path / "thesis" / "chapter.tex", overwrite=overwrite)


def test_what_is_prepared_takes_the_place_of_the_old_run_only_when_all_is_there(run: RunFolder):
    (run.path / "link").symlink_to(run.path / "labels.json")
    with staged(run.path) as new:
        new.write_recipe("[model]\n")
        (new.path / "tokenizer").mkdir()
        (new.path / "tokenizer" / "tokenizer.json").write_text("{}")
        assert run.recipe.read_text() == HEADER + "[lora]\n"
    assert sorted(entry.name for entry in run.path.iterdir()) == ["link", "recipe.toml", "tokenizer"]
    assert run.recipe.read_text() == HEADER + "[model]\n"


def test_a_failed_preparation_leaves_what_was_there(tmp_path: Path, run: RunFolder):
    def fail(out: Path) -> None:
        with staged(out) as new:
            new.write_recipe("half")
            raise KeyboardInterrupt

    for out in (run.path, tmp_path / "deep" / "new"):
        with pytest.raises(KeyboardInterrupt):
            fail(out)
    assert run.recipe.read_text() == HEADER + "[lora]\n"
    assert sorted(entry.name for entry in run.path.iterdir()) == ["adapter", "labels.json", "recipe.toml"]
    assert not (tmp_path / "deep" / "new").exists()


def test_a_place_nothing_can_be_written_to_is_refused_in_a_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="no run can be written to") as raised,
        staged(tmp_path / "file" / "run"),
    ):
        pytest.fail("nothing can be prepared here")
    assert raised.value.fix == "choose another folder with --out"


def test_the_files_are_json_that_people_can_read(run: RunFolder):
    content = json.loads((run.path / "labels.json").read_text("utf-8"))
    assert content == {
        "format": 1,
        "labels": ["cold", "hot"],
        "text": {"text_columns": ["title", "body"], "template": "{title}. {body}", "normaliser": "ag_news"},
        "max_length": 64,
        "kind": "text",
    }

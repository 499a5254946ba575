"""A run goes to the Hub and comes back: by huggingface_hub's own client, against a Hub on 127.0.0.1."""

from __future__ import annotations

import ctypes
import json
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard, constants, hf_api, snapshot_download
from huggingface_hub.utils import _http

import newsdesk
from hub_for_pushes import TOKEN, PushableHub, Repository, serving
from newsdesk.cli import cli
from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.hub import transfer
from newsdesk.reports import push as pushing
from newsdesk.reports.model_card import END
from newsdesk.reports.push import plan_push
from newsdesk.runs.folder import RunFolder
from newsdesk.runs.manifest import DataFacts, RowFacts
from tiny_exports import build_exported

REPO = "desk/wire"
TEXTS = ["goal coach league", "bank profit market", "orbit genome quantum"]
OF_A_RUN = {
    *("README.md", "labels.json", "log.jsonl", "manifest.json", "metrics.json", "recipe.toml"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    *("adapter_config.json", "adapter_model.safetensors"),
    *("calibration.json", "calibration.safetensors", "off_topic.safetensors", "known_texts.safetensors"),
    "linear_model.safetensors",
    *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "predictions-seen.csv"),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process's client talks to, logged in, and does not wait for before it tries again."""
    with serving(PushableHub()) as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
            "HF_HUB_DISABLE_XET": True,  # large files by git's protocol, which can be stood in for
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
        monkeypatch.setattr(_http.time, "sleep", lambda _seconds: None)
        yield hub


def files_at(hub: PushableHub, branch: str = "main") -> dict[str, bytes]:
    files = dict(hub.repositories[REPO].branches[branch])
    files.pop(".gitattributes")
    return files


def refusal_of(run: Path, repo_id: str = REPO, **named: object) -> UserError:
    with pytest.raises(UserError) as refused:
        newsdesk.push(run, repo_id, **named)
    return refused.value


def test_a_pushed_run_comes_back_byte_for_byte_and_predicts(hub, run, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    seen = []
    done = newsdesk.push(run, REPO, observe=seen.append)
    assert (done.url, done.private, done.changed) == (f"{hub.endpoint}/{REPO}", True, True)
    assert seen == [done.plan]
    assert hub.repositories[REPO].private
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    back = Path(snapshot_download(REPO, local_dir=tmp_path / "back"))
    names = {path.relative_to(back).as_posix() for path in back.rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith(".")} == OF_A_RUN
    for name in OF_A_RUN - {"README.md", "manifest.json"}:
        original = run / ("adapter" if name.startswith("adapter_") else "") / name
        assert (back / name).read_bytes() == original.read_bytes(), name
    pulled, here = RunFolder(back), RunFolder(run)
    sent = {name: sha256_of(back / name) for name in OF_A_RUN - {"manifest.json"}}
    assert pulled.manifest == replace(here.manifest, files=sent)
    expected = newsdesk.load(run).predict(TEXTS).probabilities
    assert (newsdesk.load(back).predict(TEXTS).probabilities == expected).all()
    assert newsdesk.push(back, "desk/again").changed  # a run that came back is a run


def test_the_pushed_card_is_read_by_the_hubs_client_and_its_code_runs(hub, run, capsys):
    newsdesk.push(run, REPO)
    card = ModelCard.load(REPO)
    assert card.data.model_name == "wire"
    figures = json.loads((run / "metrics.json").read_text())["seen"]["metrics"]
    assert card.data.eval_results[0].metric_value == figures["accuracy"]
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    base = RunFolder(run).manifest.base.reference
    exec(code.replace(json.dumps(Path(base).name), json.dumps(base)).replace("TEXT", TEXTS[0]), {})
    assert capsys.readouterr().out == f"{list(newsdesk.load(run).predict(TEXTS[:1]).labels)}\n"


def test_what_is_not_the_runs_or_holds_texts_stays_here(hub, run, topical_csv):
    newsdesk.evaluate(run, str(topical_csv), split="told", with_text=True)
    (run / "checkpoints").mkdir()
    for stray in ("checkpoints/step-1.safetensors", "notes.txt", "report.html", ".lock"):
        (run / stray).write_text("goal coach league")
    RunFolder(run).reseal()
    (run / "late.txt").write_text("after the seal")
    build_exported(run / "export" / "onnx-fp32", kind="onnx-fp32")
    plan = newsdesk.push(run, REPO).plan
    assert set(files_at(hub)) == OF_A_RUN
    assert plan.left_out["predictions-told.csv"].startswith("holds texts")
    assert plan.left_out["checkpoints/step-1.safetensors"].startswith("a checkpoint")
    assert {plan.left_out[name] for name in (".lock", "late.txt")} == {"not in manifest.json"}
    assert plan.left_out["report.html"] == plan.left_out["notes.txt"]
    assert "--with-exports" in plan.left_out["export/onnx-fp32/labels.json"]
    assert not any(b"goal coach league" in content for content in files_at(hub).values())


def test_exports_go_when_asked_and_leave_when_the_next_push_has_none(hub, run):
    exported = run / "export" / "onnx-fp32"
    build_exported(exported, kind="onnx-fp32")
    newsdesk.push(run, REPO, with_exports=True)
    sent = {name for name in files_at(hub) if name.startswith("export/")}
    assert sent == {path.relative_to(run).as_posix() for path in exported.rglob("*") if path.is_file()}
    hub.repositories[REPO].branches["main"]["mine.txt"] = b"not newsdesk's"
    done = newsdesk.push(run, REPO)
    assert set(done.removed) == sent
    assert set(files_at(hub)) == {*OF_A_RUN, "mine.txt"}
    (exported / "labels.json").write_text("{}")
    assert "missing or not the file that was sealed" in refusal_of(run, with_exports=True).wrong


@pytest.mark.parametrize("name", ["metrics.json", "adapter/adapter_model.safetensors"])
def test_a_file_that_is_not_as_it_was_sealed_stops_the_push(hub, run, name):
    (run / name).write_bytes(b"other")
    assert f"{name} is missing or not the file that was sealed" in refusal_of(run).wrong
    (run / name).unlink()
    assert "no such file" in str(refusal_of(run).found)
    assert hub.asked == []


def test_an_unfinished_run_is_not_sent(hub, run):
    (run / "manifest.json").unlink()
    assert "unfinished" in refusal_of(run).wrong


@pytest.mark.parametrize("repo_id", ["wire", "a/b/c", "desk/-x-", "desk/wire desk", "../wire"])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_asked(hub, run, repo_id):
    assert "organisation/name" in str(refusal_of(run, repo_id).fix)
    assert hub.asked == []


def test_without_a_token_nothing_is_asked(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in str(refusal_of(run).fix)
    assert hub.asked == []


def test_a_hub_that_may_not_be_asked_is_not(hub, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal_of(run).found == "HF_HUB_OFFLINE is set"
    assert hub.asked == []


def test_a_token_that_the_hub_does_not_know_is_told_from_one_that_may_not_write(hub, run, monkeypatch):
    stranger = refusal_of(run, "other/wire")
    assert "does not let this token write to other/wire" in stranger.wrong
    assert "answered 403: You don't have the rights" in str(stranger.found)
    assert "check that other exists" in str(stranger.fix)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know the token" in refusal_of(run).wrong


def test_a_hub_that_answers_no_more_is_asked_again_later(hub, run):
    hub.refusals["api/repos/create"] = (429, "Too many")
    refused = refusal_of(run)
    assert "no more requests for now" in refused.wrong
    assert "push again later" in str(refused.fix)


def test_a_network_that_is_dead_is_told(run, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused = refusal_of(run)
    assert "cannot be reached" in refused.wrong
    assert "http://127.0.0.1:9: " in str(refused.found)


def test_a_taken_name_and_another_visibility_are_refused_before_any_file_is_sent(hub, run):
    hub.repositories["desk/other"] = Repository(private=True)
    hub.repositories["desk/other"].branches["main"]["model.bin"] = b"x"
    taken = refusal_of(run, "desk/other")
    assert ("is taken" in taken.wrong, taken.found) == (True, "model.bin")
    hub.repositories[REPO] = Repository(private=False)
    assert "is public" in refusal_of(run).wrong
    assert newsdesk.push(run, REPO, private=False).private is False
    hub.repositories[REPO].private = True
    assert "use --private" in str(refusal_of(run, private=False).fix)
    assert hub.repositories["desk/other"].commits == []


def test_an_upload_that_broke_off_goes_on_where_it_was(hub, run):
    (size,) = {path.stat().st_size for path in run.glob("adapter/*.safetensors")}
    hub.cuts[size] = 100  # more often than the client tries
    refused = refusal_of(run)
    assert "broke off" in refused.wrong
    assert "what has arrived is not sent again" in str(refused.fix)
    assert hub.repositories[REPO].commits == []
    arrived = set(hub.large)
    assert arrived
    hub.cuts.clear()
    hub.asked.clear()
    assert newsdesk.push(run, REPO).changed
    assert arrived & set(hub.put) == set()
    assert set(files_at(hub)) == OF_A_RUN


def test_a_run_that_the_hub_has_is_not_committed_again(hub, run):
    first = newsdesk.push(run, REPO, message="The wire desk's")
    again = newsdesk.push(run, REPO)
    assert (again.changed, again.commit, again.removed) == (False, first.commit, ())
    assert hub.repositories[REPO].commits == ["The wire desk's"]


def test_a_branch_is_made_where_there_is_none(hub, run):
    done = newsdesk.push(run, REPO, revision="try/1")
    assert set(files_at(hub, "try/1")) == OF_A_RUN
    assert files_at(hub) == {}
    assert done.url.endswith(f"/{REPO}/tree/try/1")


def test_a_card_that_was_edited_on_the_hub_keeps_its_words(hub, run):
    newsdesk.push(run, REPO)
    files = hub.repositories[REPO].branches["main"]
    files["README.md"] = files["README.md"].replace(b"# wire", b"# Wire desk, Vienna")
    newsdesk.push(run, REPO)
    assert b"# Wire desk, Vienna" in files_at(hub)["README.md"]
    own = (run / "README.md").read_text()
    (run / "README.md").write_text(own + "\nMine.\n")
    newsdesk.push(run, REPO)
    assert files_at(hub)["README.md"].endswith(f"{END}\n\nMine.\n".encode())


def test_what_someone_else_pushed_meanwhile_is_not_overwritten(hub, run):
    newsdesk.push(run, REPO)
    (run / "README.md").write_text((run / "README.md").read_text() + "\nMine.\n")
    hub.meanwhile = lambda: hub.repositories[REPO].commits.append("theirs")
    assert "changed while the run was being sent" in refusal_of(run).wrong


@pytest.mark.parametrize(
    ("card", "part"),
    [("no metadata", "cannot be read"), ("---\ntags: mine\n---\n", "did not accept")],
)
def test_a_card_that_the_hub_would_not_read_is_refused(hub, run, card, part):
    (run / "README.md").write_text(card)
    assert part in refusal_of(run).wrong
    assert REPO not in hub.repositories or hub.repositories[REPO].commits == []


def test_what_the_hub_says_is_told(hub, run):
    hub.refusals["preupload"] = (400, "the disk of the Hub is full")
    refused = refusal_of(run)
    assert "did not accept the run" in refused.wrong
    assert "answered 400: the disk of the Hub is full" in str(refused.found)


def test_the_command_lists_what_it_would_send_and_asks_nobody(hub, run):
    shown = CliRunner().invoke(cli, ["push", str(run), REPO, "--dry-run"]).output
    size = (run / "adapter" / "adapter_model.safetensors").stat().st_size
    assert f"{size:,}  adapter/adapter_model.safetensors\n" in shown
    assert re.search(rf"^18 files, 0\.\d MB for {REPO}$", shown, re.MULTILINE)
    assert "note: the base model" in shown
    (run / "notes.txt").write_text("")
    document = json.loads(CliRunner().invoke(cli, ["push", str(run), REPO, "--dry-run", "--json"]).stdout)
    assert {entry["path"] for entry in document["files"]} == OF_A_RUN
    assert document["left_out"] == {"notes.txt": "not in manifest.json"}
    assert hub.asked == []


def test_the_command_says_where_the_run_was_pushed_to(hub, run):
    done = CliRunner().invoke(cli, ["push", str(run), REPO, "--message", "Ours"])
    assert done.stdout == f"run pushed to {hub.endpoint}/{REPO} (private)\n"
    assert "adapter/adapter_model.safetensors" in done.stderr
    again = CliRunner().invoke(cli, ["push", str(run), REPO])
    assert again.stdout == f"nothing new for {hub.endpoint}/{REPO}\n"
    document = json.loads(CliRunner().invoke(cli, ["push", str(run), REPO, "--json"]).stdout)
    assert (document["changed"], document["private"]) == (False, True)
    assert hub.repositories[REPO].commits == ["Ours"]


def test_places_on_this_machine_and_a_base_that_others_lack_are_told_before(run, tiny_base, topical_csv):
    local, recognised, places = plan_push(run, REPO).notes
    assert recognised.startswith("with known_texts.safetensors, whoever has a text can tell")
    assert f"{tiny_base('bert').name} is not on the Hub" in local
    assert str(topical_csv) in places
    (run / "metrics.json").unlink()
    known = RunFolder(run).manifest
    base = replace(known.base, reference="sentence-transformers/all-MiniLM-L6-v2")
    rows = RowFacts("ag_news", 1, "0")
    RunFolder(run).seal(replace(known, base=base, data=DataFacts(None, rows, rows)))
    assert plan_push(run, REPO).notes == (recognised,)


def silent_server(_handler):
    threading.Event().wait(1)


def large(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(150):
        handler.wfile.write(bytes(1 << 20))
    threading.Event().wait(0.5)


def asks_to_wait(handler):
    handler.send_response(503)
    handler.send_header("Retry-After", "3600")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.mark.parametrize(
    ("path", "answer"),
    [("api/repos/create", silent_server), ("commit/main", silent_server), ("commit/main", asks_to_wait)],
)
def test_a_hub_that_lets_us_wait_is_given_up(hub, run, monkeypatch, path, answer):
    monkeypatch.setattr(transfer, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(transfer, "LEAST_RATE", 1 << 30)
    monkeypatch.setattr(pushing, "COMMIT_SECONDS", 0.5)
    monkeypatch.setattr(_http.time, "sleep", threading.Event().wait)
    hub.instead[path] = answer
    began = time.monotonic()
    refused = refusal_of(run)
    assert "cannot be reached" in refused.wrong or "did not accept" in refused.wrong
    assert time.monotonic() - began < 5


def test_a_large_answer_does_not_fill_the_memory(hub, run, monkeypatch):
    monkeypatch.setattr(transfer, "_MOST_MEMORY", 50 << 20)
    monkeypatch.setattr(transfer, "_REPORT_SECONDS", 0.01)
    hub.instead["api/models/desk/wire"] = large
    if sys.platform == "linux":  # what earlier tests left for use again would hold the answer
        ctypes.CDLL(None).malloc_trim(0)
    assert "bytes of memory" in str(refusal_of(run).found)

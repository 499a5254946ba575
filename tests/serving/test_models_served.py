"""Models by name, from runs, exports and folders; loaded, replaced and removed while requests come."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace

import httpx
import numpy as np
import pytest

import newsdesk
from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.runs.exported import ExportedModel
from newsdesk.serving.models import sources_of
from newsdesk.serving.settings import Settings
from newsdesk.stored import write_stored
from served_exports import calibrated_export, headline, running, wait_until, with_several_labels

pytest.importorskip("uvicorn")

from newsdesk.serving.server import bound, new_server, serve


def renamed_labels(folder, *names):
    """Give an export's labels other names: a model that says of every text something else."""
    exported = ExportedModel(folder)
    labels = replace(exported.labels, names=names)
    labels.write(folder)
    hashes = {**exported.manifest.files, "labels.json": sha256_of(folder / "labels.json")}
    write_stored(folder / "manifest.json", replace(ExportedModel(folder).manifest, files=hashes))
    return folder


@pytest.fixture
def folder(export, tmp_path):
    """A folder of two models: ``english``, and ``german`` with the names of its labels in German."""
    shutil.copytree(export, tmp_path / "models" / "english")
    german = shutil.copytree(export, tmp_path / "models" / "german")
    renamed_labels(german, "Wirtschaft", "Wissenschaft", "Sport")
    (tmp_path / "models" / "notes.txt").write_text("no model")
    return tmp_path / "models"


def labels_of(client, models, text):
    answer = client.post("/v1/classify", json={"texts": text, "models": models, "top_k": 1}).json()
    return [result["predictions"][0]["label"] for result in answer["results"]]


def test_a_folder_of_models_is_served_by_their_names(folder):
    with running(folder) as server:
        names = [model["id"] for model in server.client.get("/v1/models").json()["data"]]
        assert names == ["english", "german"]
        assert labels_of(server.client, ["german", "english"], headline(0, 0)) == ["Wirtschaft", "Business"]
        for name, label in (("german", "Sport"), ("english", "Sports")):
            ranked = server.client.post(f"/tei/{name}/predict", json={"inputs": headline(2, 0)}).json()
            assert ranked[0]["label"] == label
            (ranked,) = server.client.post(f"/models/{name}", json={"inputs": headline(2, 0)}).json()
            assert ranked[0]["label"] == label


def test_names_are_those_of_folders_or_given(folder, export, tmp_path):
    assert sources_of([f"desk={export}", str(folder)]) == {
        "desk": export,
        "english": folder / "english",
        "german": folder / "german",
    }
    run = tmp_path / "wire"
    shutil.copytree(export, run / "export" / "onnx-int8")
    assert list(sources_of([str(run / "export" / "onnx-int8")])) == ["wire"]
    with pytest.raises(UserError, match="two models would be called 'english'"):
        sources_of([str(folder), f"english={export}"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is nothing to serve"):
        sources_of([str(tmp_path / "empty")])


def test_a_model_that_cannot_keep_the_promise_is_not_served(export):
    with pytest.raises(UserError, match="no threshold promises"), running(export, promise={"abstain": 1e-6}):
        pass


def test_the_servers_promise_holds_where_a_request_asks_for_nothing(export):
    with running(export, promise={"abstain": 0.03}) as server:
        (result,) = server.client.post("/v1/classify", json={"texts": "goal bank"}).json()["results"]
        assert result["predictions"][0]["label"] is None
        assert result["predictions"][0]["reason"].startswith("confidence below")
        assert result["rule"]["promise"]["error_rate"] == 0.03


def test_a_model_is_replaced_under_load_without_an_error_or_a_mixed_answer(folder):
    """Twenty times, by watching the folder: each answer has the labels of one of the two, whole."""
    english, german = {"Business", "Science", "Sports"}, {"Wirtschaft", "Wissenschaft", "Sport"}
    answers: list[tuple[int, set[str]]] = []
    stop = threading.Event()

    def keep_asking(url):
        with httpx.Client(base_url=url, timeout=20) as client:
            while not stop.is_set():
                body = {"texts": [headline(topic, 0) for topic in range(3)], "models": "desk"}
                answer = client.post("/v1/classify", json=body)
                (result,) = answer.json()["results"] if answer.status_code == 200 else ({"predictions": []},)
                answers.append((answer.status_code, {each["label"] for each in result["predictions"]}))

    place = folder.parent / "desk"
    shutil.copytree(folder / "english", place)
    with running(place, watch=0.02) as server:
        threads = [threading.Thread(target=keep_asking, args=(server.url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        before = server.service.models.get("desk")
        for number in range(20):
            source = folder / ("german" if number % 2 == 0 else "english")
            shutil.copytree(source, folder.parent / f"new-{number}")
            place.rename(folder.parent / f"old-{number}")
            (folder.parent / f"new-{number}").rename(place)
            wait_until(lambda: server.service.models.get("desk") is not before)  # noqa: B023
            before = server.service.models.get("desk")
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    assert {frozenset(labels) for _, labels in answers} == {frozenset(english), frozenset(german)}


def test_what_is_new_in_a_watched_folder_is_served_and_what_is_gone_is_not(folder, export):
    with running(folder, watch=0.05) as server:
        shutil.copytree(export, folder / ".french")
        (folder / ".french").rename(folder / "french")
        shutil.rmtree(folder / "german")
        models = server.service.models
        wait_until(lambda: {model.name for model in models} == {"english", "french"})
        assert labels_of(server.client, "french", headline(1, 0)) == ["Science"]


def test_a_link_that_leads_elsewhere_replaces_a_model_and_hidden_folders_are_not_served(folder, tmp_path):
    (tmp_path / "served").mkdir()
    place = tmp_path / "served" / "desk"
    place.symlink_to(folder / "english")
    shutil.copytree(folder / "english", tmp_path / "served" / ".copied")
    with running(tmp_path / "served", watch=0.05) as server:
        assert labels_of(server.client, "desk", headline(0, 0)) == ["Business"]
        (tmp_path / "served" / ".desk").symlink_to(folder / "german")
        (tmp_path / "served" / ".desk").replace(place)
        wait_until(lambda: labels_of(server.client, "desk", headline(0, 0)) == ["Wirtschaft"])
        assert {model.name for model in server.service.models} == {"desk"}


def test_a_damaged_model_does_not_take_a_good_ones_place(folder):
    with running(folder, watch=0.05, manage=True) as server:
        model = ExportedModel(folder / "english").model
        model.write_bytes(model.read_bytes()[:-1])
        refused = server.client.post("/v1/models/english")
        assert refused.status_code == 422
        assert "what was served before still is" in refused.json()["error"]
        assert labels_of(server.client, "english", headline(0, 0)) == ["Business"]


def test_requests_load_and_remove_models_of_the_folder_alone(folder):
    with running(folder, manage=True) as server:
        assert server.client.delete("/v1/models/german").status_code == 204
        assert server.client.post("/classify", json={"model": "german", "input": "a"}).status_code == 404
        renamed_labels(folder / "german", "a", "b", "c")
        assert server.client.post("/v1/models/german").json()["labels"] == ["a", "b", "c"]
        assert server.client.post("/v1/models/english", content=b"/etc").status_code == 200
        assert server.client.post("/v1/models/other").status_code == 404
        assert server.client.post("/v2/repository/models/german/unload").json()["unload"]
        names = [model["id"] for model in server.client.get("/v1/models").json()["data"]]
        assert names == ["english"]


def test_metrics_count_requests_texts_labels_and_drift(export):
    with running(export) as server:
        server.client.post("/v1/classify", json={"texts": [headline(0, 0)] * 200 + [""]})
        server.client.post("/predict", json={"inputs": 7})
        lines = server.client.get("/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert found['newsdesk_requests_total{protocol="own",status="200"}'] == "1.0"
    assert found['newsdesk_requests_total{protocol="tei",status="422"}'] == "1.0"
    assert found['newsdesk_refusals_total{kind="invalid"}'] == "1.0"
    assert found['newsdesk_texts_total{model="desk"}'] == "201.0"
    assert found['newsdesk_labels_total{label="Business",model="desk"}'] == "200.0"
    assert found['newsdesk_unanswered_total{model="desk",reason="empty text"}'] == "1.0"
    assert found['newsdesk_drift_alarm{kind="labels",model="desk"}'] == "1.0"
    assert float(found["newsdesk_batch_tokens_sum"]) > 1000
    assert found["newsdesk_ready"] == "1.0"
    assert found["newsdesk_queue_texts"] == "0.0"


def test_texts_that_may_have_several_labels_are_answered_in_every_protocol(tmp_path):
    export = with_several_labels(tmp_path / "desk")
    text = f"{headline(0, 0)} {headline(2, 0)}"
    expected = newsdesk.load(export).predict([text])
    assert expected.label_sets == (("Business", "Sports"),)
    with running(export) as server:
        client = server.client
        (result,) = client.post("/v1/classify", json={"texts": text}).json()["results"]
        assert result["predictions"] == expected.to_dicts()
        scores = {
            entry["label"]: entry["score"] for entry in client.post("/predict", json={"inputs": text}).json()
        }
        assert np.allclose([scores[name] for name in expected.label_names], expected.probabilities[0])
        assert client.post("/classify", json={"input": text}).json()["data"][0]["label"] == "Business"
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
        outputs = client.post("/v2/models/desk/infer", json={"inputs": [tensor]}).json()["outputs"]
        assert outputs[0]["data"] == ["Business;Sports"]
        logits = np.array(outputs[3]["data"])
        assert np.allclose(1 / (1 + np.exp(-logits)), expected.probabilities[0], atol=1e-6)
        item = {"uri": "urn:1", "versioncreated": "x", "headlines": [{"value": text}]}
        subjects = client.post("/v1/ninjs", json=item).json()["subjects"]
        assert [subject["name"] for subject in subjects] == ["Business", "Sports"]


def test_another_seed_is_another_model(export, tmp_path):
    other = calibrated_export(tmp_path / "other", seed=5)
    with running(export, f"second={other}") as server:
        versions = {model["version"] for model in server.client.get("/v1/models").json()["data"]}
        assert len(versions) == 2


def test_a_server_ends_with_a_sentence_where_one_of_its_models_does_not_answer(folder, monkeypatch):
    """A model that opens is tried out before anyone is told that the server is ready."""
    config = folder / "english" / "config.json"
    config.write_text(config.read_text().replace('"pad_token_id": 0', '"pad_token_id": "x"'))
    with bound("127.0.0.1", 0) as listening:
        server = new_server([str(folder)], Settings(port=0, threads=1))
        server.run([listening])
    assert server.service.failure.wrong == "english does not answer, and is not served"
    assert "pad_token_id is 'x'" in server.service.failure.found
    monkeypatch.setattr("newsdesk.serving.server.log_to_standard_error", lambda: None)
    with pytest.raises(UserError, match="english does not answer"):
        serve([str(folder)], Settings(port=0, threads=1))


def test_a_watched_folder_is_served_whatever_is_put_beside_its_models(folder, export, caplog):
    """A model that does not answer, one that is none, a pipe and a link in place of a manifest."""
    with running(folder, watch=0.05) as server, caplog.at_level("WARNING", "newsdesk.serving"):
        for name in ("mute", "pipe", "endless"):
            shutil.copytree(export, folder / f".{name}")
        (folder / ".mute" / "config.json").write_text("{")
        (folder / ".pipe" / "manifest.json").unlink()
        os.mkfifo(folder / ".pipe" / "manifest.json")
        (folder / ".endless" / "manifest.json").unlink()
        (folder / ".endless" / "manifest.json").symlink_to("/dev/zero")
        (folder / "none").mkdir()
        (folder / "none" / "manifest.json").write_text("[]")
        for name in ("mute", "pipe", "endless"):
            (folder / f".{name}").rename(folder / name)

        def refused():
            facts = [record.facts for record in caplog.records if record.msg == "model not loaded"]
            return {each["model"]: each["error"] for each in facts}

        wait_until(lambda: {"mute", "none"} <= set(refused()))
        assert labels_of(server.client, ["german", "english"], headline(0, 0)) == ["Wirtschaft", "Business"]
        assert {model.name for model in server.service.models} == {"german", "english"}
        assert all("\n" not in sentence for sentence in refused().values())

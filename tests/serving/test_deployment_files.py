"""The files of deploy/: what they start is what there is, and what reads them for a living takes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from served_exports import ServerProcess, free_port, headline, wait_until

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(DEPLOY.iterdir())
MANIFESTS = ("kubernetes.yaml", "kserve.yaml")


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def containers():
    """All containers of the manifests."""
    for name in MANIFESTS:
        for document in documents(name):
            spec = document.get("spec", {})
            spec = spec.get("template", {}).get("spec", spec)
            yield from spec.get("containers", ())


def serve_command():
    from newsdesk.cli.serve import serve

    return serve


def test_every_setting_named_is_a_flag_of_the_server():
    known = {f"NEWSDESK_SERVE_{option.name.upper()}" for option in serve_command().params}
    named = {name for file in FILES for name in re.findall(r"NEWSDESK_SERVE_[A-Z_]*[A-Z]", file.read_text())}
    assert named
    assert named <= known


def test_every_command_is_one_that_the_server_takes():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    given = [json.loads(re.search(r"^CMD (.*)$", dockerfile, re.MULTILINE)[1])]
    unit = (DEPLOY / "newsdesk@.service").read_text()
    given += [re.search(r"^ExecStart=\S+ (.*)$", unit, re.MULTILINE)[1].replace("%i", "8001").split()]
    given += [container["args"] for container in containers()]
    assert len(given) == 4
    for verb, *arguments in given:
        assert verb == "serve"
        context = serve_command().make_context("serve", [*arguments])
        assert context.params["runs"], arguments


def test_every_path_that_is_asked_is_one_that_the_server_has(served):
    asked = set(re.findall(r"path: (/[\w/]+)", "".join((DEPLOY / name).read_text() for name in MANIFESTS)))
    asked |= set(re.findall(r"http://127.0.0.1:8000(/\w+)", (DEPLOY / "Dockerfile").read_text()))
    assert asked >= {"/health", "/v2/health/ready", "/v2/health/live", "/metrics"}
    for path in asked:
        assert served.client.get(path).status_code == 200, path


def test_kubernetes_own_schemas_take_the_manifest():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    found = documents("kubernetes.yaml")
    assert {document["kind"] for document in found} >= {"Deployment", "Service"}
    for document in found:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    found[0]["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found[0], kubernetes_validate.latest_version(), strict=True)


def test_the_dockerfile_passes_its_linter_and_copies_what_there_is():
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        for source in line.split():
            assert (DEPLOY.parent / source).exists(), source
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    unit = (DEPLOY / "newsdesk@.service").read_text()
    unit = unit.replace("/opt/newsdesk/bin/newsdesk", sys.executable)
    file = tmp_path / "newsdesk@8001.service"
    for text, fault in ((unit, ""), (unit.replace("ProtectHome", "ProtectHouse"), "ProtectHouse")):
        file.write_text(text)
        command = ["systemd-analyze", "verify", "--man=no", file]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        about_it = "".join(line for line in found.stderr.splitlines() if "newsdesk@" in line)
        assert (fault in about_it) if fault else not about_it, about_it


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux switch")
def test_the_server_works_without_memory_that_is_writable_and_executable(export):
    """As the unit's MemoryDenyWriteExecute has it: prctl PR_SET_MDWE, which what is started inherits."""
    limited = (
        "import ctypes, os, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'newsdesk', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", limited, "predict", export, headline(0, 0)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 77:
        pytest.skip("this kernel does not have the switch")
    assert found.returncode == 0, found.stderr


NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_no_request_is_lost_when_one_of_two_processes_behind_nginx_is_replaced(export, tmp_path):
    processes = [ServerProcess(export), ServerProcess(export)]
    port = free_port()
    text = (DEPLOY / "nginx.conf").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    for number, process in enumerate(processes, 1):
        text = text.replace(f"127.0.0.1:800{number}", f"127.0.0.1:{process.port}")
    (tmp_path / "nginx.conf").write_text(text)
    command = [str(NGINX), "-p", str(tmp_path), "-e", "stderr", "-c", "nginx.conf", "-g", "daemon off;"]
    for process in processes:
        process.wait_until_ready()
    log = (tmp_path / "log").open("w")
    proxy = subprocess.Popen(command, stderr=log)
    url, statuses, stop = f"http://127.0.0.1:{port}", [], threading.Event()

    def wait_for_answers() -> None:
        before = len(statuses)
        wait_until(lambda: len(statuses) > before + 50)

    def ask() -> None:
        with httpx.Client(timeout=20) as client:
            while not stop.is_set():
                answer = client.post(f"{url}/v1/classify", json={"texts": headline(1, len(statuses))})
                statuses.append((answer.status_code, answer.text))

    askers = [threading.Thread(target=ask) for _ in range(8)]
    try:
        wait_until(lambda: not httpx.get(f"{url}/health", timeout=5).is_error if up(port) else False)
        for asker in askers:
            asker.start()
        for old in tuple(processes):
            wait_for_answers()
            assert old.stop() == 0
            again = ServerProcess(export, port=old.port)
            processes.append(again)
            again.wait_until_ready()
        wait_for_answers()
    finally:
        stop.set()
        for asker in askers:
            asker.join(20)
        proxy.send_signal(signal.SIGTERM)
        proxy.wait(20)
        for process in processes:
            process.process.kill()
            process.process.wait()
    assert {status for status, _ in statuses} == {200}, [each for each in statuses if each[0] != 200][:3]


def up(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=1)
    except httpx.TransportError:
        return False
    return True


def test_ray_serve_answers_in_all_protocols_from_replicas_of_a_cluster(export, tmp_path):
    pytest.importorskip("ray.serve")
    port = free_port()
    code = (
        "import sys, time, json, httpx, ray\n"
        "from ray import serve\n"
        "ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "serve.start(http_options={'host': '127.0.0.1', 'port': int(sys.argv[1])})\n"
        "import ray_serve\n"
        "serve.run(ray_serve.app)\n"
        "url = f'http://127.0.0.1:{sys.argv[1]}'\n"
        "while httpx.get(f'{url}/health').status_code != 200: time.sleep(0.1)\n"
        "own = httpx.post(f'{url}/v1/classify', json={'texts': sys.argv[2]}).json()\n"
        "tei = httpx.post(f'{url}/predict', json={'inputs': sys.argv[2]}).json()\n"
        "print(own['results'][0]['predictions'][0]['label'], tei[0]['label'], file=open(sys.argv[3], 'w'))\n"
        "serve.shutdown(); ray.shutdown()\n"
    )
    models = tmp_path / "models"
    models.mkdir()
    (models / "desk").symlink_to(export)
    environment = {
        **os.environ,
        "NEWSDESK_MODELS": str(models),
        "NEWSDESK_CORES": "1",
        "PYTHONPATH": os.pathsep.join([str(DEPLOY), os.environ.get("PYTHONPATH", "")]),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    answers = tmp_path / "answers"
    command = [sys.executable, "-c", code, str(port), headline(1, 0), str(answers)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    from newsdesk.prediction.open_model import open_model

    expected = open_model(export).classify([headline(1, 0)])[0].label
    assert answers.read_text().split() == [expected, expected]

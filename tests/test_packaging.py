"""What is handed to others: the wheel and the sdist, what they need, and the versions that were tested."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import newsdesk
from newsdesk.runs.folder import open_run
from newsdesk.runs.ready_made import ready_made

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted(path.name for path in (REPOSITORY / "src/newsdesk/recipes").glob("*.toml"))
NOT_IN_BASE = {"torch", "transformers", "peft", "scikit-learn", "scipy", "pyarrow", "onnx"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist, built the way a release is, without network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel_files(built: Path) -> set[str]:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        return set(wheel.namelist())


@pytest.fixture(scope="module")
def sdist_files(built: Path) -> set[str]:
    """Paths below the sdist's one top folder."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name = f"newsdesk-{newsdesk.__version__}.dist-info/METADATA"
        return Parser().parsestr(wheel.read(name).decode())


def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def pinned() -> dict[str, str]:
    """Version by canonical name, as constraints.txt has them."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_the_wheel_carries_recipes_types_and_licence(wheel_files):
    assert RECIPES
    assert {f"newsdesk/recipes/{name}" for name in RECIPES} <= wheel_files
    assert "newsdesk/py.typed" in wheel_files
    assert any(re.fullmatch(r"newsdesk-[^/]+\.dist-info/licenses/LICENSE", name) for name in wheel_files)


def ready_made_files() -> set[str]:
    """The files of the classifiers that come with newsdesk, as their manifests name them."""
    return {
        f"newsdesk/ready_made/{name}/{file}"
        for name, known in ready_made().items()
        for file in (*open_run(known.path).manifest.files, "manifest.json")
    }


def test_the_wheel_carries_the_ready_made_classifiers(wheel_files):
    files = ready_made_files() | {"newsdesk/ready_made/classifiers.toml"}
    assert files == {name for name in wheel_files if name.startswith("newsdesk/ready_made/")}


def test_the_wheel_carries_nothing_else(wheel_files):
    assert {name.partition("/")[0].partition("-")[0] for name in wheel_files} == {"newsdesk"}
    code = {name for name in wheel_files if name.startswith("newsdesk/")} - ready_made_files()
    assert {Path(name).suffix for name in code} == {
        *(".css", ".html", ".js", ".md", ".py", ".svg", ".toml", ".typed")
    }


def test_the_sdist_builds_the_same_wheel_and_carries_no_tests(sdist_files, wheel_files):
    needed = {f"src/{name}" for name in wheel_files if name.startswith("newsdesk/")}
    assert needed | {"pyproject.toml", "README.md", "LICENSE"} <= sdist_files
    assert not [
        name for name in sdist_files if "tests" in Path(name).parts or Path(name).name.startswith("test_")
    ]


def test_the_base_install_needs_no_torch(metadata):
    always = {canonicalize_name(need.name) for need in requirements(metadata) if need.marker is None}
    assert {"numpy", "onnxruntime", "tokenizers"} <= always
    assert always & NOT_IN_BASE == set()


def test_training_needs_are_an_extra(metadata):
    train = {
        need.name
        for need in requirements(metadata)
        if need.marker is not None and need.marker.evaluate({"extra": "train"})
    }
    assert {"torch", "transformers", "peft"} <= train


def test_every_direct_dependency_is_pinned_at_a_version_it_allows(metadata):
    pins = pinned()
    for need in requirements(metadata):
        assert pins[canonicalize_name(need.name)] in need.specifier, need


def test_pins_are_exact_sorted_and_fit_any_build_of_torch():
    text = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    names = [line.split("==")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert names == sorted(names, key=str.casefold)
    # A local version such as +cpu would refuse the builds of other indexes.
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned().values())


def test_the_command_line_is_where_the_metadata_says():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["newsdesk"].partition(":")
    __import__(module)
    assert callable(getattr(sys.modules[module], function))

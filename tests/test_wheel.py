"""The wheel of `make wheel`: its files, and its command in a fresh environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tune_hpc import load

ROOT = Path(__file__).parents[1]
PACKAGES = ("tune_hpc", "search_spaces")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel in a copy of the source."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "Makefile", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    subprocess.run(["make", "wheel", f"PYTHON={sys.executable}"], cwd=source, check=True)
    (path,) = (source / "dist").iterdir()
    return path


def test_wheel_has_every_file_of_the_packages(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    paths = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    source = {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}
    assert {name for name in files if not name.startswith("tune_hpc-")} == source
    assert any(name.endswith("licenses/LICENSE") for name in files)


def test_installed_wheel_runs_a_built_in_experiment(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], env=variables, check=True)
    # The dependencies are those of this environment; a line of a .pth file does not make its own .pth files effective.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    def run(*arguments):
        command = [environment / "bin" / "tune-hpc", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout

    assert run("--version").split()[-1] in wheel.name
    assert "exercise2.softmax" in run("list")
    run("run", "exercise1_1stpart", "--local", "--set", "steps=5", "--output-dir", "out")
    assert (tmp_path / "out" / "report.html").is_file()
    folder = next((tmp_path / "out").rglob("experiment.json")).parent
    assert set(load(folder).counts()) == {"finished"}
    code = "import tune_hpc; print(tune_hpc.__file__)"
    module = subprocess.check_output([python, "-c", code], cwd=tmp_path, env=variables, text=True)
    assert Path(module.strip()).is_relative_to(site_packages)

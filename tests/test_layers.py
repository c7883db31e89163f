"""Third-party imports: in the source of every module, and in fresh processes."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tune_hpc
from tune_hpc import load
from tune_hpc.analysis.frames import trials_frame, write_frames
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import summarise

ROOT = Path(tune_hpc.__file__).parent.parent
OURS = ("tune_hpc", "search_spaces", "scripts")

#: Packages that may import a heavy third-party package.
HEAVY = {
    "torch": ["tune_hpc.learning", "tune_hpc.scaling", "scripts.torchrun_trial"],
    "torchvision": ["tune_hpc.learning"],
    "ray": ["tune_hpc.search", "tune_hpc.scaling", "tune_hpc.jobs", "search_spaces"],
    "grpc": ["tune_hpc.search"],
    "pandas": [
        "tune_hpc.storage", "tune_hpc.analysis", "tune_hpc.report", "tune_hpc.export", "tune_hpc.scaling",
        "tune_hpc.service", "tune_hpc.search.importance",
    ],
    "matplotlib": ["tune_hpc.report.plots"],
    "tensorboardX": ["tune_hpc.export.tensorboard"],
    "mlflow": ["tune_hpc.export.mlflow"],
    "fastapi": ["tune_hpc.service"],
    "starlette": ["tune_hpc.service"],
    "uvicorn": ["tune_hpc.cli.serve", "tune_hpc.service.connection"],
    "itsdangerous": ["tune_hpc.service.auth"],
    "prometheus_client": ["tune_hpc.service.middleware"],
}  # fmt: skip
#: Modules for listing and checking spaces, and for finding data, must be cheap to import.
TORCH_FREE = [
    "tune_hpc.learning.config", "tune_hpc.learning.download", "tune_hpc.learning.fusion", "tune_hpc.learning.checkpoint"
]  # fmt: skip


def is_in(module, part):
    return module == part or module.startswith(f"{part}.")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for part in OURS for path in sorted((ROOT / part).rglob("*.py"))}


def imports(module):
    """Return a module's imports at module level and inside functions, without those for type checkers.

    Arguments of ``import_module`` count.
    """
    top, inside = set(), set()

    def walk(node, found):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{module} imports relatively"
                # An imported name may be a module.
                found.add(child.module)
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.Call) and getattr(child.func, "id", getattr(child.func, "attr", "")) in (
                "import_module", "__import__",
            ):  # fmt: skip
                found.update(argument.value for argument in child.args if isinstance(argument, ast.Constant))
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            walk(child, inside if is_function else found)

    walk(ast.parse(MODULES[module].read_text(encoding="utf-8")), top)
    return top, inside


@pytest.mark.slow
@pytest.mark.parametrize("package", HEAVY)
def test_heavy_package_is_imported_only_by_its_users(package):
    for module in MODULES:
        top, inside = imports(module)
        if any(is_in(name, package) for name in top | inside):
            assert any(is_in(module, part) for part in HEAVY[package]), module


@pytest.mark.parametrize("module", TORCH_FREE)
def test_cheap_module_imports_no_torch(module):
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [one for one in imports(name)[0] if one in MODULES]
    for name in reached:
        assert not any(is_in(one, "torch") or is_in(one, "torchvision") for one in imports(name)[0]), name


def loaded_after(code):
    """Return the heavy packages that a fresh process has loaded after running code."""
    ending = f"\nimport sys; print('LOADED', *[name for name in {list(HEAVY)} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + ending], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_package_import_loads_no_heavy_package():
    assert loaded_after("import tune_hpc; tune_hpc.TuneHpcError; dir(tune_hpc)") == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_loads_no_heavy_package(arguments):
    code = f"import tune_hpc.cli\ntry: tune_hpc.cli.main({arguments})\nexcept SystemExit as end: assert end.code == 0"
    assert loaded_after(code) == []


@pytest.fixture
def folder(tmp_path):
    """Return an experiment folder with two finished trials."""
    description = {
        "name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": ["learning_rate", "seed"],
        "space": {"learning_rate": {"choice": [0.1, 0.2]}},
    }  # fmt: skip
    folder = ExperimentFolder(tmp_path / "run")
    folder.claim("made.up")
    folder.write(description)
    history = pd.DataFrame({"step": np.arange(3), "test_loss": [3.0, 2.0, 1.0]})
    rows = [
        {"trial_id": name, "status": "finished", "learning_rate": rate, "seed": 0, **summarise(history)}
        for name, rate in (("t00000", 0.1), ("t00001", 0.2))
    ]
    histories = [history.assign(trial_id=row["trial_id"]) for row in rows]
    write_frames(folder, trials_frame(rows, description["config_keys"]), pd.concat(histories, ignore_index=True))
    return folder.path


def test_show_loads_only_pandas(folder):
    code = f"import tune_hpc.cli\nassert tune_hpc.cli.main(['show', {str(folder)!r}]) == 0"
    assert loaded_after(code) == ["pandas"]


def test_report_with_predictions_loads_neither_torch_nor_ray(folder):
    import torch

    checkpoint = folder / "checkpoints" / "t00000" / "2.checkpoint"
    checkpoint.parent.mkdir(parents=True)
    classes = np.arange(3, dtype=np.uint8)
    torch.save({"weights": torch.ones(3), "predictions": classes, "labels": classes}, checkpoint)
    assert load(folder).predictions().tolist() == [0, 1, 2]
    code = f"import tune_hpc.cli\nassert tune_hpc.cli.main(['report', {str(folder)!r}]) == 0"
    assert loaded_after(code) == ["pandas", "matplotlib"]
    assert (folder / "report.html").is_file()


def test_checkpoint_without_tensors_loads_no_torch(tmp_path):
    code = f"""
from pathlib import Path
from tune_hpc.search.trial_checkpoint import TrialCheckpoint, TrialFileWriter
record = TrialFileWriter({{}})
record.add([1, 2], {{"loss": [0.1 + 0.2, float("nan")]}})
TrialCheckpoint(Path({str(tmp_path / "file")!r}), [record], interval_s=0).save(2, lambda: {{"height": 0.5}})
again = TrialFileWriter({{}})
assert TrialCheckpoint(Path({str(tmp_path / "file")!r}), [again], interval_s=0).load() == {{"height": 0.5}}
assert again.history().equals(record.history())
"""
    assert loaded_after(code) == ["pandas"]


def test_data_download_loads_no_heavy_package():
    assert loaded_after("import tune_hpc.learning.download, tune_hpc.learning.config") == []

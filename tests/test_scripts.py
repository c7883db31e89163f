"""Each of the five scripts at a tiny size; the scaling measurement runs in the shared Ray session."""

import gc
import runpy
import sys
from pathlib import Path

import pytest

from tune_hpc import load_all

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = ["--set", "steps=3", "--set", "width=0.1", "--set", "num_evaluations=1", "--set", "num_evaluation_images=50"]
FOUR = ["--set", "optimizer=adam,ftrl", "--set", "learning_rate=0.1,0.01"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags", "num_experiments", "num_trials"),
    [
        ("exercise1_1stpart", ["--local", "--set", "steps=20"], 1, 5),
        ("exercise1_2ndpart", ["--local", "--set", "steps=20"], 1, 10),
        ("exercise2", ["--local", *TINY[:2], *TINY[4:], *FOUR], 2, 8),
        ("exercise3", ["--local", *TINY, "--set", "batch_size=4,150"], 9, 32),
        pytest.param(
            "exercise4", ["--set", "width=0.1", "--set", "workers=1,2"], 1, 2,
            marks=pytest.mark.ray,
        ),
    ],
)  # fmt: skip
def test_script_writes_frames_tables_figures_and_a_report(
    name, flags, num_experiments, num_trials, request, tmp_path, monkeypatch, capsys
):
    if "--local" not in flags:
        request.getfixturevalue("ray_session")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--output-dir", str(tmp_path / "out"), *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    gc.unfreeze()  # This process continues.
    assert ended.value.code == 0
    results = load_all(tmp_path / "out")
    assert len(results) == num_experiments
    assert sum(len(one.trials) for one in results) == num_trials
    assert all(one.counts() == {"finished": len(one.trials)} for one in results)
    for result in results:
        assert list((result.folder / "tables").glob("*.csv"))
        assert list((result.folder / "figures").glob("*.svg")), result.name
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(one.experiment["title"].partition(" (")[0] in page for one in results)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert f"report: {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out

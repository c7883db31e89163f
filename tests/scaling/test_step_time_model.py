"""The model of a step, held against machines whose law is known."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.errors import UnknownNameError
from tune_hpc.scaling.step_time_model import HERE, LINKS, Link, StepModel, fit_link, predictions, width_curves

#: A machine that needs so long for a step, a sample of width 1, and to meet and send.
FIXED_S, SAMPLE_S, LATENCY_S, BYTES_PER_S, WAY_S = 0.004, 0.001, 0.0005, 1e9, 0.002
BATCH = 120
WIDTHS = (0.5, 1.0, 2.0)
NUM_BYTES = 8_000_000


def compute_s(share, width):
    return FIXED_S * width**2 + SAMPLE_S * width**2 * BATCH / share


def ring_s(workers, num_bytes):
    return 2 * (workers - 1) * LATENCY_S + 2 * (workers - 1) / workers * num_bytes / BYTES_PER_S


@pytest.fixture
def probes():
    rows = []
    # The middle one of three repeats is the truth.
    for repeat, off in enumerate((0.9, 1.0, 1.3)):
        own = {"repeat": repeat, "batch_size": BATCH}
        for width in WIDTHS:
            num_bytes = NUM_BYTES * width**2
            rows += [
                {**own, "probe": "compute", "width": width, "share": share, "bytes": num_bytes,
                 "seconds": off * compute_s(share, width)}
                for share in (1, 2, 4, 16, 64)
            ]  # fmt: skip
            rows.append({**own, "probe": "way", "width": width, "seconds": off * WAY_S * width})
        for workers in (2, 4):
            rows.append({**own, "probe": "crowd", "workers": workers, "alone_s": 1.0, "seconds": off * workers / 2})
            rows += [
                {**own, "probe": "all_reduce", "workers": workers, "bytes": size,
                 "seconds": off * ring_s(workers, size)}
                for size in (1 << 10, 1 << 16, 1 << 20, NUM_BYTES, 1 << 24)
            ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("width", [*WIDTHS, 0.7, 1.4])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_step_is_its_parts(probes, workers, width):
    step = StepModel(probes).step(workers, width, BATCH)
    crowd = {1: 1, 2: 1, 4: 2}[workers]
    expected = crowd * compute_s(workers, width)
    assert step["compute_s"] == pytest.approx(expected, rel=1e-6)
    if workers > 1:
        extra = crowd * np.interp(width, WIDTHS, [WAY_S * one for one in WIDTHS])
        extra += ring_s(workers, NUM_BYTES * width**2)
        assert step["communicate_s"] == pytest.approx(extra, rel=1e-6)
        expected += extra
    assert step["step_s"] == pytest.approx(expected, rel=1e-6)
    assert step["speedup"] == pytest.approx(compute_s(1, width) / expected, rel=1e-6)
    assert step["efficiency"] == pytest.approx(step["speedup"] / workers)


def test_own_batches_are_computed_whole_and_count_together(probes):
    step = StepModel(probes).step(2, 1.0, BATCH, mode="weak")
    assert step["compute_s"] == pytest.approx(compute_s(1, 1.0))
    assert step["samples_per_s"] == pytest.approx(2 * BATCH / step["step_s"])
    assert step["speedup"] == pytest.approx(2 * compute_s(1, 1.0) / step["step_s"])


def test_on_another_link_nobody_crowds_and_the_bytes_go_round(probes):
    link = Link(1e-5, 1e10, "made up")
    step = StepModel(probes).step(8, 1.0, BATCH, link=link)
    assert step["compute_s"] == pytest.approx(compute_s(8, 1.0))
    assert step["communicate_s"] == pytest.approx(WAY_S + 14e-5 + 14 / 8 * NUM_BYTES / 1e10)


def test_the_link_here_is_found_again(probes):
    link = StepModel(probes).links[f"{HERE}'s link"]
    assert link.latency_s == pytest.approx(LATENCY_S)
    assert link.bytes_per_s == pytest.approx(BYTES_PER_S)
    none = fit_link(2, pd.Series({1000: 1e-4, 1_000_000: 1e-4}))
    assert none.bytes_per_s > 1e12


def test_the_width_that_is_wide_enough_is_found_or_the_best_is_told(probes):
    model = StepModel(probes)
    slow, fast = Link(2e-3, 1e12, "slow to meet"), Link(0.0, 1e6, "narrow")
    width, best, where = model.min_width(2, BATCH, slow, aim=0.8)
    assert model.step(2, width, BATCH, link=slow)["efficiency"] == pytest.approx(0.8, abs=0.01)
    assert WIDTHS[0] < width < WIDTHS[-1]
    assert best > 0.8
    assert where == pytest.approx(WIDTHS[-1])
    nowhere, best, _ = model.min_width(2, BATCH, fast)
    assert nowhere is None
    assert best < 0.8


def test_curves_over_the_widths_are_the_model_s(probes):
    rows = pd.DataFrame(width_curves(probes, [2, 4, 8], BATCH))
    assert set(rows.loc[rows["link"] == HERE, "workers"]) == {2, 4}
    assert set(rows.loc[rows["link"] == "NVLink 4", "workers"]) == {2, 4, 8}
    for row in rows.to_dict("records"):
        link = None if row["link"] == HERE else StepModel(probes).links[row["link"]]
        said = StepModel(probes).step(row["workers"], row["width"], BATCH, link=link)
        assert row["efficiency"] == pytest.approx(said["efficiency"])
    assert width_curves(probes[probes["width"].isna() | (probes["width"] == 1)], [2], BATCH) == []


def test_predictions_are_of_what_was_measured_and_of_more_on_every_link(probes):
    cases = [{"workers": number, "width": 1.0, "batch_size": BATCH, "mode": "strong"} for number in (1, 2, 4)]
    rows = pd.DataFrame(predictions(probes, cases))
    here = rows[rows["link"] == HERE]
    assert list(here["workers"]) == [1, 2, 4]
    assert set(rows["link"]) == {HERE, f"{HERE}'s link", *LINKS}
    assert set(rows.loc[rows["link"] == "NVLink 4", "workers"]) == {1, 2, 4, 8, 16, 32, 64}
    assert (rows[rows["workers"] == 1]["speedup"] == 1).all()
    with pytest.raises(UnknownNameError, match="no link is called 'string'; known: this machine's link, NVLink 4"):
        StepModel(probes).table([2], [1.0], BATCH, links=["string"])


def test_one_worker_alone_needs_nothing_of_several():
    alone = pd.DataFrame(
        [{"probe": "compute", "width": 1.0, "batch_size": 50, "share": 1, "bytes": 40, "seconds": 0.5}]
    )
    model = StepModel(alone)
    assert model.step(1, 1.0, 50)["step_s"] == 0.5
    assert set(model.links) == set(LINKS)

"""The step-time model on synthetic probes with a known law."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.scaling.plan import make_plan
from tune_hpc.scaling.step_time_model import LINKS, MEASURED_LINK, Link, StepModel, fit_link, predictions

#: Seconds of a step, of a sample at width 1, of a message and of DDP, and the bandwidth of the synthetic machine.
FIXED_S, SAMPLE_S, LATENCY_S, BYTES_PER_S, DDP_S = 0.004, 0.001, 0.0005, 1e9, 0.002
BATCH = 120
WIDTHS = (0.5, 1.0, 2.0)
NUM_BYTES = 8_000_000


def compute_s(share, width):
    return FIXED_S * width**2 + SAMPLE_S * width**2 * BATCH / share


def ring_s(workers, num_bytes):
    return 2 * (workers - 1) * LATENCY_S + 2 * (workers - 1) / workers * num_bytes / BYTES_PER_S


def contention(workers, width):
    return 1 + (workers / 2 - 1) * width if workers > 1 else 1


@pytest.fixture
def probes():
    rows = []
    # The median of three repeats is the true value.
    for repeat, off in enumerate((0.9, 1.0, 1.3)):
        columns = {"repeat": repeat, "batch_size": BATCH}
        for width in WIDTHS:
            num_bytes = NUM_BYTES * width**2
            rows += [
                {**columns, "probe": "compute", "width": width, "share": share, "bytes": num_bytes,
                 "seconds": off * compute_s(share, width)}
                for share in (1, 2, 4, 16, 64)
            ]  # fmt: skip
            rows.append({**columns, "probe": "ddp_overhead", "width": width, "seconds": off * DDP_S * width})
        for workers in (2, 4):
            rows += [
                {**columns, "probe": "contention", "workers": workers, "width": width, "alone_s": 1.0,
                 "seconds": off * contention(workers, width)}
                for width in WIDTHS
            ]  # fmt: skip
            rows += [
                {**columns, "probe": "all_reduce", "workers": workers, "bytes": size,
                 "seconds": off * ring_s(workers, size)}
                for size in (1 << 10, 1 << 16, 1 << 20, NUM_BYTES, 1 << 24)
            ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("width", [*WIDTHS, 0.7, 1.4])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_step_is_the_sum_of_its_parts(probes, workers, width):
    step = StepModel(probes).step(workers, width, BATCH)
    slow_down = contention(workers, width)
    expected = slow_down * compute_s(workers, width)
    assert step["compute_s"] == pytest.approx(expected, rel=1e-6)
    if workers > 1:
        extra = slow_down * np.interp(width, WIDTHS, [DDP_S * one for one in WIDTHS])
        extra += ring_s(workers, NUM_BYTES * width**2)
        assert step["communicate_s"] == pytest.approx(extra, rel=1e-6)
        expected += extra
    assert step["step_s"] == pytest.approx(expected, rel=1e-6)
    assert step["speedup"] == pytest.approx(compute_s(1, width) / expected, rel=1e-6)
    assert step["efficiency"] == pytest.approx(step["speedup"] / workers)


def test_weak_scaling_computes_whole_batches_and_adds_them_up(probes):
    step = StepModel(probes).step(2, 1.0, BATCH, mode="weak")
    assert step["compute_s"] == pytest.approx(compute_s(1, 1.0))
    assert step["samples_per_s"] == pytest.approx(2 * BATCH / step["step_s"])
    assert step["speedup"] == pytest.approx(2 * compute_s(1, 1.0) / step["step_s"])


def test_other_link_has_no_contention_and_a_ring_all_reduce(probes):
    link = Link(1e-5, 1e10, "made up")
    step = StepModel(probes).step(8, 1.0, BATCH, link=link)
    assert step["compute_s"] == pytest.approx(compute_s(8, 1.0))
    assert step["communicate_s"] == pytest.approx(DDP_S + 14e-5 + 14 / 8 * NUM_BYTES / 1e10)


def test_local_link_is_recovered_from_the_probes(probes):
    link = StepModel(probes).links[f"{MEASURED_LINK}'s link"]
    assert link.latency_s == pytest.approx(LATENCY_S)
    assert link.bytes_per_s == pytest.approx(BYTES_PER_S)
    free = fit_link(2, pd.Series({1000: 1e-4, 1_000_000: 1e-4}))
    assert free.bytes_per_s > 1e12


def test_min_width_reaches_the_target_or_is_none_with_the_best(probes):
    model = StepModel(probes)
    slow, fast = Link(2e-3, 1e12, "high latency"), Link(0.0, 1e6, "narrow")
    width, best, best_width = model.min_width(2, BATCH, slow, target=0.8)
    assert model.step(2, width, BATCH, link=slow)["efficiency"] == pytest.approx(0.8, abs=0.01)
    assert WIDTHS[0] < width < WIDTHS[-1]
    assert best > 0.8
    assert best_width == pytest.approx(WIDTHS[-1])
    unreached, best, _ = model.min_width(2, BATCH, fast)
    assert unreached is None
    assert best < 0.8


def plan(*workers, depths=(0,)):
    config = {"model": "cnn", "batch_size": BATCH, "steps": 10}
    configs = [config | {"workers": number, "depth": depth} for depth in depths for number in workers]
    return make_plan(configs, {"CPU": 4})


@pytest.mark.slow
def test_width_curves_agree_with_the_model(probes):
    probes = probes[probes["workers"] != 4]
    rows = pd.DataFrame(predictions(plan(1, 2), probes)["width_curves"])
    assert set(rows.loc[rows["link"] == MEASURED_LINK, "workers"]) == {2}
    assert set(rows.loc[rows["link"] == "25 Gbit/s", "workers"]) == {2, 4}
    for row in rows.to_dict("records"):
        link = None if row["link"] == MEASURED_LINK else StepModel(probes).links[row["link"]]
        step = StepModel(probes).step(row["workers"], row["width"], BATCH, link=link)
        assert row["efficiency"] == pytest.approx(step["efficiency"])
    single_width = predictions(plan(1, 2), probes[probes["width"].isna() | (probes["width"] == 1)])
    assert single_width["width_curves"] == single_width["widths"] == []


@pytest.mark.slow
def test_predictions_cover_measured_cases_and_every_link(probes):
    rows = pd.DataFrame(predictions(plan(1, 2, 4), probes)["predictions"])
    local = rows[rows["link"] == MEASURED_LINK]
    assert list(local["workers"]) == [1, 2, 4]
    assert set(rows["link"]) == {MEASURED_LINK, f"{MEASURED_LINK}'s link", "200 Gbit/s", "25 Gbit/s"}
    assert set(rows.loc[rows["link"] == "25 Gbit/s", "workers"]) == {1, 2, 4, 8}
    assert (rows[rows["workers"] == 1]["speedup"] == 1).all()


def test_probes_of_one_worker_suffice_for_one_worker():
    probes = pd.DataFrame(
        [{"probe": "compute", "width": 1.0, "batch_size": 50, "share": 1, "bytes": 40, "seconds": 0.5}]
    )
    model = StepModel(probes)
    assert model.step(1, 1.0, 50)["step_s"] == 0.5
    assert set(model.links) == {"200 Gbit/s", "25 Gbit/s"}
    # Links between GPUs need times of a GPU.
    assert set(StepModel(probes, use_gpu=True).links) == set(LINKS)


@pytest.mark.slow
def test_networks_with_added_convolutions_are_not_predicted(probes):
    assert predictions(plan(1, 2, depths=(0, 2)), probes) == predictions(plan(1, 2), probes)
    nothing = {"predictions": [], "widths": [], "width_curves": []}
    assert predictions(plan(1, 2, depths=(1, 2)), pd.DataFrame()) == nothing


def test_extrapolation_stops_at_four_times_the_measured_workers(probes):
    rows = pd.DataFrame(predictions(plan(1), probes)["predictions"])
    assert set(rows.loc[rows["link"] == "25 Gbit/s", "workers"]) == {1, 2, 4}

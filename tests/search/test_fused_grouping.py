import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.trainables import parabola
from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.learning.config import complete
from tune_hpc.learning.fusion import CPU_FUSED_WIDTH, CPU_MEMBERS, GPU_MEMBERS, check_alike
from tune_hpc.search.experiment import TRAIN
from tune_hpc.search.fused_trials import (
    check_fuse,
    interrupted_bundles,
    log_unfused_trials,
    plan_bundles,
    write_bundles,
)
from tune_hpc.storage.experiment_folder import ExperimentFolder

OURS = {"e": TRAIN, "other": TRAIN, "own": parabola}


def make(configs, experiment="e"):
    whole = complete if OURS[experiment] == TRAIN else dict
    return [
        {"experiment": experiment, "trial_id": f"t{number:05d}", "config": whole(config)}
        for number, config in enumerate(configs)
    ]


def plan(samples, fuse="auto", num_slots=2, on_gpu=False):
    return plan_bundles(samples, OURS, fuse, num_slots, on_gpu)


def sizes(bundles):
    return [len(bundle["members"]) for bundle in bundles]


RATES = [{"learning_rate": 0.001 * (number + 1)} for number in range(72)]


class TestRequests:
    @pytest.mark.parametrize(
        ("given", "taken"), [("auto", "auto"), ("off", "off"), (1, 1), (16, 16), ("8", 8), ("1", 1)]
    )
    def test_words_and_numbers_are_taken(self, given, taken):
        assert check_fuse(given) == taken

    @pytest.mark.parametrize("given", ["on", "", "0", 0, -3, "-3", 1.5, "1.5", True, None])
    def test_all_else_is_refused(self, given):
        with pytest.raises(InvalidExperimentError, match=r"fuse must be auto, off, or the most trials .*; got"):
            check_fuse(given)


class TestSizes:
    def test_small_models_are_spread_over_all_slots(self):
        assert sizes(plan(make(RATES), num_slots=2)) == [36, 36]
        assert sizes(plan(make(RATES), num_slots=5)) == [14, 14, 15, 14, 15]
        assert sizes(plan(make(RATES), num_slots=100)) == [1] * 72

    def test_no_bundle_is_larger_than_what_pays(self):
        assert sizes(plan(make(RATES), num_slots=1)) == [72]
        assert sizes(plan(make(RATES * 3), num_slots=1)) == [108, 108]
        assert CPU_MEMBERS["softmax"] == 128

    def test_a_large_network_runs_alone_on_a_cpu_and_fused_on_a_gpu(self):
        network = make([{"model": "cnn", **rate} for rate in RATES])
        assert sizes(plan(network)) == [1] * 72
        assert sizes(plan(network, num_slots=1, on_gpu=True)) == [GPU_MEMBERS["cnn"]]

    def test_a_narrow_network_is_fused_on_a_cpu_too(self):
        narrow, wide = (
            make([{"model": "cnn", "width": width, **rate} for rate in RATES[:16]])
            for width in (CPU_FUSED_WIDTH, 2 * CPU_FUSED_WIDTH)
        )
        assert sizes(plan(narrow)) == [8, 8]
        assert sizes(plan(wide)) == [1] * 16

    def test_a_number_is_a_bound_whatever_would_pay(self):
        assert sizes(plan(make(RATES[:10]), fuse=3)) == [2, 3, 2, 3]
        assert sizes(plan(make([{"model": "cnn", **rate} for rate in RATES[:10]]), fuse=5)) == [5, 5]
        assert sizes(plan(make(RATES[:10]), fuse=1)) == [1] * 10

    def test_off_leaves_every_trial_alone_under_its_own_name(self):
        bundles = plan(make(RATES), fuse="off")
        assert [bundle["bundle_id"] for bundle in bundles] == [bundle["members"][0]["trial_id"] for bundle in bundles]
        assert sizes(bundles) == [1] * 72

    def test_experiments_share_the_slots(self):
        both = make(RATES[:5]) + make(RATES[:10], "other")
        assert sizes(plan(both, num_slots=2)) == [5, 5, 5]


class TestMembers:
    def test_what_a_program_shares_separates(self):
        by_size = make([{"batch_size": size, **rate} for size in (50, 100) for rate in RATES[:4]])
        for bundle in plan(by_size):
            assert len({member["config"]["batch_size"] for member in bundle["members"]}) == 1

    def test_a_user_s_own_function_is_never_fused(self):
        assert sizes(plan(make(RATES[:4], "own"), fuse=4)) == [1] * 4

    def test_members_of_one_seed_come_together(self):
        seeded = make([{"seed": seed, **rate} for rate in RATES[:6] for seed in (0, 1)])
        for bundle in plan(seeded, num_slots=2):
            assert len({member["config"]["seed"] for member in bundle["members"]}) == 1

    def test_experiments_stay_apart(self):
        for bundle in plan(make(RATES[:4]) + make(RATES[:4], "other"), num_slots=1):
            assert len({member["experiment"] for member in bundle["members"]}) == 1

    @given(
        st.lists(
            st.fixed_dictionaries(
                {
                    "batch_size": st.sampled_from([10, 20]),
                    "seed": st.integers(0, 3),
                    "optimizer": st.sampled_from(["adam", "ftrl"]),
                    "batching": st.sampled_from(["shuffled", "sequential"]),
                }
            ),
            min_size=1,
            max_size=40,
        ),
        st.sampled_from(["auto", "off", 1, 2, 7]),
        st.integers(1, 9),
        st.booleans(),
    )
    def test_every_trial_is_in_one_bundle_with_none_but_its_like(self, configs, fuse, num_slots, on_gpu):
        samples = make(configs)
        bundles = plan(samples, fuse, num_slots, on_gpu)
        assert Counter(member["trial_id"] for bundle in bundles for member in bundle["members"]) == Counter(
            sample["trial_id"] for sample in samples
        )
        assert len({bundle["bundle_id"] for bundle in bundles}) == len(bundles)
        assert len(bundles) >= min(num_slots, len(samples))
        firsts = [bundle["members"][0]["trial_id"] for bundle in bundles]
        assert firsts == sorted(firsts)
        for bundle in bundles:
            check_alike([member["config"] for member in bundle["members"]])
            if isinstance(fuse, int):
                assert len(bundle["members"]) <= fuse


def test_what_runs_alone_is_said_once_for_each_experiment(caplog):
    with caplog.at_level(logging.INFO, logger="tune_hpc"):
        log_unfused_trials(OURS, "auto")
        log_unfused_trials(OURS, "off")
    assert [record.getMessage() for record in caplog.records] == [
        "own: each trial runs by itself, for only tune_hpc's own models train as one program"
    ]


class TestInterrupted:
    SAMPLES = tuple({"experiment": "e", "trial_id": f"t{number:05d}", "config": {}} for number in range(5))

    @pytest.fixture
    def home(self, tmp_path):
        home = ExperimentFolder(tmp_path)
        home.parts.mkdir()
        bundles = [
            {"bundle_id": "b00000", "members": self.SAMPLES[:2]},
            {"bundle_id": "b00001", "members": self.SAMPLES[2:4]},
            {"bundle_id": "t00004", "members": self.SAMPLES[4:]},
        ]
        write_bundles(home, bundles)
        return home

    def test_a_program_with_a_checkpoint_is_made_of_the_same_trials_again(self, home):
        home.checkpoint("b00001").touch()
        found, first = interrupted_bundles(home, self.SAMPLES)
        assert found == [{"bundle_id": "b00001", "members": [*self.SAMPLES[2:4]]}]
        assert first == 2

    def test_one_of_which_a_trial_has_ended_is_not_taken_up_again(self, home):
        home.checkpoint("b00001").touch()
        assert interrupted_bundles(home, [*self.SAMPLES[:2], self.SAMPLES[3]]) == ([], 2)
        assert not home.checkpoint("b00001").exists()

    def test_notes_of_several_runs_add_up(self, home):
        write_bundles(home, [{"bundle_id": "b00002", "members": self.SAMPLES[:2]}])
        home.checkpoint("b00000").touch()
        found, first = interrupted_bundles(home, self.SAMPLES)
        assert [one["bundle_id"] for one in found] == ["b00000"]
        assert first == 3

    def test_a_folder_without_notes_has_no_programs(self, tmp_path):
        assert interrupted_bundles(ExperimentFolder(tmp_path), self.SAMPLES) == ([], 0)

    def test_damaged_notes_are_an_error(self, home):
        home.bundles.write_text("{", encoding="utf-8")
        with pytest.raises(FolderError, match="remove it, and programs that were interrupted begin afresh"):
            interrupted_bundles(home, self.SAMPLES)

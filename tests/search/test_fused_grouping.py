"""Groups of trials that train as one program: which trials, how many, and again after an interrupt."""

import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.trainables import parabola
from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.learning.config import complete
from tune_hpc.learning.fusion import CPU_FUSED_WIDTH, CPU_MEMBERS, GPU_MEMBERS, check_fusible
from tune_hpc.search.experiment import TRAIN
from tune_hpc.search.fused_trials import (
    check_fuse,
    interrupted_groups,
    log_unfused_trials,
    plan_groups,
    write_groups,
)
from tune_hpc.search.trial_spec import TrialGroup, TrialSpec
from tune_hpc.storage.checksum import load_json
from tune_hpc.storage.experiment_folder import ExperimentFolder

TRAINABLES = {"e": TRAIN, "other": TRAIN, "user": parabola}


def make(configs, experiment="e"):
    finish = complete if TRAINABLES[experiment] == TRAIN else dict
    return [TrialSpec(experiment, f"t{number:05d}", finish(config)) for number, config in enumerate(configs)]


def plan(trials, fuse="auto", num_slots=2, on_gpu=False):
    return plan_groups(trials, TRAINABLES, fuse, num_slots, on_gpu)


def sizes(groups):
    return [len(group.trials) for group in groups]


RATES = [{"learning_rate": 0.001 * (number + 1)} for number in range(72)]


@pytest.mark.parametrize(
    ("given", "expected"), [("auto", "auto"), ("off", "off"), (1, 1), (16, 16), ("8", 8), ("1", 1)]
)
def test_fuse_is_a_word_or_a_number(given, expected):
    assert check_fuse(given) == expected


@pytest.mark.parametrize("given", ["on", "", "0", 0, -3, "-3", 1.5, "1.5", True, None])
def test_other_values_of_fuse_are_rejected(given):
    with pytest.raises(InvalidExperimentError, match=r"fuse must be auto, off, or the maximum number .*; got"):
        check_fuse(given)


class TestSizes:
    def test_small_models_fill_all_slots(self):
        assert sizes(plan(make(RATES), num_slots=2)) == [36, 36]
        assert sizes(plan(make(RATES), num_slots=5)) == [14, 14, 15, 14, 15]
        assert sizes(plan(make(RATES), num_slots=100)) == [1] * 72

    def test_group_size_is_limited_to_the_profitable(self):
        assert sizes(plan(make(RATES), num_slots=1)) == [72]
        assert sizes(plan(make(RATES * 3), num_slots=1)) == [108, 108]
        assert CPU_MEMBERS["softmax"] == 128

    def test_large_network_is_fused_on_a_gpu_only(self):
        network = make([{"model": "cnn", **rate} for rate in RATES])
        assert sizes(plan(network)) == [1] * 72
        assert sizes(plan(network, num_slots=1, on_gpu=True)) == [GPU_MEMBERS["cnn"]]

    def test_narrow_network_is_fused_on_a_cpu(self):
        narrow, wide = (
            make([{"model": "cnn", "width": width, **rate} for rate in RATES[:16]])
            for width in (CPU_FUSED_WIDTH, 2 * CPU_FUSED_WIDTH)
        )
        assert sizes(plan(narrow)) == [8, 8]
        assert sizes(plan(wide)) == [1] * 16

    def test_number_is_a_limit(self):
        assert sizes(plan(make(RATES[:10]), fuse=3)) == [2, 3, 2, 3]
        assert sizes(plan(make([{"model": "cnn", **rate} for rate in RATES[:10]]), fuse=5)) == [5, 5]
        assert sizes(plan(make(RATES[:10]), fuse=1)) == [1] * 10

    def test_off_leaves_every_trial_single(self):
        groups = plan(make(RATES), fuse="off")
        assert [group.group_id for group in groups] == [group.trials[0].trial_id for group in groups]
        assert sizes(groups) == [1] * 72

    def test_experiments_share_the_slots(self):
        both = make(RATES[:5]) + make(RATES[:10], "other")
        assert sizes(plan(both, num_slots=2)) == [5, 5, 5]


class TestMembers:
    def test_batch_sizes_are_not_mixed(self):
        by_size = make([{"batch_size": size, **rate} for size in (50, 100) for rate in RATES[:4]])
        for group in plan(by_size):
            assert len({trial.config["batch_size"] for trial in group.trials}) == 1

    def test_user_function_is_not_fused(self):
        assert sizes(plan(make(RATES[:4], "user"), fuse=4)) == [1] * 4

    def test_trials_with_one_seed_are_together(self):
        seeded = make([{"seed": seed, **rate} for rate in RATES[:6] for seed in (0, 1)])
        for group in plan(seeded, num_slots=2):
            assert len({trial.config["seed"] for trial in group.trials}) == 1

    def test_experiments_are_not_mixed(self):
        for group in plan(make(RATES[:4]) + make(RATES[:4], "other"), num_slots=1):
            assert len({trial.experiment for trial in group.trials}) == 1

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
    def test_groups_are_a_partition_of_similar_trials(self, configs, fuse, num_slots, on_gpu):
        trials = make(configs)
        groups = plan(trials, fuse, num_slots, on_gpu)
        assert Counter(trial.trial_id for group in groups for trial in group.trials) == Counter(
            trial.trial_id for trial in trials
        )
        assert len({group.group_id for group in groups}) == len(groups)
        assert len(groups) >= min(num_slots, len(trials))
        firsts = [group.trials[0].trial_id for group in groups]
        assert firsts == sorted(firsts)
        for group in groups:
            check_fusible([trial.config for trial in group.trials])
            if isinstance(fuse, int):
                assert len(group.trials) <= fuse


def test_unfused_experiments_are_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="tune_hpc"):
        log_unfused_trials(TRAINABLES, ["other"], 4)
        log_unfused_trials({"user": TRAINABLES["user"]}, ["user"], "auto")
        log_unfused_trials(TRAINABLES, ["other"], "off")
    assert [record.getMessage() for record in caplog.records] == [
        "other: trials run separately, because the scheduler decides on each of them",
        "user: trials run separately, because only the built-in trainable trains several trials as one program",
    ]


class TestInterrupted:
    TRIALS = tuple(TrialSpec("e", f"t{number:05d}", {}) for number in range(5))
    GROUPS = (
        TrialGroup("b00000", TRIALS[:2]),
        TrialGroup("b00001", TRIALS[2:4]),
        TrialGroup.single(TRIALS[4]),
    )

    @pytest.fixture
    def folder(self, tmp_path):
        folder = ExperimentFolder(tmp_path)
        folder.trials.mkdir()
        write_groups(folder, self.GROUPS)
        return folder

    @pytest.mark.parametrize("name", ["groups.json", "bundles.json"])
    def test_group_with_a_checkpoint_has_the_same_trials_again(self, folder, name):
        folder.groups.rename(folder.groups.with_name(name))
        folder.checkpoint("b00001").touch()
        assert interrupted_groups(folder, self.TRIALS) == ([self.GROUPS[1]], 2)

    def test_group_with_an_ended_trial_is_dissolved(self, folder):
        folder.checkpoint("b00001").touch()
        assert interrupted_groups(folder, [*self.TRIALS[:2], self.TRIALS[3]]) == ([], 2)
        assert not folder.checkpoint("b00001").exists()

    def test_groups_of_several_runs_are_merged(self, folder):
        folder.groups.rename(folder.groups.with_name("bundles.json"))
        write_groups(folder, [TrialGroup("b00002", self.TRIALS[:2])])
        folder.checkpoint("b00000").touch()
        assert interrupted_groups(folder, self.TRIALS) == ([self.GROUPS[0]], 3)
        assert load_json(folder.groups.read_bytes()) == {
            "b00000": ["t00000", "t00001"], "b00001": ["t00002", "t00003"], "b00002": ["t00000", "t00001"],
        }  # fmt: skip

    def test_folder_without_the_file_has_no_groups(self, tmp_path):
        assert interrupted_groups(ExperimentFolder(tmp_path), self.TRIALS) == ([], 0)

    def test_damaged_file_is_an_error(self, folder):
        folder.groups.write_text("{", encoding="utf-8")
        with pytest.raises(FolderError, match="remove it, and interrupted programs restart from step 0"):
            interrupted_groups(folder, self.TRIALS)

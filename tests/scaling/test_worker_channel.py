"""What workers say to their trial, and hear from it."""

import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
import torch

from tune_hpc.scaling.worker_channel import CONTINUE, SEND_STATE, TrialServer, WorkerClient, WorkersLost


class MemoryCheckpoint:
    """A checkpoint that wants every second state."""

    def __init__(self, state=None):
        self.state = state
        self.offered = []

    def load(self):
        return self.state

    def save(self, step, make_state):
        self.offered.append(step)
        if step % 2 == 0:
            self.state = make_state()


@pytest.fixture
def station():
    made = TrialServer("127.0.0.1")
    yield made
    made.close()


def served(station, work, report=lambda step, metrics: None, checkpoint=None):
    """Serve a worker that stands in another thread; return what came of both."""
    said = []

    def call():
        caller = WorkerClient(station.address, station.key)
        try:
            said.append(work(caller))
        finally:
            caller.close()

    thread = threading.Thread(target=call)
    thread.start()
    try:
        return station.serve(report, checkpoint), said
    finally:
        thread.join(10)
        assert not thread.is_alive()


def test_reports_arrive_before_the_worker_goes_on(station):
    heard = []

    def work(caller):
        answers = [caller.report(step, {"valid_loss": 1 / step}) for step in (1, 2)]
        seen = list(heard)
        caller.end({"status": "finished"})
        return answers, seen

    row, said = served(station, work, lambda step, metrics: heard.append((step, metrics["valid_loss"])))
    assert row == {"status": "finished"}
    assert said == [([True, True], [(1, 1.0), (2, 0.5)])]


def test_a_state_is_made_where_it_is_wanted_and_comes_back(station):
    kept = MemoryCheckpoint({"step": 7})

    def work(caller):
        found = caller.load()
        answers = [caller.is_wanted(1), caller.is_wanted(2)]
        gone_on = caller.give({"step": 2, "weights": torch.arange(1000)})
        caller.end({})
        return found, answers, gone_on

    _, said = served(station, work, checkpoint=kept)
    assert said == [({"step": 7}, [CONTINUE, SEND_STATE], True)]
    assert kept.offered == [1, 2]
    assert torch.equal(kept.state["weights"], torch.arange(1000))


def test_without_a_checkpoint_there_is_no_state_and_none_is_wanted(station):
    def work(caller):
        found = caller.load(), caller.is_wanted(1)
        caller.end({})
        return found

    assert served(station, work)[1] == [(None, CONTINUE)]


@pytest.mark.parametrize("end", [ValueError("diverged"), SystemExit(0)])
def test_whatever_ends_the_trial_stops_the_workers_and_goes_on_up(station, end):
    said = []

    def report(step, metrics):
        raise end

    with pytest.raises(type(end)):
        served(station, lambda caller: said.append(caller.report(1, {})), report)
    assert said == [False]


def test_a_state_that_is_the_last_one_is_kept_and_the_workers_stop(station):
    class Last(MemoryCheckpoint):
        def save(self, step, make_state):
            self.state = make_state()
            raise KeyError("the search ends")

    kept, said = Last(), []
    with pytest.raises(KeyError):
        served(station, lambda caller: said.extend((caller.is_wanted(3), caller.give({"step": 3}))), checkpoint=kept)
    assert said == [SEND_STATE, False]
    assert kept.state == {"step": 3}


def test_a_worker_that_is_lost_is_noticed(station):
    with pytest.raises(WorkersLost):
        served(station, lambda caller: caller.report(1, {}))


def test_workers_that_never_came_are_noticed(station):
    threading.Timer(0.1, station.hang_up).start()
    with pytest.raises(WorkersLost):
        station.serve(lambda step, metrics: None, None)


def test_a_stranger_is_not_listened_to(station):
    def call():
        with pytest.raises((AuthenticationError, EOFError, OSError)):
            Client(station.address, authkey=b"guessed")
        caller = WorkerClient(station.address, station.key)
        caller.end({"status": "finished"})

    thread = threading.Thread(target=call)
    thread.start()
    assert station.serve(lambda step, metrics: None, None) == {"status": "finished"}
    thread.join(10)

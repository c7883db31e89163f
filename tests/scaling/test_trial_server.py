"""Messages between a trial and its worker."""

import threading
from contextlib import closing
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
import torch

from tune_hpc.scaling.communication import DistributedCommunicator
from tune_hpc.scaling.distributed_trial import DistributedReporter, TrialServer, TrialStopped, WorkersLost


class MemoryCheckpoint:
    """A checkpoint that requests the states of even steps, or raises an error after a state."""

    def __init__(self, state=None, error=None):
        self.state, self.error = state, error
        self.offered = []

    def load(self):
        return self.state

    def save(self, step, make_state):
        self.offered.append(step)
        if step % 2 == 0 or self.error:
            self.state = make_state()
        if self.error:
            raise self.error


@pytest.fixture
def server():
    server = TrialServer("127.0.0.1")
    yield server
    server.close()


def serve(server, work, report=lambda step, metrics: None, checkpoint=None, results=None):
    """Serve a worker in another thread; return the row and the worker's results."""
    results = [] if results is None else results

    def call():
        with closing(DistributedReporter(DistributedCommunicator(), server.address, server.key)) as reporter:
            try:
                results.append(work(reporter))
            except TrialStopped:
                results.append("stopped")

    thread = threading.Thread(target=call)
    thread.start()
    try:
        return server.serve(report, checkpoint), results
    finally:
        thread.join(10)
        assert not thread.is_alive()


def test_report_has_arrived_when_the_call_returns(server):
    reports = []

    def work(reporter):
        for step in (1, 2):
            reporter.report(step, {"valid_loss": 1 / step})
        arrived = list(reports)
        reporter.end({"status": "finished"})
        return arrived

    row, results = serve(server, work, lambda step, metrics: reports.append((step, metrics["valid_loss"])))
    assert row == {"status": "finished"}
    assert results == [[(1, 1.0), (2, 0.5)]]


def test_requested_state_is_sent_and_loaded(server):
    checkpoint = MemoryCheckpoint({"workers": [{"step": 7}]})
    made = []

    def work(reporter):
        state = reporter.load()
        for step in (1, 2):
            reporter.save(step, lambda step=step: (made.append(step), {"step": step, "weights": torch.arange(1000)})[1])
        reporter.end({})
        return state

    assert serve(server, work, checkpoint=checkpoint)[1] == [{"step": 7}]
    assert checkpoint.offered == [1, 2]
    assert made == [2]
    (state,) = checkpoint.state["workers"]
    assert state["step"] == 2
    assert torch.equal(state["weights"], torch.arange(1000))


def test_without_checkpoint_no_state_is_loaded_or_requested(server):
    def work(reporter):
        state = reporter.load()
        reporter.save(2, lambda: pytest.fail("the state is not requested"))
        reporter.end({})
        return state

    assert serve(server, work)[1] == [None]


@pytest.mark.parametrize("error", [ValueError("diverged"), SystemExit(0)])
def test_error_of_report_stops_the_workers_and_is_raised(server, error):
    results = []

    def report(step, metrics):
        raise error

    with pytest.raises(type(error)):
        serve(server, lambda reporter: reporter.report(1, {}), report, results=results)
    assert results == ["stopped"]


def test_error_after_the_last_state_stops_the_workers(server):
    checkpoint, results = MemoryCheckpoint(error=KeyError("the search ends")), []
    with pytest.raises(KeyError):
        serve(server, lambda reporter: reporter.save(3, lambda: {"step": 3}), checkpoint=checkpoint, results=results)
    assert results == ["stopped"]
    assert checkpoint.state == {"workers": [{"step": 3}]}


def test_lost_worker_is_detected(server):
    with pytest.raises(WorkersLost):
        serve(server, lambda reporter: reporter.report(1, {}))


def test_workers_that_never_connect_are_detected(server):
    threading.Timer(0.1, server.report_loss).start()
    with pytest.raises(WorkersLost):
        server.serve(lambda step, metrics: None, None)


def test_client_without_the_key_is_ignored(server):
    def call():
        with pytest.raises((AuthenticationError, EOFError, OSError)):
            Client(server.address, authkey=b"guessed")
        reporter = DistributedReporter(DistributedCommunicator(), server.address, server.key)
        reporter.end({"status": "finished"})

    thread = threading.Thread(target=call)
    thread.start()
    assert server.serve(lambda step, metrics: None, None) == {"status": "finished"}
    thread.join(10)

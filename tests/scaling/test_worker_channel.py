"""Messages between a trial and its worker."""

import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest
import torch

from tune_hpc.scaling.worker_channel import CONTINUE, SEND_STATE, TrialServer, WorkerClient, WorkersLost


class MemoryCheckpoint:
    """A checkpoint that requests every second state, or raises an error after a state."""

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


def serve(server, work, report=lambda step, metrics: None, checkpoint=None):
    """Serve a worker in another thread; return the row and the worker's results."""
    results = []

    def call():
        client = WorkerClient(server.address, server.key)
        try:
            results.append(work(client))
        finally:
            client.close()

    thread = threading.Thread(target=call)
    thread.start()
    try:
        return server.serve(report, checkpoint), results
    finally:
        thread.join(10)
        assert not thread.is_alive()


def test_report_has_arrived_when_the_call_returns(server):
    reports = []

    def work(client):
        answers = [client.report(step, {"valid_loss": 1 / step}) for step in (1, 2)]
        arrived = list(reports)
        client.end({"status": "finished"})
        return answers, arrived

    row, results = serve(server, work, lambda step, metrics: reports.append((step, metrics["valid_loss"])))
    assert row == {"status": "finished"}
    assert results == [([True, True], [(1, 1.0), (2, 0.5)])]


def test_requested_state_is_sent_and_loaded(server):
    checkpoint = MemoryCheckpoint({"step": 7})

    def work(client):
        state = client.load()
        answers = [client.offer_state(1), client.offer_state(2)]
        continues = client.send_state({"step": 2, "weights": torch.arange(1000)})
        client.end({})
        return state, answers, continues

    _, results = serve(server, work, checkpoint=checkpoint)
    assert results == [({"step": 7}, [CONTINUE, SEND_STATE], True)]
    assert checkpoint.offered == [1, 2]
    assert torch.equal(checkpoint.state["weights"], torch.arange(1000))


def test_without_checkpoint_no_state_is_loaded_or_requested(server):
    def work(client):
        answers = client.load(), client.offer_state(1)
        client.end({})
        return answers

    assert serve(server, work)[1] == [(None, CONTINUE)]


@pytest.mark.parametrize("error", [ValueError("diverged"), SystemExit(0)])
def test_error_of_report_stops_the_workers_and_is_raised(server, error):
    answers = []

    def report(step, metrics):
        raise error

    with pytest.raises(type(error)):
        serve(server, lambda client: answers.append(client.report(1, {})), report)
    assert answers == [False]


def test_error_after_the_last_state_stops_the_workers(server):
    checkpoint, answers = MemoryCheckpoint(error=KeyError("the search ends")), []
    with pytest.raises(KeyError):
        serve(
            server,
            lambda client: answers.extend((client.offer_state(3), client.send_state({"step": 3}))),
            checkpoint=checkpoint,
        )
    assert answers == [SEND_STATE, False]
    assert checkpoint.state == {"step": 3}


def test_lost_worker_is_detected(server):
    with pytest.raises(WorkersLost):
        serve(server, lambda client: client.report(1, {}))


def test_workers_that_never_connect_are_detected(server):
    threading.Timer(0.1, server.report_loss).start()
    with pytest.raises(WorkersLost):
        server.serve(lambda step, metrics: None, None)


def test_client_without_the_key_is_ignored(server):
    def call():
        with pytest.raises((AuthenticationError, EOFError, OSError)):
            Client(server.address, authkey=b"guessed")
        WorkerClient(server.address, server.key).end({"status": "finished"})

    thread = threading.Thread(target=call)
    thread.start()
    assert server.serve(lambda step, metrics: None, None) == {"status": "finished"}
    thread.join(10)

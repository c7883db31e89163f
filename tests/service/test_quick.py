"""What is answered again without asking: the same as ever, to nobody else, no more often, and not for longer."""

import itertools
import random
import socket
import time
from collections import Counter
from contextlib import ExitStack

import pytest

from tests.service.conftest import TOKEN, serve
from tests.service.listening import listening
from tune_hpc.service import limits, quick
from tune_hpc.service.access import LET_IN
from tune_hpc.service.answers import ANSWERED, Answer
from tune_hpc.service.quick import Quick
from tune_hpc.service.tokens import cookie_name, new_session

BEARER = f"Authorization: Bearer {TOKEN}"


class Wire:
    """One connection to a service, on which is said what one likes."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._came = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, *requests):
        self.socket.sendall(b"".join(requests))

    def hear(self):
        """Return one answer: its status, its headers but the date, and its body."""
        while b"\r\n\r\n" not in self._came:
            self._more()
        head, _, self._came = self._came.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [line for line in lines if not line.startswith("date: ")]
        assert len(lines) - len(headers) == 1
        sizes = [int(line.partition(": ")[2]) for line in lines if line.startswith("content-length: ")]
        while len(self._came) < sum(sizes):
            self._more()
        body, self._came = self._came[: sum(sizes)], self._came[sum(sizes) :]
        return int(first.split()[1]), headers, body

    def ask(self, *arguments, **named):
        self.say(get(*arguments, **named))
        return self.hear()

    def is_over(self):
        return not self._came and self.socket.recv(10) == b""

    def _more(self):
        more = self.socket.recv(1_000_000)
        assert more, f"the connection ended after {self._came!r}"
        self._came += more


def get(path, *headers, method="GET", version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", "Host: 127.0.0.1", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def tag_of(answer):
    return next(line.partition(": ")[2] for line in answer[1] if line.startswith("etag: "))


class Running:
    """A service that listens, and counts what its layers are asked."""

    def __init__(self, service, port, server, asked):
        self.service, self.port, self.server, self.asked = service, port, server, asked

    def wire(self):
        return Wire(self.port)


@pytest.fixture
def run(tmp_path):
    """Have a service listen."""
    with ExitStack() as stack:

        def start(name="jobs", is_quick=True, **settings):
            service = serve(tmp_path / name, **settings)
            stack.enter_context(service.http)
            app, asked = service.http.app, Counter()
            entrance = app.entrance

            async def counted(scope, receive, send):
                if scope["type"] == "http":
                    asked[scope["method"], scope["path"]] += 1
                await entrance(scope, receive, send)

            app.entrance = counted
            if not is_quick:
                app.quick = None
            port, server = stack.enter_context(listening(app))
            return Running(service, port, server, asked)

        yield start


def test_what_was_answered_is_answered_again_to_the_byte_and_asks_nobody(run):
    running = run()
    search_id = running.service.begin()
    running.service.leave(search_id)
    running.asked.clear()
    paths = [f"/searches/{search_id}", f"/view/{search_id}", f"/searches/{search_id}/trials?limit=2&format=csv",
             f"/searches/{search_id}/curves", "/searches?limit=5", "/"]  # fmt: skip
    with running.wire() as wire, running.wire() as other:
        for path in paths:
            first = wire.ask(path, BEARER)
            unchanged = wire.ask(path, BEARER, f"If-None-Match: {tag_of(first)}")
            assert (first[0], unchanged[0], unchanged[2]) == (200, 304, b"")
            before = dict(running.asked)
            for one in (wire, other):
                assert one.ask(path, BEARER) == first
                assert one.ask(path, BEARER, f"If-None-Match: {tag_of(first)}") == unchanged
                assert one.ask(path, BEARER, 'If-None-Match: "other"') == first
            assert running.asked == before
    assert set(running.asked.values()) == {1}
    assert "x-frame-options: DENY" in first[1]
    assert any(line.startswith("content-security-policy: ") for line in unchanged[1])


def test_nobody_else_is_let_in_and_whoever_asks_otherwise_is_answered_as_ever(run):
    running = run()
    path = f"/searches/{running.service.begin()}"
    session = f"Cookie: {cookie_name(TOKEN)}={new_session(TOKEN)}"
    with running.wire() as wire:
        whole = wire.ask(path, BEARER)
        assert wire.ask(path, BEARER) == whole
        assert wire.ask(path)[0] == 401
        assert wire.ask(path, "Authorization: Bearer another")[0] == 401
        assert wire.ask(path, BEARER.upper())[0] == 401
        assert wire.ask(path, session[:-1])[0] == 401
        assert wire.ask(path, session) == wire.ask(path, session) == whole
        asked = running.asked["GET", path]
        wire.say(get(path, BEARER, method="HEAD"))
        time.sleep(0.3)
        assert running.asked["HEAD", path] == 1
    for number in (1, 2):
        with running.wire() as wire:
            wire.say(get(path, BEARER, "Content-Length: 3"), b"abc")
            assert wire.hear() == whole
            assert running.asked["GET", path] == asked + number
    # What anybody may see lets nobody in.
    with running.wire() as wire:
        for _ in range(2):
            assert wire.ask("/health")[0] == 200
        assert wire.ask(path)[0] == 401


class TestMemory:
    """What is remembered of one request, without a connection."""

    @pytest.fixture
    def memory(self):
        class Watched:
            def watched(self, key):
                return Answer(b"{}") if key == "key" else None

        return Quick(Watched(), limits.Rate(100, 100))

    @pytest.mark.parametrize(
        ("changes", "headers"),
        [({}, []), ({"method": "HEAD"}, []), ({LET_IN: False}, []), ({ANSWERED: "gone"}, []),
         *(({}, [(name, b"x")]) for name in (b"content-length", b"connection", b"expect", b"upgrade"))],
    )  # fmt: skip
    def test_only_a_plain_question_of_somebody_who_was_let_in_is_answered_again(self, memory, changes, headers):
        scope = {"method": "GET", LET_IN: True, ANSWERED: "key", "client": ("10.0.0.1", 1), **changes}
        memory.note("::1", b"/a", headers, scope)
        found = memory.find("::1", b"/a", headers)
        assert (found is None) == bool(changes or headers)
        assert memory.find("::2", b"/a", headers) is memory.find("::1", b"/b", headers) is None

    def test_it_stays_small(self, memory, monkeypatch):
        monkeypatch.setattr(quick, "MOST_REMEMBERED", 5)
        scope = {"method": "GET", LET_IN: True, ANSWERED: "key", "client": None}
        for number in range(23):
            memory.note("::1", b"/%d" % number, [(b"x", b"%d" % number)], scope)
            assert len(memory._keys) <= 5
            assert len(memory._let_in) <= 5
            assert memory.find("::1", b"/%d" % number, [(b"x", b"%d" % number)]).body == b"{}"


def test_a_connection_ends_when_it_is_to(run):
    running = run()
    path = f"/searches/{running.service.begin()}"
    with running.wire() as wire:
        whole = wire.ask(path, BEARER)
        for headers, version in (["Connection: close"], "1.1"), ([], "1.0"):
            with running.wire() as other:
                answer = other.ask(path, BEARER, *headers, version=version)
                assert answer[2] == whole[2]
                assert "connection: close" in answer[1]
                assert other.is_over()
        assert wire.ask(path, BEARER) == whole


def test_without_a_token_the_name_under_which_one_asks_decides(run):
    running = run(token=None)
    path = f"/searches/{running.service.begin()}"
    with running.wire() as wire:
        for _ in range(2):
            assert wire.ask(path)[0] == 200
        assert running.asked["GET", path] == 1
        wire.say(get(path).replace(b"127.0.0.1", b"evil.example"))
        assert wire.hear()[0] == 403


def test_whoever_was_let_in_is_asked_again_after_a_while(run, monkeypatch):
    monkeypatch.setattr(quick, "LET_IN_S", 0.3)
    running = run()
    path = f"/searches/{running.service.begin()}"
    with running.wire() as wire:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert wire.ask(path, BEARER)[0] == 200
    assert 2 <= running.asked["GET", path] <= 8


def test_what_was_changed_here_is_told_at_once_and_what_changes_elsewhere_soon(run):
    running = run()
    search_id = running.service.begin()
    with running.wire() as wire:
        path = f"/searches/{search_id}"
        assert b'"state":"pending"' in wire.ask(path, BEARER)[2]
        assert b'"state":"pending"' in wire.ask(path, BEARER)[2]
        running.service.http.post(f"{path}/stop", json={"force": True})
        assert b'"state":"stopped"' in wire.ask(path, BEARER)[2]
        running.service.http.post(f"{path}/resume")
        running.asked.clear()
        assert b'"state":"pending"' in wire.ask(path, BEARER)[2]
        running.service.drive(search_id, number=2)
        deadline = time.monotonic() + 10
        while b'"state":"running"' not in wire.ask(path, BEARER)[2] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert b'"state":"running"' in wire.ask(path, BEARER)[2]
        # It was made anew without anybody having waited for it.
        assert running.asked["GET", path] == 1


def test_who_reads_too_often_is_held_up_and_refused_as_ever(run, monkeypatch):
    monkeypatch.setattr(limits, "MOST_HELD_S", 0.5)
    running = run(reads_per_s=20)
    path = f"/searches/{running.service.begin()}"
    with running.wire() as wire:
        began = time.monotonic()
        answers = [wire.ask(path, BEARER) for _ in range(60)]
        # Forty are there at the beginning, and twenty flow in each second.
        assert time.monotonic() - began >= 0.8
        assert {answer[0] for answer in answers} == {200}
        assert running.asked["GET", path] == 1
        # Who does not even wait for his answers has no more of them.
        wire.say(*[get(path, BEARER)] * 20)
        answers += [wire.hear() for _ in range(20)]
        num_good = Counter(answer[0] for answer in answers)[200]
        assert num_good <= 40 + 20 * (time.monotonic() - began + 0.5) + 1
    with ExitStack() as stack:
        wires = [stack.enter_context(running.wire()) for _ in range(60)]
        time.sleep(1.0)
        for wire in wires:
            wire.say(get(path, BEARER))
        refused = [answer for answer in (wire.hear() for wire in wires) if answer[0] == 429]
        assert 10 <= len(refused) < 60
        assert b"20 reads a second" in refused[0][2]


def test_an_answer_that_is_held_up_comes_before_the_service_ends_or_is_forgotten_with_its_reader(run):
    running = run(reads_per_s=2)
    path = f"/searches/{running.service.begin()}"
    with running.wire() as wire, running.wire() as gone:
        for _ in range(4):
            wire.ask(path, BEARER)
        gone.say(get(path, BEARER))
        wire.say(get(path, BEARER))
        time.sleep(0.1)
        gone.socket.close()
        running.server.should_exit = True
        assert wire.hear()[0] == 200


def test_whoever_does_not_read_has_no_more_written_for_him_than_anybody(run):
    running = run()
    search_id = running.service.begin()
    running.service.leave(search_id, num_trials=200, num_steps=50)
    path = f"/searches/{search_id}/curves"
    with running.wire() as wire:
        whole = wire.ask(path, BEARER)
        assert len(whole[2]) > 10_000
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        wire.say(*[get(path, BEARER)] * 400)
        time.sleep(1.0)
        (protocol,) = running.server.server_state.connections
        assert protocol.transport.get_write_buffer_size() < 10 * len(whole[2])
        for _ in range(400):
            assert wire.hear() == whole


def test_many_who_ask_at_once_are_all_answered_whoever_else_asks(run):
    running = run()
    path = f"/searches/{running.service.begin()}"
    with ExitStack() as stack:
        wires = [stack.enter_context(running.wire()) for _ in range(60)]
        whole = wires[0].ask(path, BEARER)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            for wire in wires:
                wire.say(get(path, BEARER))
            assert all(wire.hear() == whole for wire in wires)
        began = time.monotonic()
        with running.wire() as stranger:
            assert stranger.ask("/spaces", BEARER)[0] == 200
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("seed", range(4))
def test_any_requests_in_any_pieces_are_answered_as_without_it(run, seed):
    chance = random.Random(seed)
    with_it = run()
    search_id = with_it.service.begin()
    with_it.service.leave(search_id)
    without = run(is_quick=False)
    paths = [f"/searches/{search_id}", f"/view/{search_id}/table", "/health", "/searches", f"/searches/{search_id}/no",
             f"/searches/{search_id}/trials?limit={seed}", "/static/page.css", "/nothing?x=%41"]  # fmt: skip
    with with_it.wire() as one, without.wire() as other:
        tags = [tag_of(one.ask(path, BEARER)) for path in paths[:2]]
        for _ in range(60):
            requests = []
            for _ in range(chance.choice([1, 1, 1, 2, 5])):
                known = [f"If-None-Match: {tag}" for tag in chance.sample(tags, chance.randrange(2))]
                who = [BEARER] if chance.random() < 0.8 else []
                more = ["Accept: text/html"] if chance.random() < 0.2 else []
                requests.append(get(chance.choice(paths), *who, *more, *known))
            said = b"".join(requests)
            cuts = sorted({0, len(said), *(chance.randrange(len(said)) for _ in range(chance.randrange(3)))})
            for start, end in itertools.pairwise(cuts):
                for wire in (one, other):
                    wire.say(said[start:end])
                time.sleep(0.005 * (chance.random() < 0.3))
            for request in requests:
                assert one.hear() == other.hear(), request
    assert sum(with_it.asked.values()) < 0.9 * sum(without.asked.values())

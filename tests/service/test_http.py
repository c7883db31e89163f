"""Bytes on a connection: what is too large to be a head ends it, and all else is served."""

import asyncio
import socket
import time
from types import SimpleNamespace

import pytest

from tests.service.listening import listening
from tune_hpc.service import http
from tune_hpc.service.http import MAX_HEAD, Coalescing, GatheredTransport

RULE = b"The head of a request has at most 65536 bytes."


async def echo(scope, receive, send):
    """Answer with how long head and body were."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    told = f"{scope['path'][:20]} {size > 1000} {len(body)};".encode()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]}
    await send(start)
    await send({"type": "http.response.body", "body": told})


@pytest.fixture(scope="module")
def port():
    with listening(echo) as (port, _):
        yield port


def say(port, *pieces, until=b""):
    """Send pieces one by one; return what comes until the connection ends, or something has come."""
    came = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(0.02)
        try:
            while not until or until not in came:
                if not (more := connection.recv(65536)):
                    break
                came += more
        except ConnectionResetError:
            # What was sent after the end of the connection was not read by anybody.
            pass
    return came


def head(size, path="/"):
    return f"GET {path} HTTP/1.1\r\nHost: here\r\nX-Long: {'x' * size}\r\n\r\n".encode()


def test_a_head_within_the_bound_is_served_whole_or_in_pieces(port):
    whole = head(60_000)
    pieces = [whole[at : at + 7000] for at in range(0, len(whole), 7000)]
    for one in ([whole], pieces):
        assert b"/ True 0;" in say(port, *one, until=b";")


@pytest.mark.parametrize("size", [MAX_HEAD, 100_000, 250_000])
def test_a_head_beyond_the_bound_is_refused_with_the_rule_and_the_connection_ends(port, size):
    came = say(port, head(size))
    assert came.startswith(b"HTTP/1.1 400 ")
    assert came.endswith(RULE)


def test_a_head_that_never_ends_is_refused_before_it_has_come(port):
    pieces = [b"GET / HTTP/1.1\r\nHost: here\r\n", *[b"X-%d: %s\r\n" % (one, b"x" * 5000) for one in range(14)]]
    assert say(port, *pieces).endswith(RULE)
    assert say(port, *[b"GET /" + b"x" * 9000, *[b"x" * 9000] * 8]).endswith(RULE)


def test_an_address_counts_as_part_of_the_head(port):
    assert say(port, head(10, "/" + "x" * 70_000)).endswith(RULE)


def test_a_body_is_no_head(port):
    body = b"x" * 200_000
    post = b"POST /b HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert b"/b False 200000;" in say(port, post + body, until=b";")
    assert b"/b False 200000;" in say(port, post, body[:90_000], body[90_000:], until=b";")


def test_requests_on_one_connection_are_counted_each_by_itself(port):
    several = [head(50_000, f"/{number}") for number in range(4)]
    assert b"/3 True 0;" in say(port, *several, until=b"/3 True 0;")
    assert b"/3 True 0;" in say(port, b"".join(several), until=b"/3 True 0;")


def test_what_is_no_http_is_said_to_be_none(port):
    assert say(port, b"what is this?\r\n\r\n").endswith(b"Invalid HTTP request received.")


class Sent:
    """A transport that notes what it is given."""

    def __init__(self):
        self.calls = []

    def writelines(self, pieces):
        self.calls.append(b"".join(pieces))

    def close(self):
        self.calls.append("closed")

    def is_closing(self):
        return "closed" in self.calls

    def get_write_buffer_size(self):
        return 0

    def get_extra_info(self, name):
        return name


def test_what_is_written_in_one_turn_is_sent_at_once_and_all_of_it_before_the_end():
    async def story():
        sent = Sent()
        gathered = GatheredTransport(sent, asyncio.get_running_loop())
        gathered.write(b"head ")
        gathered.write(b"body")
        assert sent.calls == []
        await asyncio.sleep(0)
        assert sent.calls == [b"head body"]
        gathered.write(b"before ")
        assert gathered.is_sending
        gathered.send(b"at ", b"once")
        assert not gathered.is_sending
        assert sent.calls.pop() == b"before at once"
        gathered.write(b"last ")
        gathered.write(b"words")
        gathered.close()
        await asyncio.sleep(0)
        assert sent.calls == [b"head body", b"last words", "closed"]
        gathered.write(b"too late")
        await asyncio.sleep(0)
        assert len(sent.calls) == 3
        assert gathered.get_extra_info("peername") == "peername"

    asyncio.run(story())


class TestCoalescing:
    """When requests wait for one another."""

    @pytest.fixture
    def rests(self, monkeypatch):
        """How long was rested, each time; no time passes but what a test lets pass."""
        rests, self.now = [], 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=rests.append)
        monkeypatch.setattr(http, "time", clock)
        return rests

    def ask(self, coalescing, num_readers, seconds=2.0, tasks=(), connects=False):
        """Have some readers ask, each five times a second, for some time."""

        async def story():
            loop = asyncio.get_running_loop()
            readers = [SimpleNamespace(loop=loop, tasks=set(tasks)) for _ in range(num_readers)]
            for _ in range(int(5 * seconds)):
                self.now += 0.2
                for one in readers:
                    coalescing.note(one)
                if connects:
                    coalescing.note_connection()
                await asyncio.sleep(0)

        asyncio.run(story())

    def test_a_few_readers_are_answered_at_once(self, rests):
        self.ask(Coalescing(), http.MANY - 1)
        assert rests == []

    def test_many_wait_for_one_another_once_a_turn_until_they_are_few_again(self, rests):
        coalescing = Coalescing()
        self.ask(coalescing, 200)
        assert rests == [http.REST_S] * len(rests)
        assert 6 <= len(rests) <= 9
        self.ask(coalescing, 3)
        num_rests = len(rests)
        self.ask(coalescing, 3)
        assert len(rests) == num_rests <= 13

    def test_many_of_some_time_ago_are_not_many_now(self, rests):
        coalescing = Coalescing()
        self.ask(coalescing, 200)
        self.now += 3600
        rests.clear()
        self.ask(coalescing, 1, 0.2)
        assert rests == []

    def test_nothing_else_that_is_to_be_answered_is_held_up(self, rests):
        self.ask(Coalescing(), 200, tasks=["one"])
        assert rests == []

    def test_whoever_connects_is_accepted_first(self, rests):
        self.ask(Coalescing(), 200, connects=True)
        assert rests == []

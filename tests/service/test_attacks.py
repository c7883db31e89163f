"""Attacks without a token on a real service: others are served, its memory stays, and guesses find nothing."""

import http.client
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from tests.service.processes import serving, wait_until
from tune_hpc.jobs.client import JobClient
from tune_hpc.jobs.launchers import LocalLauncher

pytestmark = pytest.mark.slow
NUM_CONNECTIONS = 2000
#: Seconds in which an authenticated request is answered during an attack. The machine of the tests may be busy.
LIMIT_S = 1.0
MAX_GROWTH_BYTES = 50e6


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("attacked")) as service:
        # A job that nothing drives: a stop of it is a change, and cheap.
        from search_spaces import exercise1_1stpart

        class NoLauncher(LocalLauncher):
            def start(self, job, attempt):
                return {}

        client = JobClient(service.folder / "jobs", NoLauncher())
        service.search_id = client.submit(exercise1_1stpart.experiments[0]).id
        service.session = log_in(service)
        yield service


def log_in(service):
    body = f"token={service.token}"
    headers = {"Origin": service.url, "Content-Type": "application/x-www-form-urlencoded"}
    response, _ = send(service, "POST", "/login", headers, body)
    assert response.status == 303
    return response.getheader("set-cookie").partition(";")[0]


def send(service, method, path, headers=(), body=None, connection=None):
    """Send a request; return the response and its content."""
    used = connection or http.client.HTTPConnection(*service.address, timeout=30)
    used.request(method, path, body, dict(headers))
    response = used.getresponse()
    content = response.read()
    if not connection:
        used.close()
    return response, content


@contextmanager
def attack(*targets):
    """Call functions again and again, each in a thread, until the block ends."""
    is_over = threading.Event()

    def repeat(target):
        while not is_over.is_set():
            with suppress(OSError, http.client.HTTPException):
                target()

    threads = [threading.Thread(target=repeat, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(60)


@contextmanager
def operator_is_served(service):
    """Check that authenticated requests before, during and after the block are answered in time."""
    connection = http.client.HTTPConnection(*service.address, timeout=30)
    bearer = {"Authorization": f"Bearer {service.token}"}
    session = {"Cookie": service.session, "Sec-Fetch-Site": "same-origin"}
    # The bucket of this address may be empty after another attack.
    wait_until(lambda: send(service, "GET", "/api/v1/searches", bearer, connection=connection)[0].status == 200, 30)
    before = service.rss_bytes()

    def check():
        for _ in range(5):
            for method, path, status in (
                ("GET", "/api/v1/searches", 200), ("POST", f"/api/v1/searches/{service.search_id}/stop", 202),
            ):  # fmt: skip
                for headers, kept_alive in ((session, None), (bearer, connection)):
                    start = time.monotonic()
                    response, content = send(service, method, path, headers, connection=kept_alive)
                    assert response.status == status, content
                    assert time.monotonic() - start < LIMIT_S, (method, headers.keys())
            time.sleep(0.5)

    yield check
    connection.close()
    assert service.rss_bytes() - before < MAX_GROWTH_BYTES


def test_huge_cookies_do_not_delay_others(service):
    """Cookies are parsed in linear time."""
    cookie = {"Cookie": 'a="' + "\\\\" * 30_000}
    with operator_is_served(service) as check, attack(lambda: send(service, "GET", "/health", cookie)):
        check()


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 40_000, 411),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 12_500 + b"\r\n", 431),
        (b"GET /login?" + b"n=1&" * 15_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", 431),
        (b"\x00\x01\r\n\r\n", 400),
    ],
    ids=["chunks", "headers", "address", "long header", "garbage"],
)
def test_requests_that_are_costly_to_parse_are_refused_before_that(service, payload, status):
    def send_payload():
        with suppress(OSError), socket.create_connection(service.address, timeout=5) as connection:
            connection.sendall(payload)
            return connection.recv(4096)

    response = send_payload()
    # A client that is still sending may lose the response with the connection.
    assert not response or response.startswith(f"HTTP/1.1 {status} ".encode())
    assert not response or b"application/problem+json" in response
    with operator_is_served(service) as check, attack(*[send_payload] * 4):
        check()


def test_pipelined_requests_are_answered_in_order(service):
    request = b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(service.address, timeout=10) as connection:
        connection.sendall(request * 3 + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        response = b""
        while part := connection.recv(65536):
            response += part
    assert response.count(b"HTTP/1.1 200 OK") == 4


def test_endless_trailers_do_not_fill_the_memory(service):
    """Trailers are bounded like heads."""

    def flood():
        with socket.create_connection(service.address, timeout=30) as connection:
            connection.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
            for number in range(2_000):
                connection.sendall(b"x%d: %s\r\n" % (number, b"y" * 50_000))

    with operator_is_served(service) as check, attack(flood, flood):
        check()


@pytest.mark.parametrize("head", [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: a\r\n"])
def test_half_open_connections_take_no_place(service, head):
    """The oldest are closed, so others get in; and all are closed after ten seconds."""
    with operator_is_served(service) as check:
        connections = []
        try:
            for _ in range(NUM_CONNECTIONS):
                connection = socket.create_connection(service.address, timeout=30)
                connections.append(connection)
                with suppress(OSError):
                    connection.sendall(head)
            check()
            time.sleep(11)
            assert sum(_is_open(connection) for connection in connections) == 0
            check()
        finally:
            for connection in connections:
                connection.close()


def _is_open(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_head_that_drips_is_cut_off(service):
    with socket.create_connection(service.address, timeout=30) as connection:
        start = time.monotonic()
        with suppress(OSError):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
            for _ in range(60):
                connection.sendall(b"a: b\r\n")
                time.sleep(0.5)
                if not _is_open(connection):
                    break
                connection.settimeout(30)
        assert 5 < time.monotonic() - start < 20


def test_bodies_that_never_arrive_take_no_place(service):
    """Public routes take no body, so nothing waits for one."""
    request = b"%s HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nContent-Length: 10\r\n\r\n"
    with operator_is_served(service) as check:
        connections = []
        try:
            for number in range(NUM_CONNECTIONS):
                connection = socket.create_connection(service.address, timeout=30)
                connections.append(connection)
                with suppress(OSError):
                    connection.sendall(request % (b"POST /login" if number % 2 else b"GET /health"))
            check()
        finally:
            for connection in connections:
                connection.close()


@pytest.mark.timeout(120)
def test_client_that_does_not_read_is_disconnected(service):
    """Responses that a client does not read occupy a connection for half a minute at most."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(service.address)
        connection.setblocking(False)
        start, request = time.monotonic(), b"GET /static/htmx.min.js HTTP/1.1\r\nHost: a\r\n\r\n" * 10
        with suppress(ConnectionError):
            while time.monotonic() - start < 90:
                with suppress(BlockingIOError):
                    connection.send(request)
                time.sleep(0.1)
        assert 20 < time.monotonic() - start < 80


def test_guesses_at_full_speed_find_nothing(service):
    """Thousands of wrong tokens; meanwhile the right one is refused from the same address."""
    right = {"Authorization": f"Bearer {service.token}"}
    guesses = [0]

    def guess():
        connection = http.client.HTTPConnection(*service.address, timeout=30)
        for number in range(200):
            headers = {"Authorization": f"Bearer wrong-token-number-{number}"}
            response, _ = send(service, "GET", "/api/v1/searches", headers, connection=connection)
            assert response.status in (401, 429)
            guesses[0] += 1
        connection.close()

    with operator_is_served(service) as check, attack(guess, guess):
        while guesses[0] < 3000:
            check()
        statuses = {send(service, "GET", "/api/v1/searches", right)[0].status for _ in range(20)}
    assert 429 in statuses
    wait_until(lambda: send(service, "GET", "/api/v1/searches", right)[0].status == 200, 30)


def test_flood_of_logins_does_not_lock_out_the_operator(service):
    """The limit of guesses is not that of sessions and authenticated connections."""
    headers = {"Origin": service.url, "Content-Type": "application/x-www-form-urlencoded"}

    def flood():
        send(service, "POST", "/login", headers, "token=wrong")

    with operator_is_served(service) as check, attack(flood, flood):
        check()

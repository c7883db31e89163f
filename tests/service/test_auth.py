"""Authentication: token files, sessions, rate limits of guesses, origins and hosts."""

import os
import re
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import exercise1_1stpart
from tests.service.conftest import API, TOKEN, problem_of, serve
from tune_hpc import cli
from tune_hpc.cli.serve import is_loopback, warn_of_cluster
from tune_hpc.errors import FolderError
from tune_hpc.jobs.client import Client, LocalClient
from tune_hpc.service import auth, middleware
from tune_hpc.service.auth import Credentials, TokenBuckets, read_or_create_secret
from tune_hpc.service.connection import CONNECTION

ORIGIN = {"Origin": "http://127.0.0.1"}
WRONG = {"Authorization": "Bearer another-token-of-some-length"}


@pytest.fixture
def browser(tmp_path):
    """A service whose client sends what a browser sends, without a token."""
    service = serve(tmp_path / "jobs", sends_token=False)
    service.http.headers["Accept"] = "text/html"
    with service.http:
        yield service


def log_in(service, token=TOKEN, **fields):
    return service.http.post("/login", data={"token": token, "next": "/new", **fields}, headers=ORIGIN)


def test_token_is_created_once_and_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "deep" / "token"
    with ThreadPoolExecutor(8) as threads:
        tokens = list(threads.map(lambda _: read_or_create_secret(path), range(8)))
    assert len({*tokens, path.read_text(encoding="utf-8").strip()}) == 1
    assert len(tokens[0]) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["token"]


def test_token_file_that_another_user_may_have_written_is_refused(tmp_path, monkeypatch):
    """Mode, owner and kind of the file are checked."""
    path = tmp_path / "token"
    read_or_create_secret(path)
    path.chmod(0o644)
    with pytest.raises(FolderError, match=r"other users can read the token file .* \(mode 644\); run chmod 600"):
        read_or_create_secret(path)
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(FolderError, match="cannot be used"):
        read_or_create_secret(tmp_path / "link")
    path.write_text("short\n", encoding="utf-8")
    with pytest.raises(FolderError, match="at least 16 printable characters"):
        read_or_create_secret(path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(FolderError, match="belongs to another user"):
        read_or_create_secret(path)


def test_session_expires_and_belongs_to_one_token(tmp_path, monkeypatch):
    credentials = Credentials(TOKEN, "a-key", tmp_path / "revoked")
    cookie = credentials.new_session()
    assert credentials.session_id(cookie)
    assert TOKEN not in cookie
    for token, key in (("another-token-altogether", "a-key"), (TOKEN, "b")):
        assert not Credentials(token, key, tmp_path / "x").session_id(cookie)
    session, moment, signature = cookie.split(".")
    forged = (f"{session}0.{moment}.{signature}", f"{session}.{moment}.", "", ".", "x.y.z", f"{cookie}0", "\ud800")
    assert not any(credentials.session_id(text) for text in forged)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + auth.SESSION_S + 2)
    assert not credentials.session_id(cookie)


@pytest.mark.slow
def test_logout_ends_the_session_also_after_a_restart(tmp_path):
    """The cookie of a session that was ended is refused, by all services of the token file."""
    revoked_file = tmp_path / "revoked"
    first, other = (serve(tmp_path / "jobs", revoked_file=revoked_file, sends_token=False) for _ in range(2))
    cookie = log_in(first).headers["set-cookie"].partition(";")[0]
    sessions = [service.get("/searches", Cookie=cookie).status_code for service in (first, other)]
    assert sessions == [200, 200]
    assert first.http.post("/logout", headers={"Cookie": cookie, **ORIGIN}).status_code == 303
    restarted = serve(tmp_path / "jobs", revoked_file=revoked_file, sends_token=False)
    for service in (first, other, restarted):
        service.http.cookies.clear()
        assert service.get("/searches", Cookie=cookie).status_code == 401
    assert stat.S_IMODE(revoked_file.stat().st_mode) == 0o600


def test_revoked_sessions_are_forgotten_when_they_have_expired(tmp_path, monkeypatch):
    credentials = Credentials(TOKEN, "a-key", tmp_path / "revoked")
    credentials.revoke("a" * 32)
    assert list(credentials._read_revoked()) == ["a" * 32]
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + auth.SESSION_S + 2)
    assert Credentials(TOKEN, "a-key", tmp_path / "revoked")._read_revoked() == {}


def test_damaged_line_of_the_revoked_sessions_swallows_no_other(tmp_path):
    file = tmp_path / "revoked"
    file.write_bytes(b"\xff\xfe\n" + b"b" * 32 + b" 179")
    credentials = Credentials(TOKEN, "a-key", file)
    credentials.revoke("a" * 32)
    assert list(credentials._read_revoked()) == ["a" * 32]
    file.unlink()
    file.mkdir()
    with pytest.raises(FolderError, match="cannot be read"):
        credentials._read_revoked()


def test_browser_logs_in_and_out(browser):
    response = browser.http.get("/view/x?experiment=y")
    assert (response.status_code, response.headers["location"]) == (303, "/login?next=%2Fview%2Fx%3Fexperiment%3Dy")
    assert "Log in" in browser.http.get("/login").text
    assert log_in(browser, "wrong").status_code == 401
    response = log_in(browser)
    assert (response.status_code, response.headers["location"]) == (303, "/new")
    cookie = response.headers["set-cookie"]
    assert cookie.startswith(f"{browser.rules.credentials.cookie_name}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert TOKEN not in cookie
    page = browser.http.get("/")
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert browser.http.post("/logout", headers=ORIGIN).status_code == 303
    assert browser.http.get("/").status_code == 303


@pytest.mark.parametrize(
    "target", ["https://other.example/", "//other.example", "/\\other", "x", "", "http://[", "/\n/x"]
)
def test_login_redirects_to_this_service_only(browser, target):
    assert log_in(browser, next=target).headers["location"] == "/"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (ORIGIN, 303),
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Origin": "http://other.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site", **ORIGIN}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({}, 403),
    ],
)
def test_session_changes_something_from_the_page_of_the_service_only(browser, headers, status):
    log_in(browser)
    job = browser.client.submit(exercise1_1stpart.experiments[0])
    assert browser.http.post(f"/view/{job.id}/stop", headers=headers).status_code == status
    assert (browser.state(job.id) == "stopped") == (status == 303)


def test_service_without_a_token_serves_this_machine_only(tmp_path):
    service = serve(tmp_path / "jobs", token=None)
    with service.http:
        search_id = service.start()
        assert service.http.get("/", headers={"Accept": "text/html"}).status_code == 200
        assert service.http.get("/login").headers["location"] == "/"
        for host in ("127.0.0.1:8300", "localhost:1", "[::1]:8300"):
            assert service.http.get("/health", headers={"Host": host}).status_code == 200
        for host in ("rebound.example", "127.0.0.1.example", ""):
            response = service.get("/searches", Host=host)
            assert (response.status_code, "without a token" in problem_of(response)) == (403, True)
        assert service.post(f"/searches/{search_id}/stop", Origin="http://other.example").status_code == 403
        # A form of another site can send text, but not JSON.
        response = service.http.post(
            f"{API}/searches", content=b'{"space": "exercise1_1stpart"}', headers={"Content-Type": "text/plain"}
        )
        assert response.status_code == 422


def test_every_response_has_security_headers(browser):
    log_in(browser)
    for path in ("/", "/health", f"{API}/searches", "/none", "/static/page.js", f"{API}/openapi.json"):
        headers = browser.http.get(path).headers
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")


def test_pages_contain_no_inline_script_and_load_nothing_from_elsewhere(browser):
    log_in(browser)
    search_id = browser.client.submit(exercise1_1stpart.experiments[0]).id
    for path in ("/", "/new", "/new/exercise2.softmax", f"/view/{search_id}", "/none", "/login"):
        page = browser.http.get(path).text
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page), path
        assert not re.search(r"""(?:src|href|action)=["']?(?:https?:)?//""", page), path


def test_huge_cookie_takes_no_time(browser):
    """Cookies are split, and never unquoted; those behind the authentication, too."""
    cookie = f'{log_in(browser).headers["set-cookie"].partition(";")[0]}; a="' + "\\\\" * 30_000
    browser.http.cookies.clear()
    start = time.monotonic()
    assert browser.get("/searches", Cookie=cookie).status_code == 200
    assert browser.http.get("/health", headers={"Cookie": cookie}).status_code == 200
    assert time.monotonic() - start < 2


def stop_clock(service):
    """Let no guess flow into the buckets, however slow the machine is."""
    service.rules.unauthenticated._clock = lambda: 0.0


def test_guesses_are_slow_and_find_nothing(tmp_path):
    """While the bucket of an address is empty, the right token is refused like a wrong one."""
    service = serve(tmp_path / "jobs", sends_token=False)
    stop_clock(service)
    right = {"Authorization": f"Bearer {TOKEN}"}
    statuses = [service.get("/searches", **WRONG).status_code for _ in range(60)]
    assert statuses[:20] == [401] * 20
    assert statuses.count(429) >= 30
    response = service.get("/searches", **right)
    assert (response.status_code, int(response.headers["retry-after"]) >= 1) == (429, True)
    assert log_in(service).status_code == 429
    assert service.http.get("/health").status_code == 200
    service.rules.unauthenticated._levels.clear()
    assert service.get("/searches", **right).status_code == 200


def test_forwarded_address_is_ignored_without_a_proxy(service):
    """A guesser cannot choose the address whose bucket it draws from."""
    stop_clock(service)
    statuses = {
        service.get("/searches", **WRONG, **{"X-Forwarded-For": f"10.0.0.{number}"}).status_code for number in range(60)
    }
    assert statuses == {401, 429}


def test_session_is_not_limited_by_the_guesses_of_others(browser):
    """All clients behind one address share the limit of guesses, but not that of a session."""
    log_in(browser)
    stop_clock(browser)
    search_id = browser.client.submit(exercise1_1stpart.experiments[0]).id
    stranger = {"Cookie": "", **ORIGIN}
    for _ in range(40):
        cookies, browser.http.cookies = dict(browser.http.cookies), {}
        status = browser.http.post("/login", data={"token": "wrong"}, headers=stranger).status_code
        browser.http.cookies = cookies
    assert status == 429
    for _ in range(10):
        assert browser.http.post(f"/view/{search_id}/stop", headers=ORIGIN).status_code == 303
        assert browser.get("/searches").status_code == 200


@pytest.mark.parametrize(("is_behind_proxy", "status"), [(False, 200), (True, 429)])
def test_connection_that_presented_the_token_is_not_limited(tmp_path, is_behind_proxy, status):
    service = serve(tmp_path / "jobs", is_behind_proxy=is_behind_proxy)
    stop_clock(service)
    connection = {}
    inner = service.http.app

    async def app(scope, receive, send):
        await inner({**scope, "state": {CONNECTION: connection}}, receive, send)

    service.http._transport.app = app
    assert service.get("/searches").status_code == 200
    for _ in range(60):
        service.get("/searches", **WRONG)
    assert service.get("/searches").status_code == status
    assert service.get("/searches", **WRONG).status_code == 429


@pytest.mark.slow
def test_changes_and_previews_of_a_session_are_limited(tmp_path):
    service = serve(tmp_path / "jobs", changes=TokenBuckets(1e-9, 3))
    statuses = [service.post("/searches/none/stop").status_code for _ in range(2)]
    statuses += [service.http.get("/new/line.random/preview").status_code for _ in range(2)]
    assert statuses == [404, 404, 200, 429]
    assert service.get("/searches").status_code in (200, 503)
    assert "changes a second are allowed" in problem_of(service.post("/searches/none/stop"))


def test_bucket_refills_and_only_recent_keys_are_remembered(monkeypatch):
    monkeypatch.setattr(middleware, "MAX_KEYS", 2)
    now = [0.0]
    buckets = TokenBuckets(2, 1, lambda: now[0])
    assert buckets.take("a") == 0
    now[0] = 0.1
    assert buckets.take("a") == pytest.approx(0.4)
    buckets.give_back("a")
    assert buckets.take("a") == 0
    for key in "bcd":
        buckets.take(key)
    assert len(buckets._levels) == 2


@given(st.lists(st.floats(0, 2), max_size=60))
def test_bucket_grants_no_more_than_burst_and_rate(pauses):
    now, granted = [0.0], []
    buckets = TokenBuckets(5, 3, lambda: now[0])
    for pause in pauses:
        now[0] += pause
        if buckets.take("a") == 0:
            granted.append(now[0])
    for number, moment in enumerate(granted):
        assert len([one for one in granted[number:] if one < moment + 2 - 1e-6]) <= 3 + 5 * 2


def test_root_path_is_in_every_address(tmp_path):
    """A proxy may serve the service below a path, and may or may not remove that from requests."""
    service = serve(tmp_path / "jobs", root_path="/tune")
    search_id = service.start()
    service.write_results(search_id)
    for prefix in ("", "/tune"):
        for path in ("/", "/new", f"/view/{search_id}", "/new/line.random"):
            page = service.http.get(prefix + path, headers={"Accept": "text/html"})
            assert page.status_code == 200
            links = re.findall(r'(?:href|src|action|hx-get|data-url|data-log)="([^"#]+)"', page.text)
            assert [link for link in links if not link.startswith("/tune/")] == [], path
        assert service.http.get(f"{prefix}/static/page.js").status_code == 200
        assert service.http.get(f"{prefix}/api/v1/openapi.json").json()["servers"][0]["url"] == "/tune"
    del service.http.headers["Authorization"]
    response = service.http.get("/view/x", headers={"Accept": "text/html"})
    assert response.headers["location"] == "/tune/login?next=%2Ftune%2Fview%2Fx"
    cookie = log_in(service, next="/tune/view/x")
    assert (cookie.headers["location"], "Path=/tune;" in cookie.headers["set-cookie"]) == ("/tune/view/x", True)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_loopback_hosts_are_known(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0", "--no-token"], "a service without a token must listen on this machine only; got --host"),
        (["--port", "70000"], "--port must be from 0 to 65535; got 70000"),
        (["--host", "no.such.host.invalid"], "the service cannot listen at no.such.host.invalid"),
        (["--register", "json:dumps"], "json:dumps is of type function; it must be an Experiment or a list of them"),
        (["--register", "no_such_module:x"], "no module 'no_such_module'"),
        (["--address", "ftp://head"], "the address of a cluster is that of its dashboard"),
        (["--storage", "s3://bucket/jobs"], "the token must be on this machine, not in s3://bucket/jobs"),
        (["--reads-per-s", "0"], "--reads-per-s must be above 0; got 0"),
        (["--root-path", "tune"], "--root-path must begin with a slash; got 'tune'"),
        (["--behind-proxy", "*"], "--behind-proxy must be an IP address; got '*'"),
    ],
)
def test_command_refuses_invalid_flags_in_one_line(tmp_path, capsys, arguments, words):
    assert cli.main(["serve", "--storage", str(tmp_path / "jobs"), *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_storage_that_others_can_write_is_refused(tmp_path, capsys):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs").chmod(0o777)
    assert cli.main(["serve", "--storage", str(tmp_path / "jobs"), "--port", "70000", "--shared-storage"]) == 2
    assert cli.main(["serve", "--storage", str(tmp_path / "jobs")]) == 2
    assert "other users can write to" in capsys.readouterr().err


def test_missing_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['uvicorn'] = None; from tune_hpc import cli; "
        f"sys.exit(cli.main(['serve', '--storage', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        2, "tune-hpc: tune-hpc serve needs uvicorn, which is not installed: install tune_hpc with its extra [serve]\n",
    )  # fmt: skip


def test_absent_cluster_is_reported_at_the_start(tmp_path, capsys):
    warn_of_cluster(LocalClient(tmp_path / "jobs"))
    assert capsys.readouterr().err == ""
    warn_of_cluster(Client("http://127.0.0.1:9", storage=tmp_path / "jobs"))
    message = capsys.readouterr().err
    assert message.startswith(
        "tune-hpc: searches can be read, but not started: no Ray cluster answers at http://127.0."
    )
    assert message.count("\n") == 1

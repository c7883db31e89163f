"""Who may ask, by token or by session; and where a change may come from."""

import os
import re
import stat
import subprocess
import sys
import threading

import pytest

from tests.service.conftest import TOKEN, problem_of, serve
from tune_hpc import cli
from tune_hpc.cluster.client import Client, LocalClient
from tune_hpc.errors import FolderError
from tune_hpc.cli.serve import is_loopback, warn_of_cluster
from tune_hpc.service.tokens import SESSION_S, cookie_name, find_or_make_token, is_session, new_session

ORIGIN = {"Origin": "http://127.0.0.1"}


@pytest.fixture
def browser(tmp_path):
    """A service that is asked as a browser does, without the token."""
    one = serve(tmp_path / "jobs")
    del one.http.headers["Authorization"]
    one.http.headers["Accept"] = "text/html"
    with one.http:
        yield one


def log_in(service, token=TOKEN, **more):
    return service.http.post("/login", data={"token": token, "next": "/new", **more}, headers=ORIGIN)


def test_a_token_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "deep" / "token"
    tokens = []
    threads = [threading.Thread(target=lambda: tokens.append(find_or_make_token(path))) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(tokens) == 8
    assert len({*tokens, path.read_text(encoding="utf-8").strip()}) == 1
    assert len(tokens[0]) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["token"]


def test_a_token_that_others_can_read_or_that_is_none_is_refused(tmp_path):
    path = tmp_path / "token"
    find_or_make_token(path)
    path.chmod(0o644)
    with pytest.raises(FolderError, match=r"others can read the token in .* \(mode 644\); chmod 600"):
        find_or_make_token(path)
    path.chmod(0o600)
    path.write_text("short\n", encoding="utf-8")
    with pytest.raises(FolderError, match="holds no token"):
        find_or_make_token(path)


def test_a_session_ends_and_belongs_to_one_token():
    session = new_session(TOKEN, 1000.0)
    assert is_session(session, TOKEN, 1000.0 + SESSION_S - 1)
    assert not is_session(session, TOKEN, 1000.0 + SESSION_S)
    assert not is_session(session, "another-token-altogether", 1000.0)
    expiry, _, signature = session.partition(".")
    for forged in (f"{int(expiry) + 1}.{signature}", f"{expiry}.", "", ".", "x.y", f"{expiry}.{signature}0"):
        assert not is_session(forged, TOKEN, 1000.0)
    assert TOKEN not in session


def test_a_browser_is_sent_to_log_in_and_back(browser):
    answer = browser.http.get("/view/x?experiment=y")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fview%2Fx%3Fexperiment%3Dy")
    assert "Log in" in browser.http.get("/login").text
    assert log_in(browser, "wrong").status_code == 401
    answer = log_in(browser)
    assert (answer.status_code, answer.headers["location"]) == (303, "/new")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{cookie_name(TOKEN)}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert TOKEN not in cookie
    assert browser.http.get("/").status_code == 200
    assert browser.http.post("/logout", headers=ORIGIN).status_code == 303
    assert browser.http.get("/").status_code == 303


@pytest.mark.parametrize("target", ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere", "x", ""])
def test_a_login_leads_nowhere_else(browser, target):
    assert log_in(browser, next=target).headers["location"] == "/"


def test_guesses_at_the_login_are_slowed_down(browser):
    assert {log_in(browser, f"guess {number}").status_code for number in range(30)} == {401, 429}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (ORIGIN, 303),
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", **ORIGIN}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({}, 403),
    ],
)
def test_a_session_changes_something_from_the_service_s_own_page_only(browser, headers, status):
    log_in(browser)
    job = browser.client.submit(_line())
    answer = browser.http.post(f"/view/{job.id}/stop", headers=headers)
    assert answer.status_code == status
    assert (browser.http.get(f"/api/v1/searches/{job.id}").json()["state"] == "stopped") == (status == 303)


def _line():
    from search_spaces import exercise1_1stpart

    return exercise1_1stpart.experiments[0]


def test_without_a_token_only_this_machine_s_names_and_pages_are_heard(tmp_path):
    service = serve(tmp_path / "jobs", token=None)
    with service.http:
        search_id = service.start()
        assert service.http.get("/", headers={"Accept": "text/html"}).status_code == 200
        assert service.http.get("/login").headers["location"] == "/"
        for host in ("127.0.0.1:8300", "localhost:1", "[::1]:8300"):
            assert service.http.get("/health", headers={"Host": host}).status_code == 200
        for host in ("rebound.example", "127.0.0.1.example", ""):
            answer = service.http.get("/api/v1/searches", headers={"Host": host})
            assert (answer.status_code, "without a token" in problem_of(answer)) == (403, True)
        elsewhere = {"Origin": "http://elsewhere.example"}
        assert service.http.post(f"/api/v1/searches/{search_id}/stop", headers=elsewhere).status_code == 403
        # A form of another site can send text, and no JSON.
        answer = service.http.post("/api/v1/searches", content=b'{"space": "exercise1_1stpart"}',
                                   headers={"Content-Type": "text/plain"})  # fmt: skip
        assert answer.status_code == 422


def test_every_answer_forbids_scripts_and_frames_of_others(browser):
    log_in(browser)
    for path in ("/", "/health", "/api/v1/searches", "/none", "/static/page.js", "/api/v1/openapi.json"):
        headers = browser.http.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")


def test_no_page_has_anything_inline_or_from_elsewhere(browser):
    log_in(browser)
    job = browser.client.submit(_line())
    browser.leave(job.id)
    paths = ["/", "/login", "/new", "/new/exercise2.softmax", f"/view/{job.id}", f"/view/{job.id}/trial/t00001",
             f"/view/{job.id}/parallel", "/view/none"]  # fmt: skip
    for path in paths:
        page = browser.http.get(path).text
        assert not re.search(r"<script(?![^>]*\ssrc=\"/static/)|\son\w+=|\sstyle=|javascript:", page), path
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", page), path


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
                      ("0.0.0.0", False), ("192.168.1.2", False), ("::", False), ("localhost.example", False)],
)  # fmt: skip
def test_which_hosts_are_this_machine_alone(host, own):
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--host", "0.0.0.0", "--no-token"],
            "without a token the service listens on this machine alone; got",
        ),
        (["--port", "70000"], "--port is a number from 0 to 65535; got 70000"),
        (["--host", "no.such.host.invalid"], "nothing can listen at no.such.host.invalid"),
        (["--register", "json:dumps"], "--register takes an Experiment, or a list of them; json:dumps is of type"),
        (["--register", "no_such_module:x"], "no module 'no_such_module'"),
        (["--address", "ftp://head"], "a cluster's address is that of its dashboard"),
        (
            ["--storage", "s3://bucket/jobs"],
            "a token is kept on this machine, not in s3://bucket/jobs; name its file with",
        ),
        (["--reads-per-s", "0"], "--reads-per-s must be above 0; got 0"),
    ],
)
def test_the_verb_refuses_in_one_line(tmp_path, capsys, arguments, words):
    assert cli.main(["serve", "--storage", str(tmp_path / "jobs"), *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_without_the_extra_one_is_told_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['uvicorn'] = None; from tune_hpc import cli; "
        f"sys.exit(cli.main(['serve', '--storage', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        2, "tune-hpc: tune-hpc serve needs uvicorn, which is not installed: pip install 'tune-hpc[serve]'\n",
    )  # fmt: skip


def test_a_cluster_that_is_not_there_is_told_when_the_service_begins(tmp_path, capsys):
    warn_of_cluster(LocalClient(tmp_path / "jobs"))
    assert capsys.readouterr().err == ""
    warn_of_cluster(Client("http://127.0.0.1:9", storage=tmp_path / "jobs"))
    told = capsys.readouterr().err
    assert told.startswith(
        "tune-hpc: searches can be looked at, and not begun: no Ray cluster answers at http://127.0."
    )
    assert told.count("\n") == 1

"""The page in a headless Chromium: start, watch, stop, resume, extend, download, delete, log out."""

import os
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.service.processes import serving, wait_until

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TIMEOUT_MS = 120_000
MODULE = """
import time
from ray import tune
from tune_hpc import Experiment, Space

def descend(config, report, checkpoint):
    done = checkpoint.load() or 0
    for step in range(done + 1, config["steps"] + 1):
        time.sleep(0.1)
        if config["rate"] > 2 and step > 3:
            raise ValueError("the rate <is> too high")
        report(step, {"loss": 1 / (step * config["rate"]), "accuracy": 1 - 1 / (step + 1 / config["rate"])})
        checkpoint.save(step, lambda: step)

space = {"rate": tune.choice([0.1, 0.5, 1.0, 3.0]), "way": tune.choice(["up", "down"]), "steps": 150}
slow = Experiment(
    "slow", Space(space, keys={}), descend, metric="loss", mode="min", seeds=(), title="Slowly down",
    quick_values={"steps": 120},
)
"""


#: A folder for screenshots.
SCREENSHOTS = os.environ.get("TUNE_HPC_SCREENSHOTS")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with an experiment whose trials take a quarter of a minute."""
    with serving(tmp_path_factory.mktemp("browser"), MODULE) as service:
        yield service


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium with an empty profile."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as engine:
        context = engine.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, headless=True, args=ARGUMENTS,
            viewport={"width": 1200, "height": 900}, accept_downloads=True,
        )  # fmt: skip
        context.set_default_timeout(TIMEOUT_MS)
        yield context
        context.close()


@pytest.fixture(scope="module")
def page(service, browser):
    """A page of a user who has logged in; it records errors."""
    page = browser.new_page()
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    log_in(service, page)
    return page


def log_in(service, page):
    page.goto(f"{service.url}/")
    assert "/login?next=%2F" in page.url
    page.fill("#token", service.token)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{service.url}/")


def screenshot(page, name):
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)


@pytest.fixture
def search_id(service):
    """The latest search, which has ended; one is made if there is none."""
    if not service.api("/searches")["searches"]:
        search = service.api(
            "/searches", {"space": "slow", "quick": True, "set": {"rate": {"choice": [0.1, 0.5, 3.0]}}}
        )
        wait_until(lambda: not service.api(f"/searches/{search['id']}")["is_active"], TIMEOUT_MS / 1000)
    return service.api("/searches")["searches"][0]["id"]


POINTS = """async () => {
  const chart = await (await fetch(document.querySelector("[data-chart=curves]").dataset.url)).json();
  return chart.curves.reduce((sum, curve) => sum + curve.steps.length, 0);
}"""


def until(page, expression):
    """Wait until an expression is true; the page itself may not evaluate text, so this uses the debugger."""
    end = time.monotonic() + TIMEOUT_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(250)


def colored_pixels(page):
    """Return the number of colored pixels in the chart of the curves."""
    return page.evaluate(
        "() => { const canvas = document.querySelector('[data-chart=curves] canvas'); if (!canvas) return 0;"
        " const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data; let count = 0;"
        " for (let i = 0; i < all.length; i += 4) if (all[i + 3] && Math.max(all[i], all[i+1], all[i+2]) -"
        " Math.min(all[i], all[i+1], all[i+2]) > 60) count += 1; return count; }"
    )


def test_search_is_started_watched_stopped_resumed_and_downloaded(service, page, tmp_path):
    page.click("text=Start a search")
    page.click("text=Slowly down")
    page.check("input[name=quick]")
    page.fill('[id="p.rate"]', "0.1,0.5,3")
    until(page, "document.querySelector('#preview').innerText.includes('6 trials')")
    page.fill('[id="p.rate"]', "uniform(2, 1)")
    until(page, "document.querySelector('#preview').innerText.includes('lower bound of uniform must be below')")
    page.fill('[id="p.rate"]', "0.1,0.5,3")
    screenshot(page, "form")
    page.click("button:has-text('Start')")
    page.wait_for_url("**/view/slow-*")
    # A curve is drawn and grows, without a reload.
    page.evaluate("window.isTheSamePage = true")
    until(page, "document.querySelector('[data-chart=curves] canvas') !== null")
    first, colored = page.evaluate(POINTS), colored_pixels(page)
    assert first > 0
    assert colored > 0
    end = time.monotonic() + TIMEOUT_MS / 1000
    while page.evaluate(POINTS) < first + 20 or colored_pixels(page) == colored:
        assert time.monotonic() < end, "the curve does not grow"
        page.wait_for_timeout(500)
    assert page.evaluate("window.isTheSamePage") is True
    screenshot(page, "running")
    # Stop with the keyboard, resume with the mouse.
    page.focus("button:has-text('Stop')")
    page.keyboard.press("Enter")
    page.wait_for_selector("#summary[data-state=stopped]")
    screenshot(page, "stopped")
    page.click("button:has-text('Resume')")
    page.wait_for_selector("#summary[data-state=running]")
    page.wait_for_selector("#summary[data-state=finished]")
    page.wait_for_selector("text=2 failed")
    # The table.
    page.fill("#filter", "status=failed")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#trials tbody tr').length === 2")
    page.click("#trials tbody tr a")
    page.wait_for_selector("text=the rate <is> too high")
    assert "Traceback" in page.inner_text("pre")
    screenshot(page, "trial")
    page.go_back()
    page.wait_for_selector("#sort-rate")
    page.click("#sort-rate")
    page.wait_for_selector("th[aria-sort=ascending] #sort-rate")
    page.click("#sort-rate")
    page.wait_for_selector("th[aria-sort=descending] #sort-rate")
    assert page.evaluate("document.activeElement.id") == "sort-rate"
    # The files.
    with page.expect_download() as download:
        page.click("section:has(#downloads-title) a:has-text('Parquet') >> nth=0")
    download.value.save_as(tmp_path / "trials.parquet")
    trials = pd.read_parquet(tmp_path / "trials.parquet")
    counts = trials["status"].value_counts().to_dict()
    assert {status: count for status, count in counts.items() if count} == {"finished": 4, "failed": 2}
    assert set(trials.loc[trials["status"] == "finished", "steps_run"]) == {120}
    screenshot(page, "finished")
    page.click("text=Report")
    page.wait_for_selector("text=Slowly down")
    page.go_back()
    assert page.problems == []


def test_random_search_is_extended_and_deleted(service, page):
    body = {"space": "slow", "quick": True, "searcher": "random", "num_samples": 1, "set": {"steps": 3}}
    search = service.api("/searches", body)["id"]
    page.goto(f"{service.url}/view/{search}")
    page.wait_for_selector("#summary[data-state=finished]")
    page.fill("#more", "2")
    page.click("button:has-text('Extend')")
    page.wait_for_selector("text=3 of 3")
    page.wait_for_selector("#summary[data-state=finished]")
    page.wait_for_selector("text=attempt 2")
    page.click("details.delete summary")
    page.wait_for_timeout(500)
    screenshot(page, "delete")
    page.click("button:has-text('Delete the search')")
    page.wait_for_url(f"{service.url}/")
    assert search not in page.content()
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_pages_fit_a_phone_and_texts_have_contrast(service, search_id, page, width, scheme):
    page.set_viewport_size({"width": width, "height": 740})
    page.emulate_media(color_scheme=scheme)
    for path in ("/", "/new", "/new/exercise3.open", f"/view/{search_id}", f"/view/{search_id}/trial/t00000"):
        page.goto(service.url + path)
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate((Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")) == [], path
        screenshot(page, f"{width}-{scheme}-{path.strip('/').replace('/', '-').replace(search_id, 'search') or 'list'}")


def test_keyboard_reaches_everything_and_the_focus_is_visible(service, search_id, page):
    page.set_viewport_size({"width": 1200, "height": 900})
    page.goto(f"{service.url}/view/{search_id}")
    page.wait_for_selector(".parallel")
    expected = page.evaluate(
        "[...document.querySelectorAll('a[href], button, input:not([type=hidden]), select, summary')]"
        ".filter((element) => element.checkVisibility()).length"
    )
    reached = set()
    for _ in range(3 * expected):
        page.keyboard.press("Tab")
        index, is_visible = page.evaluate(
            "() => { const focus = document.activeElement; const all = [...document.querySelectorAll('*')];"
            " const outline = getComputedStyle(focus).outlineStyle;"
            " return [all.indexOf(focus), focus === document.body || outline !== 'none']; }"
        )
        assert is_visible
        reached.add(index)
    assert len(reached) >= expected


def test_banner_is_shown_while_the_service_does_not_answer(service, page):
    page.goto(f"{service.url}/")
    _, port = service.address
    service.kill()
    page.evaluate("for (let i = 0; i < 3; i += 1) document.body.dispatchEvent(new CustomEvent('tick'))")
    page.wait_for_selector("#lost:not([hidden])")
    service.start(port)
    page.evaluate("document.body.dispatchEvent(new CustomEvent('tick'))")
    page.wait_for_selector("#lost", state="hidden")


def test_back_after_logout_shows_nothing(service, search_id, page):
    page.goto(f"{service.url}/view/{search_id}")
    page.wait_for_selector("#summary")
    page.click("text=Log out")
    page.wait_for_url("**/login")
    page.go_back()
    page.wait_for_url("**/login?next=*")
    assert search_id not in page.inner_text("body")
    screenshot(page, "logged-out")
    log_in(service, page.context.new_page())

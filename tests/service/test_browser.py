"""The page as a person uses it, in a headless Chromium: a search is started, watched, stopped, resumed, downloaded."""

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


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with an experiment whose trials take a quarter of a minute."""
    with serving(tmp_path_factory.mktemp("browser"), MODULE) as one:
        yield one


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium with an empty profile; without one, or without Playwright, there is nothing to test."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the page is looked at with Playwright")
    if CHROMIUM is None:
        pytest.skip("the page is looked at in Chromium, which is not installed")
    with playwright.sync_playwright() as one:
        context = one.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, headless=True, args=ARGUMENTS,
            viewport={"width": 1200, "height": 900}, accept_downloads=True,
        )  # fmt: skip
        context.set_default_timeout(TIMEOUT_MS)
        yield context
        context.close()


@pytest.fixture(scope="module")
def page(service, browser):
    """A page of somebody who has logged in; what goes wrong in it is noted."""
    page = browser.new_page()
    page.problems = []
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(f"{service.url}/")
    assert "/login?next=%2F" in page.url
    page.fill("#token", service.token)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{service.url}/")
    return page


@pytest.fixture
def search_id(service):
    """The latest search, which has ended; one is made where no test has made one in this process."""
    if not service.ask("/api/v1/searches")["searches"]:
        made = service.ask(
            "/api/v1/searches", {"space": "slow", "quick": True, "set": {"rate": {"choice": [0.1, 0.5, 3.0]}}}
        )
        wait_until(lambda: not service.ask(f"/api/v1/searches/{made['id']}")["is_active"], TIMEOUT_MS / 1000)
    return service.ask("/api/v1/searches")["searches"][0]["id"]


POINTS = """async () => {
  const told = await (await fetch(document.querySelector("[data-chart=curves]").dataset.url)).json();
  return told.curves.reduce((sum, one) => sum + one.steps.length, 0);
}"""


def until(page, holds):
    """Wait until an expression holds in the page, which lets nobody evaluate text but the debugger."""
    end = time.monotonic() + TIMEOUT_MS / 1000
    while not page.evaluate(holds):
        assert time.monotonic() < end, f"it never came to {holds}"
        page.wait_for_timeout(250)


def drawn(page):
    """Return how many pixels of the curves' chart have colour."""
    return page.evaluate(
        "() => { const canvas = document.querySelector('[data-chart=curves] canvas'); if (!canvas) return 0;"
        " const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data; let count = 0;"
        " for (let i = 0; i < all.length; i += 4) if (all[i + 3] && Math.max(all[i], all[i+1], all[i+2]) -"
        " Math.min(all[i], all[i+1], all[i+2]) > 60) count += 1; return count; }"
    )


def test_a_search_is_started_watched_stopped_resumed_and_downloaded(service, page, tmp_path):
    page.click("text=Start a search")
    page.click("text=Slowly down")
    page.check("input[name=quick]")
    page.fill('[id="p.rate"]', "0.1,0.5,3")
    until(page, "document.querySelector('#preview').innerText.includes('6 trials')")
    page.fill('[id="p.rate"]', "uniform(2, 1)")
    until(page, "document.querySelector('#preview').innerText.includes('lower bound below')")
    page.fill('[id="p.rate"]', "0.1,0.5,3")
    page.click("button:has-text('Start')")
    page.wait_for_url("**/view/slow-*")
    # A curve is drawn and grows, without a reload.
    page.evaluate("window.isTheSamePage = true")
    until(page, "document.querySelector('[data-chart=curves] canvas') !== null")
    first, colour = page.evaluate(POINTS), drawn(page)
    assert first > 0
    assert colour > 0
    end = time.monotonic() + TIMEOUT_MS / 1000
    while page.evaluate(POINTS) < first + 20 or drawn(page) == colour:
        assert time.monotonic() < end, "the curve does not grow"
        page.wait_for_timeout(500)
    assert page.evaluate("window.isTheSamePage") is True
    # Stopped by the keyboard, resumed by the mouse.
    page.focus("button:has-text('Stop')")
    page.keyboard.press("Enter")
    page.wait_for_selector("#summary[data-state=stopped]")
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
    page.go_back()
    page.wait_for_selector("#sort-rate")
    page.click("#sort-rate")
    page.wait_for_selector("th[aria-sort=ascending] #sort-rate")
    page.click("#sort-rate")
    page.wait_for_selector("th[aria-sort=descending] #sort-rate")
    assert page.evaluate("document.activeElement.id") == "sort-rate"
    # The files.
    with page.expect_download() as begun:
        page.click("section:has(#downloads-title) a:has-text('Parquet') >> nth=0")
    begun.value.save_as(tmp_path / "trials.parquet")
    trials = pd.read_parquet(tmp_path / "trials.parquet")
    assert trials["status"].value_counts().to_dict() == {"finished": 4, "failed": 2, "stopped": 0, "diverged": 0,
                                                         "running": 0}  # fmt: skip
    assert set(trials.loc[trials["status"] == "finished", "steps_run"]) == {120}
    page.click("text=Report")
    page.wait_for_selector("text=Slowly down")
    page.go_back()
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_overflows_on_a_phone_and_every_text_can_be_read(service, search_id, page, width, scheme):
    page.set_viewport_size({"width": width, "height": 740})
    page.emulate_media(color_scheme=scheme)
    for path in ("/", "/new", "/new/exercise3.open", f"/view/{search_id}", f"/view/{search_id}/trial/t00000"):
        page.goto(service.url + path)
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate((Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")) == [], path


def test_all_can_be_reached_with_the_keyboard_and_the_focus_is_seen(service, search_id, page):
    page.set_viewport_size({"width": 1200, "height": 900})
    page.goto(f"{service.url}/view/{search_id}")
    page.wait_for_selector(".parallel")
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button, input:not([type=hidden]), select, summary')]"
        ".filter((one) => one.getClientRects().length).length"
    )
    reached = set()
    for _ in range(3 * wanted):
        page.keyboard.press("Tab")
        place, is_seen = page.evaluate(
            "() => { const one = document.activeElement; const all = [...document.querySelectorAll('*')];"
            " return [all.indexOf(one), one === document.body || getComputedStyle(one).outlineStyle !== 'none']; }"
        )
        assert is_seen
        reached.add(place)
    assert len(reached) >= wanted


def test_a_service_that_is_gone_is_told_and_then_found_again(service, page):
    page.goto(f"{service.url}/")
    port = int(service.url.rpartition(":")[2])
    service.kill()
    page.evaluate("for (let i = 0; i < 3; i += 1) document.body.dispatchEvent(new CustomEvent('tick'))")
    page.wait_for_selector("#lost:not([hidden])")
    service.start(port)
    page.evaluate("document.body.dispatchEvent(new CustomEvent('tick'))")
    page.wait_for_selector("#lost", state="hidden")

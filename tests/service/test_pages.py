"""HTML pages: lists of searches and trials, actions, and the form that starts a search."""

import html
import re

import pytest

from search_spaces import exercise3
from tests.analysis.synthetic_results import searched
from tests.service.conftest import RANDOM, REGISTERED
from tune_hpc.errors import TuneHpcError
from tune_hpc.service import experiments
from tune_hpc.service.experiments import Registry
from tune_hpc.service.pages import _table_context, _trial_context
from tune_hpc.service.schemas import TrialsQuery
from tune_hpc.storage.trial_file import config_to_row

PAGE = {"Accept": "text/html", "Origin": "http://127.0.0.1"}


def text_of(page):
    """Return the text of a page, without tags."""
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))


def test_empty_list_links_to_the_form(service):
    page = service.http.get("/", headers=PAGE).text
    assert "This storage has no searches yet." in text_of(page)
    assert 'href="/new"' in page


def test_list_has_state_progress_and_best_value(service, search_id):
    service.drive(search_id)
    page = service.http.get("/", headers=PAGE).text
    for part in ("running", "3 of 3 trials", "best training loss 0.0001", search_id):
        assert part in text_of(page)
    assert 'data-active="yes"' in page
    assert "No search is lost." in text_of(service.http.get("/?state=lost", headers=PAGE).text)


def test_pages_show_none_and_texts_apart():
    configs = [{"x": None, "y": 0.5}, {"x": 1, "y": 0.25}, {"x": "1", "y": 0.25}]
    rows = [config_to_row(config) | {"loss": float(number)} for number, config in enumerate(configs)]
    results = searched({"x": {}, "y": {}}, rows)
    table = _table_context(results, TrialsQuery(), "/", None)
    names = [head["name"] for head in table["heads"]]
    assert names == ["trial_id", "status", "x", "y", "loss"]
    assert [row[2] for row in table["rows"]] == ["None", "1", '"1"']
    assert _trial_context(results, "t00000")["config"] == [("x", "None"), ("y", "0.5")]
    assert _trial_context(results, "t00000")["measured"] == [("loss", "0")]


def test_list_has_pages(service):
    for _ in range(53):
        service.start()
    page = service.http.get("/", headers=PAGE).text
    assert page.count('<li id="row-') == 50
    assert "1 to 50 of 53" in text_of(page)
    assert service.http.get("/?offset=50", headers=PAGE).text.count('<li id="row-') == 3


@pytest.mark.parametrize(
    ("state", "buttons"),
    [
        (None, ["Stop"]),
        ("stopped", ["Resume", "Extend", "Delete the search"]),
        ("finished", ["Extend", "Delete the search"]),
        ("failed", ["Resume", "Extend", "Delete the search"]),
    ],
)
def test_search_has_the_buttons_that_its_state_allows(service, state, buttons):
    search_id = service.start({"space": "line.random"})
    service.write_results(search_id)
    if state:
        service.drive(search_id, state)
    page = service.http.get(f"/view/{search_id}/summary", headers=PAGE).text
    assert re.findall(r"<button[^>]*>([\w ]+)", page) == buttons
    assert ('data-active="yes"' in page) == (state is None)


def test_action_changes_the_search_or_shows_the_problem(service):
    search_id = service.start({"space": "line.random"})
    service.drive(search_id, "finished")
    assert service.http.post(f"/view/{search_id}/extend", data={"num_samples": "7"}, headers=PAGE).status_code == 303
    assert service.launcher.started[-1][2:] == ("extend", {"num_samples": 7, "experiment": "line.random"})
    answer = service.http.post(f"/view/{search_id}/extend", data={"num_samples": "7"}, headers=PAGE)
    assert answer.status_code == 409
    assert "is pending; stop it first" in text_of(answer.text)
    answer = service.http.post(f"/view/{search_id}/extend", data={"num_samples": "-1"}, headers=PAGE)
    assert "num_samples: Input should be greater than or equal to 1; got '-1'" in text_of(answer.text)
    assert service.http.post(f"/view/{search_id}/explode", headers=PAGE).status_code == 404
    assert service.http.post(f"/view/{search_id}/stop", headers=PAGE).status_code == 303
    assert service.state(search_id) == "stopped"
    answer = service.http.post(f"/view/{search_id}/delete", headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert not (service.storage / search_id).exists()


def test_table_sorts_filters_and_pages(service):
    search_id = service.start()
    service.write_results(search_id, num_trials=120)
    page = service.http.get(f"/view/{search_id}/table", headers=PAGE).text
    # The default order is from the best to the worst.
    assert re.findall(r'<tr id="trial-(t\d+)"', page)[:2] == ["t00000", "t00001"]
    assert 'aria-sort="ascending"><button class="sort" hx-get="/view' in page
    assert "1 to 50 of 120 trials" in text_of(page)
    last = service.http.get(f"/view/{search_id}/table?sort=-learning_rate&offset=100", headers=PAGE).text
    assert re.findall(r'<tr id="trial-(t\d+)"', last)[-1] == "t00000"
    assert 'aria-sort="descending"' in last
    failed = service.http.get(f"/view/{search_id}/table?filter=status%3Dfailed", headers=PAGE).text
    assert "1 to 1 of 1 trials that pass the filter, 120 in all" in text_of(failed)
    none = service.http.get(f"/view/{search_id}/table?filter=status%3Drunning", headers=PAGE).text
    assert "None of the 120 trials passes this filter." in text_of(none)
    # The request of a browser without scripts.
    whole = service.http.get(f"/view/{search_id}?filter=status%3Dfailed", headers=PAGE).text
    assert 'name="filter" value="status=failed"' in whole
    assert "1 to 1 of 1 trials that pass the filter" in text_of(whole)
    odd = service.http.get(f"/view/{search_id}/table?filter=nonsense", headers=PAGE)
    assert odd.status_code == 200
    assert "a filter reads COLUMN OPERATOR VALUE" in text_of(odd.text)
    assert "of 120 trials" in text_of(odd.text)


def test_trial_page_has_configuration_results_and_log(service, search_id):
    page = text_of(service.http.get(f"/view/{search_id}/trial/t00001", headers=PAGE).text)
    assert "Trial t00001 failed" in page
    assert "learning rate 0.00316" in page
    assert "ValueError: <b>odd</b>" in page
    assert service.http.get(f"/view/{search_id}/trial/t9", headers=PAGE).status_code == 404
    assert "The trial wrote no output." in service.http.get(f"/view/{search_id}/trial/t00000", headers=PAGE).text


def test_browser_gets_an_error_page_and_a_program_a_problem(service):
    page = service.http.get("/view/none", headers=PAGE)
    assert (page.status_code, "Not found" in page.text) == (404, True)
    assert service.http.get("/view/none", headers={"Accept": "*/*"}).json()["type"].endswith(":not-found")


def test_parallel_coordinates_have_an_axis_per_parameter(service):
    search_id = service.start()
    service.write_results(search_id, num_trials=20)
    page = service.http.get(f"/view/{search_id}/parallel", headers=PAGE).text
    assert page.count("<path") == 19
    assert page.count("<line") == 2
    assert all(text in page for text in ("learning rate", "training loss", "of 19 configurations"))
    assert not re.search(r"nan|inf", re.sub(r"<title>.*?</title>", "", page.lower().replace("training", "")))


@pytest.mark.parametrize("experiment", REGISTERED, ids=lambda experiment: experiment.name)
def test_unchanged_form_requests_the_registered_experiment(service, experiment):
    page = service.http.get(f"/new/{experiment.name}", headers=PAGE).text
    form = {}
    for name, value in re.findall(r'<input [^>]*name="([^"]+)"[^>]*?value="([^"]*)"', page):
        form.setdefault(html.unescape(name), []).append(html.unescape(value))
    form.pop("quick")
    request = experiments.read_form(experiment, form)
    assert request.set == {}
    assert Registry(REGISTERED).build_experiment(request) == experiment


def test_form_starts_its_search_once(service):
    page = service.http.get("/new/exercise2.softmax", headers=PAGE).text
    key = re.search(r'name="key" value="([^"]+)"', page).group(1)
    form = {"key": key, "quick": "yes", "c.optimizer": ["adam", "ftrl"], "p.learning_rate": "loguniform(1e-4, 1)",
            "p.steps": "50", "num_samples": "6", "seeds": "2", "fuse": "off", "no_reuse": "yes"}  # fmt: skip
    assert '<input type="checkbox" id="no_reuse" name="no_reuse" value="yes">' in page
    answers = [service.http.post("/new/exercise2.softmax", data=form, headers=PAGE) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    assert len(service.launcher.started) == 1
    changed = service.http.post("/new/exercise2.softmax", data=form | {"seeds": "1"}, headers=PAGE)
    assert changed.status_code == 422
    assert f'name="key" value="{key}"' not in changed.text
    search_id = answers[0].headers["location"].removeprefix("/view/")
    (experiment,) = service.client.folder(search_id).read()["experiments"]
    assert service.client.folder(search_id).read()["options"] == {"fuse": "off", "no_reuse": True}
    assert experiment["space"]["optimizer"] == {"choice": ["adam", "ftrl"]}
    assert experiment["space"]["learning_rate"] == {"loguniform": [1e-4, 1]}
    assert (experiment["space"]["steps"], experiment["num_samples"], experiment["seeds"]) == (50, 6, [0, 1])
    preview = service.http.get("/new/exercise2.softmax/preview", params=form, headers=PAGE).text
    assert "12 trials (random, 2 seeds)" in preview


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"p.learning_rate": "-1"}, "learning_rate must be a number above 0; got -1"),
        ({"p.learning_rate": "__import__('os')"}, "learning_rate: there is no domain '__import__'"),
        ({"p.learning_rate": "uniform(1, 0)"}, "the lower bound of uniform must be below the upper one"),
        ({"seeds": "many"}, "seeds: Input should be a valid integer, unable to parse string as an integer; got 'many'"),
        ({"seeds": "0"}, "seeds: Input should be greater than or equal to 1; got '0'"),
        ({"searcher": "magic"}, "searcher must be one of grid"),
        ({"fuse": "often"}, "fuse"),
        ({"target": "inf"}, "target: Input should be a finite number"),
    ],
)
def test_form_with_an_error_returns_with_its_values_and_the_problem(service, form, words):
    answer = service.http.post("/new/line.random", data={"p.steps": "77", **form}, headers=PAGE)
    assert answer.status_code == 422
    assert words in text_of(answer.text)
    assert 'value="77"' in answer.text
    assert service.launcher.started == []
    preview = service.http.get("/new/line.random/preview", params=form, headers=PAGE)
    assert (preview.status_code, "problem-text" in preview.text) == (200, True)


def test_each_case_of_a_condition_can_be_changed():
    space = exercise3.open.space
    (field,) = [one for one in experiments.fields(exercise3.open, {}) if one.name == "learning_rate"]
    assert [(where, text) for _, where, text in field.cases] == [
        ("where optimizer is adam", "loguniform(0.0003, 0.005)"),
        ("where optimizer is rmsprop", "loguniform(0.0001, 0.003)"),
        ("elsewhere", "loguniform(0.01, 0.2)"),
    ]
    unchanged = {key: [text] for one in experiments.fields(exercise3.open, {}) for key, _, text in one.cases}
    ticked = {f"c.{one.name}": [word for word, _ in one.boxes] for one in experiments.fields(exercise3.open, {})}
    assert experiments.read_form(exercise3.open, {**ticked, **unchanged}).set == {}
    changed = {**ticked, **unchanged, field.cases[1][0]: ["0.001, 0.002"], field.cases[2][0]: [""]}
    request = experiments.read_form(exercise3.open, changed)
    before = space.to_json()["learning_rate"]["cases"]
    assert request.set == {
        "learning_rate": {"cases": [before[0], {**before[1], "value": {"choice": [0.001, 0.002]}}, before[2]]}
    }
    new = Registry([exercise3.open]).build_experiment(request).space
    assert new.describe("learning_rate") == (
        "loguniform(0.0003, 0.005) where optimizer is adam; choice(0.001, 0.002) where optimizer is rmsprop; "
        "loguniform(0.01, 0.2) elsewhere"
    )
    with pytest.raises(TuneHpcError, match="learning_rate must be a number above 0; got -1"):
        Registry([exercise3.open]).build_experiment(
            experiments.read_form(exercise3.open, {**changed, field.cases[0][0]: ["-1"]})
        )
    (again,) = [one for one in experiments.fields(exercise3.open, changed) if one.name == "learning_rate"]
    assert [text for _, _, text in again.cases][1:] == ["0.001, 0.002", "loguniform(0.01, 0.2)"]


def test_form_without_a_selected_word_is_refused(service):
    answer = service.http.post("/new/exercise2.softmax", data={"p.steps": "5"}, headers=PAGE)
    assert "optimizer: select at least one of gradient_descent" in text_of(answer.text)


def test_form_with_too_many_fields_is_refused(service):
    fields = "&".join(f"f{number}=1" for number in range(600))
    assert "at most 500 fields" in service.http.get(f"/new/line.random/preview?{fields}", headers=PAGE).text
    answer = service.http.post("/new/line.random", content=fields, headers=PAGE)
    assert (answer.status_code, "at most 500 fields" in text_of(answer.text)) == (400, True)


def test_unknown_space_has_no_form(service):
    assert service.http.get("/new/none", headers=PAGE).status_code == 404
    assert service.http.post("/new/none", data={"key": "k"}, headers=PAGE).status_code == 404


def test_every_file_of_a_page_exists(service):
    page = service.http.get("/", headers=PAGE).text
    files = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
    assert len(files) == 8
    for path in files:
        answer = service.http.get(path)
        assert (answer.status_code, len(answer.content) > 200) == (200, True)
    assert service.http.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_text_of_a_form_is_never_evaluated():
    for text in ("choice(os.system)", "lambda: 1", "{'choice': [1]}", "eval(1)"):
        with pytest.raises(TuneHpcError):
            Registry(REGISTERED).build_experiment(experiments.read_form(RANDOM, {"p.learning_rate": [text]}))

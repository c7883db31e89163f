"""References to objects, and the messages on wrong ones."""

import functools
import json.decoder
import sys

import pytest

from tune_hpc.errors import InvalidExperimentError, UnknownNameError
from tune_hpc.search.object_reference import load_entry_point, load_reference, reference_to


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("my_search_")]:
        del sys.modules[name]


def test_reference_is_loaded():
    assert load_reference("json.decoder:JSONDecoder") is json.decoder.JSONDecoder


def test_module_in_the_working_directory_is_found(write_module):
    write_module("my_search_a", "def train(config, report):\n    return 1\n")
    assert load_reference("my_search_a:train")({}, None) == 1


def test_installed_modules_take_precedence(write_module):
    write_module("json", "loads = None\n")
    assert load_reference("json:loads") is json.loads


@pytest.mark.parametrize("text", ["json", ":loads", "json:", "", ":", ".json:loads", "a..b:c", "json.:loads"])
def test_malformed_references_are_rejected(text):
    with pytest.raises(UnknownNameError, match=r"is not a reference; use the form package\.module:attribute"):
        load_reference(text)


def test_message_on_a_missing_module_has_the_searched_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=rf"no module 'no_such_thing', neither installed nor in {tmp_path}"):
        load_reference("no_such_thing:train")
    with pytest.raises(UnknownNameError, match=r"no module 'json\.nothing', neither installed"):
        load_reference("json.nothing:train")
    with pytest.raises(UnknownNameError, match="no module 'a/b'"):
        load_reference("a/b:train")


@pytest.mark.parametrize(
    ("text", "proposal"),
    [
        ("my_search.py:train", "my_search:train"),
        ("./my_package/search.py:train", "my_package.search:train"),
        ("/home/search.py:", "home.search:NAME"),
    ],
)
def test_message_on_a_file_name_proposes_the_module(text, proposal):
    with pytest.raises(UnknownNameError, match=f"names a file; name the module: {proposal}$"):
        load_reference(text)


def test_message_names_a_missing_dependency(write_module):
    write_module("my_search_b", "import no_such_dependency\n")
    with pytest.raises(UnknownNameError, match="my_search_b needs the module no_such_dependency, which is"):
        load_reference("my_search_b:train")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (\n", r"my_search_c cannot be imported: .*SyntaxError: '\(' was never closed"),
        ("\n1 / 0\n", r"my_search_c cannot be imported: ZeroDivisionError: division by zero \(my_search_c.py line 2\)"),
        ("import sys\nsys.exit(3)\n", r"cannot be imported: SystemExit: 3 \(my_search_c.py line 2\)"),
        ("from json import nothing\n", r"cannot be imported: ImportError: cannot import name 'nothing' .* line 1\)"),
    ],
)
def test_message_on_a_failed_import_has_the_line(write_module, source, message):
    write_module("my_search_c", source)
    with pytest.raises(UnknownNameError, match=message) as caught:
        load_reference("my_search_c:train")
    assert "\n" not in str(caught.value)


def test_message_on_a_missing_attribute_lists_the_others(write_module):
    write_module("my_search_d", "import os\n_hidden = 1\ndef train(config, report): ...\ndef search(): ...\n")
    with pytest.raises(UnknownNameError, match=r"my_search_d has no 'tran'; it has train, search$"):
        load_reference("my_search_d:tran")
    write_module("my_search_e", "")
    with pytest.raises(UnknownNameError, match=r"my_search_e has no 'train'; it is empty$"):
        load_reference("my_search_e:train")


def test_list_of_attributes_is_truncated():
    with pytest.raises(UnknownNameError, match=r", \.\.\.$") as caught:
        load_reference("numpy:nothing")
    assert len(str(caught.value)) < 500


def test_reference_of_a_function_can_be_loaded():
    assert reference_to(json.loads) == "json:loads"
    assert reference_to("json:loads") == "json:loads"
    assert load_reference(reference_to(json.loads)) is json.loads


@pytest.mark.parametrize("target", [3, None, functools.partial(json.loads)])
def test_object_without_a_name_is_rejected(target):
    with pytest.raises(InvalidExperimentError, match=r"a trainable is a function .* or package\.module:function; got"):
        reference_to(target)


def test_entry_point_is_loaded_by_its_name():
    from tune_hpc.scaling.distributed_trial import train

    assert load_entry_point("tune_hpc.trainables", "distributed") is train
    with pytest.raises(UnknownNameError, match=r"no entry point 'other' in the group tune_hpc\.trainables"):
        load_entry_point("tune_hpc.trainables", "other")

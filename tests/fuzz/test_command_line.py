"""Values on the command line and in search files: accepted with the value that was written, or one line and code 2."""

import argparse
import contextlib
import io
import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.profile import check_message, examples
from tune_hpc.cli import main
from tune_hpc.cli.main import _parser
from tune_hpc.cli.options import OVERRIDES, RUN_OPTIONS, parse_duration
from tune_hpc.cli.selection import find_experiments
from tune_hpc.errors import InvalidSpaceError, TuneHpcError
from tune_hpc.search.space.parsing import parse_parameter, parse_settings
from tune_hpc.search.space.space import Space

ROOT = Path(__file__).parents[2]
#: Texts that a shell can pass; no path leads out of the working folder.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=20)
NUMBERS = st.one_of(
    st.integers().map(str), st.floats().map(repr), st.integers(-(10**30), 10**30).map(str), st.sampled_from([
        "inf", "-inf", "nan", "1e400", "-1", "0", "1_000", "0x10", "1e-400", "٣", " 7 ", "9" * 5000, "1" + "0" * 30,
        "1is", "--1", "1.0", "true", "",
    ]),
)  # fmt: skip
SYNTAX = st.lists(
    st.sampled_from([
        "uniform", "loguniform", "choice", "randint", "qloguniform", "(", ")", "[", "]", "{", "}", ",", "=", "'", '"',
        "a", "b", "1", "1e400", "0x", "-", "+", "1_0", "_", " ", "None", "nan", "x", "\\", "\n", "1if 1else 2", "&",
        ":", "1j", "b'a'", "...",
    ]), max_size=8,
).map("".join)  # fmt: skip
TEXTS = WORDS | NUMBERS | SYNTAX
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=5
)


class Started(Exception):
    """A run that would start, with its options."""


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory):
    """Work in an empty folder; launch nothing."""
    from tune_hpc.jobs import launch
    from tune_hpc.report import report
    from tune_hpc.search import runner
    from tune_hpc.service import connection

    original = launch.launch
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("command_line"))

        def check(experiments, folders, **options):
            original(experiments, folders, **options | {"check_only": True})
            if not options.get("check_only"):
                raise Started(experiments, options)

        def start(*arguments):
            raise Started(*arguments)

        # A page takes a second.
        patch.setattr(report, "write_report", lambda results, page, *arguments, **options: page)
        patch.setattr(launch, "launch", check)
        patch.setattr(runner, "_run", start)
        patch.setattr(connection, "listen", start)
        shutil.copytree(ROOT / "docs" / "results" / "exercise1_1stpart", "results")
        Path("jobs").mkdir(mode=0o700)
        yield Path.cwd()


def call(arguments: list[str]) -> tuple[int, str, tuple | None]:
    """Return exit code and standard error of a command, and experiments and options of a run that would start."""
    errors, started = io.StringIO(), None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
        except Started as error:
            code, started = 0, error.args
    return code, errors.getvalue(), started


def check_rejected(code: int, errors: str) -> None:
    assert code == 2, (code, errors)
    assert errors.count("\n") == 1, errors
    assert errors.endswith("\n")


@examples(150)
@given(TEXTS)
@example("1if 1else 2")
def test_setting_is_parsed_or_rejected_without_a_warning(text):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            parameter = parse_parameter("x", text)
        except TuneHpcError as error:
            check_message(error)
        else:
            assert Space({"x": parameter}) == Space.from_json(json.loads(json.dumps({"x": parameter.to_json()})))
    # The garbage collector may warn of an object of another test.
    assert not [warning for warning in found if issubclass(warning.category, SyntaxWarning | DeprecationWarning)]


@examples(100)
@given(SCALARS)
@example('",')
@example('\\",')
def test_constant_in_the_syntax_of_json_is_that_value(value):
    fits = -(2**63) <= value < 2**63 if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)
    if not fits:
        with pytest.raises(InvalidSpaceError, match="must be finite and fit into 64 bits"):
            parse_parameter("x", json.dumps(value))
    else:
        assert json.dumps(parse_parameter("x", json.dumps(value)).values[0]) == json.dumps(value)


@examples(100)
@given(st.lists(TEXTS, max_size=3))
def test_settings_are_parsed_or_rejected(texts):
    try:
        Space(parse_settings(texts))
    except TuneHpcError as error:
        check_message(error)


@examples(150)
@given(TEXTS)
@example("9" * 400 + "d")
def test_duration_is_parsed_or_rejected(text):
    try:
        assert isinstance(parse_duration(text), float)
    except argparse.ArgumentTypeError as error:
        check_message(error)


@examples(60)
@given(st.sampled_from([*RUN_OPTIONS.values(), *OVERRIDES.values()]), TEXTS)
@example(RUN_OPTIONS["max_concurrent"], "--")
@example(RUN_OPTIONS["fuse"], "9" * 5000)
@example(OVERRIDES["budget"], "9" * 5000)
@example(RUN_OPTIONS["trial_time_limit_s"], "inf")
@example(OVERRIDES["seeds"], "9" * 20)
def test_option_of_a_run_is_rejected_or_has_the_value_that_was_written(working_folder, option, text):
    arguments = [option.flag] if option.hint is bool else [f"{option.flag}={text}"]
    code, errors, started = call(["run", "exercise1_1stpart", *arguments])
    if started is None:
        check_rejected(code, errors)
        return
    experiments, options = started
    assert errors == ""
    if option.name in RUN_OPTIONS and option.number and not option.is_open:
        assert options[option.name] == (parse_duration if option.is_duration else option.number)(text)
        assert math.isfinite(options[option.name])
    if option.name == "seeds":
        assert {len(one.seeds) for one in experiments} == {int(text)}


#: Commands with the flags that take a value; ``-`` stands for an argument.
COMMANDS = {
    "show": (["show", "results"], ["-n", "--metric", "--mode"]),
    "show folder": (["show"], ["-"]),
    "compare": (["compare", "results", "results"], ["--by", "--metric", "-"]),
    "report": (["report"], ["-"]),
    "export": (["export", "results"], ["--to"]),
    "list": (["list"], ["-"]),
    "data": (["data"], ["-"]),
    "run": (["run"], ["-", "--command"]),
    "run command": (["run", "--command=p {x}", "--set=x=1"], ["--pattern", "--from", "--set"]),
    "scale": (
        ["scale", "--quick"],
        ["--workers", "--mode", "--repeats", "--timed-steps", "--options", "--max-restarts", "--set"],
    ),
    "slurm": (
        ["slurm", "exercise1_1stpart", "--time=10"],
        ["--time", "--nodes", "--gpus-per-node", "--cpus-per-node", "--memory", "--partition", "--account", "--warning",
         "--max-requeues", "--job-name", "--sbatch", "--setup", "--environment"],
    ),
    "resume": (["resume", "results", "--no-report"],
    [one.flag for one in RUN_OPTIONS.values() if one.hint is not bool]),
    "resume folder": (["resume", "--storage=jobs", "--no-report"], ["-"]),
    "extend": (["extend", "results", "--local", "--num-samples=1"], ["--num-samples"]),
    "serve": (
        ["serve", "--storage=jobs"],
        ["--port", "--reads-per-s", "--changes-per-s", "--root-path", "--behind-proxy", "--register", "--host"],
    ),
    **{name: ([name, "--storage=jobs"], ["-"]) for name in ("status", "logs", "stop", "fetch", "delete")},
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@examples(6)
@given(st.data(), TEXTS)
def test_command_works_or_rejects_its_value(working_folder, command, data, text):
    words, flags = COMMANDS[command]
    flag = data.draw(st.sampled_from(flags))
    arguments = [*words, text] if flag == "-" else [*words, f"{flag}={text}"]
    code, errors, started = call(arguments)
    if started is None and code != 0:
        check_rejected(code, errors)


@examples(60)
@given(
    st.dictionaries(
        st.sampled_from(["space", "command", "pattern", "parameters", "set", *OVERRIDES, *RUN_OPTIONS]) | WORDS,
        VALUES | TEXTS,
        max_size=4,
    ),
    st.sampled_from([{"space": "exercise1_1stpart"}, {"command": "prog {x}", "set": {"x": 1}}, {}]),
)
def test_search_file_is_read_or_rejected(working_folder, plain, base):
    check_search_file(json.dumps(plain | base), "search.json")


@examples(100)
@given(
    st.lists(
        st.sampled_from([
            "space: exercise1_1stpart\n", "set: ", "x: ", "{", "}", "[", "]", "&a ", "*a", "!!bool ", "!!timestamp ",
            "!!int ", "!!float ", "!!binary ",
            "!!set ", "!!omap ", "!!pairs ", "!!null ", "!!str ", "? ", "- ", "<<: ", "1", "maybe", "\n", "  ", ", ",
            "'", "|", "---\n", "1e400", "%YAML 9",
        ]) | WORDS, max_size=10,
    ).map("".join)
)  # fmt: skip
@example("command: p {x}\nset: {x: &a [*a]}")
@example("command: p {x}\nset: {x: !!timestamp x}")
def test_search_file_in_yaml_is_read_or_rejected(working_folder, text):
    check_search_file(text, "search.yaml")


def check_search_file(text: str, name: str) -> None:
    Path(name).write_text(text, encoding="utf-8")
    flags = _parser().parse_args(["run", name])
    try:
        experiments = find_experiments(flags)
    except TuneHpcError as error:
        check_message(error)
    else:
        for experiment in experiments:
            json.dumps(experiment.to_json(), allow_nan=False)

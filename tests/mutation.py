"""Mutation scores: the fraction of small changes of the code that the tests detect, by module.

``make mutation`` runs this module. mutmut makes the mutants of the modules in ``only_mutate`` of ``tool.mutmut`` in
pyproject.toml. Each mutant runs the tests of its module that call the mutated function, without the slow tests and
whole searches. A module with many mutants is represented by a seeded sample. A mutant that runs over its time limit is
killed. A mutant that no test calls survives.

Not covered: properties and other decorated functions, constants of modules and classes, and texts of errors.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STATISTICS = Path("mutants/mutmut-stats.json")
#: Exit codes of mutmut for mutants that survive: all tests pass, or there are none.
SURVIVED = (0, 5, 33)
#: Test files of modules that have none of their own name, or more than this.
TESTS = {
    "monitor": ("monitor", "progress"), "parameter": ("space", "samplers", "conditional"),
    "parsing": ("space", "conditional"), "ranking": ("results",), "ray_schedulers": ("schedulers",),
    "space": ("space", "conditional"), "trial_errors": ("monitor", "trial_errors"),
}  # fmt: skip


def sampled_mutants(module: str, size: int) -> list[str]:
    """Return the names of a seeded sample of the mutants of a module."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    names = mutate_file_contents(module, Path(module).read_text(encoding="utf-8")).mutant_names
    mutants = [get_mutant_name(Path(module), name) for name in names]
    random.Random(0).shuffle(mutants)
    return mutants[:size]


def run_mutants(names: Sequence[str]) -> None:
    """Run mutants with mutmut."""
    # The examples of hypothesis are the same in every run.
    environment = {**os.environ, "CI": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names], env=environment, check=True)


def restrict_tests() -> None:
    """Restrict the tests of each function, which mutmut has recorded, to those of its module."""
    statistics: dict[str, Any] = json.loads(STATISTICS.read_text(encoding="utf-8"))
    tests = statistics["tests_by_mangled_function_name"]
    for function, names in tests.items():
        module = function.split(".")[-2]
        files = {f"test_{name}" for name in TESTS.get(module, (module,))}
        tests[function] = [name for name in names if Path(name.partition("::")[0]).stem in files]
    STATISTICS.write_text(json.dumps(statistics), encoding="utf-8")


def main() -> None:
    """Run a sample of the mutants of each module, and print the scores and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="paths of modules; all by default")
    parser.add_argument("--sample", type=int, default=120, help="maximum number of mutants of a module")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    with open("pyproject.toml", "rb") as file:
        modules = arguments.modules or tomllib.load(file)["tool"]["mutmut"]["only_mutate"]
    samples = {module: sampled_mutants(module, arguments.sample) for module in modules}
    names = [name for sample in samples.values() for name in sample]
    run_mutants(names[:1])
    restrict_tests()
    run_mutants(names)
    print("| module | mutants | killed | score |", "|:--|--:|--:|--:|", sep="\n")
    survivors = []
    for module, sample in samples.items():
        codes = json.loads(Path(f"mutants/{module}.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
        survivors += [name for name in sample if codes[name] in SURVIVED]
        killed = sum(codes[name] not in SURVIVED for name in sample)
        print(f"| {module} | {len(sample)} | {killed} | {killed / len(sample):.0%} |")
    print("", "Survivors (mutmut show NAME):", *survivors, sep="\n")


if __name__ == "__main__":
    main()

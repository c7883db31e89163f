"""Mutation scores: the fraction of small changes of the code that the tests detect, by module.

``make mutation`` runs this module. mutmut makes the mutants of the modules in ``only_mutate`` of ``tool.mutmut`` in
pyproject.toml, and runs the tests that call the mutated function, without Ray and without the slow tests. A module with
many mutants is represented by a seeded sample. A mutant that runs over its time limit is killed. A mutant that no test
calls survives.

Not covered: properties and other decorated functions, constants of modules and classes, and texts of errors.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Exit codes of mutmut for mutants that survive: all tests pass, or there are none.
SURVIVED = (0, 5, 33)


def sampled_mutants(module: str, size: int) -> list[str]:
    """Return the names of a seeded sample of the mutants of a module."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    names = mutate_file_contents(module, (ROOT / module).read_text(encoding="utf-8")).mutant_names
    mutants = [get_mutant_name(Path(module), name) for name in names]
    random.Random(0).shuffle(mutants)
    return mutants[:size]


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
    # The examples of hypothesis are the same in every run.
    environment = {**os.environ, "CI": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names], env=environment, check=True)
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

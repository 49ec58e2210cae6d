"""Steps of training on machines that are not at hand, simulated: what staleness, refill, routing and splits would do.

Run: python -m benchmarks.trainer.simulate (some minutes on one core); prints a table per question and what it assumes.

`--only staleness refill` answers some of the questions. `--against RUN_DIRECTORY` takes rates from the first half of a
recorded run's steps, predicts the seconds of the others, and prints the errors; without a directory, it takes the
eight steps of a `make demo` whose numbers are in benchmarks/simulation/recorded.json.gz. `--write-sample RUN_DIRECTORY`
makes that file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.simulation.cases import QUESTIONS
from benchmarks.simulation.check import report
from benchmarks.simulation.recorded import SAMPLE, RecordedStep, read_sample, write_sample
from benchmarks.simulation.tables import assumptions, table


def _steps(source: Path) -> list[RecordedStep]:
    if source.is_file():
        return read_sample(source)
    from benchmarks.simulation.run_directory import run_steps  # brings torch, which nothing else here needs

    return run_steps(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="that count, in each case")
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="of the questions, these")
    parser.add_argument("--against", nargs="?", type=Path, const=SAMPLE, metavar="RUN_DIRECTORY")
    parser.add_argument("--write-sample", type=Path, metavar="RUN_DIRECTORY")
    arguments = parser.parse_args()
    if arguments.write_sample:
        write_sample(_steps(arguments.write_sample), SAMPLE)
    elif arguments.against:
        print(report(_steps(arguments.against), arguments.seed))
    else:
        for question in arguments.only:
            print(table(question, arguments.steps, arguments.seed), flush=True)
        print(assumptions())


if __name__ == "__main__":
    main()

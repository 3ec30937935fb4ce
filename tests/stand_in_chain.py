"""`stand_in_chain.py FILE [--submit]`, in a site: take a chain of shell commands through the pipeline's code.

FILE: {"name": str, "stages": {stage: {"run": command, "needs": [...], "reads": [...], "options": [...]}}}. Prints
{"states": {stage: [what, why]}, "submitted": {stage: job}}; a ValueError is a line on stderr, and exit code 1.
"""

import json
import sys
from pathlib import Path

from hermes3.slurm import pipeline, queue
from hermes3.slurm.chain import STEP, Stage


def main() -> None:
    chain = json.loads(Path(sys.argv[1]).read_text())
    name = chain["name"]
    stages = [
        Stage(
            one,
            STEP,
            ["bash", "-c", f"({given['run']}) && touch {one}.out"],
            given.get("needs", []),
            [Path(path) for path in given.get("reads", [])],
            Path(f"{one}.out"),
            options=["--mem=100M", "--cpus-per-task=1", *given.get("options", [])],
        )
        for one, given in chain["stages"].items()
    ]
    again = "hermes3 launch --pipeline it"
    states = pipeline.states(again, name, stages, queue.jobs(), [])
    submission = pipeline.Submission(again, name, stages, states)
    submitted = submission.submit(check=False) if "--submit" in sys.argv else {}
    print(json.dumps({"states": {one: [it.what, it.why] for one, it in states.items()}, "submitted": submitted}))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))

"""`stand_in_chain.py FILE [--submit]`, in a site: take a chain of shell commands through the pipeline's code.

FILE: {stage: {"run": command, "needs": [...], "reads": [...]}}. Prints {"states": {stage: [what, why]}, "submitted":
{stage: job}}; a ValueError is a line on stderr, and exit code 1.
"""

import json
import sys
from pathlib import Path

from hermes3.slurm import pipeline, queue
from hermes3.slurm.chain import STEP, Stage

stages = []
for name, given in json.loads(Path(sys.argv[1]).read_text()).items():
    words, reads = (
        ["bash", "-c", f"({given['run']}) && touch {name}.out"],
        [Path(path) for path in given.get("reads", [])],
    )
    options, job, stamp = ["--mem=100M", "--cpus-per-task=1"], f"it_{name}", pipeline.FOLDER / f"it/{name}.done"
    needs, leaves = given.get("needs", []), Path(f"{name}.out")
    stages.append(Stage(name, STEP, words, needs, reads, leaves, job, stamp, options=options))
try:
    chain = pipeline.Submission("hermes3 launch --pipeline it", pipeline.FOLDER / "it", stages, queue.jobs())
    submitted = chain.submit(check=False) if "--submit" in sys.argv else {}
except ValueError as error:
    sys.exit(str(error))
print(json.dumps({"states": {name: state[:2] for name, state in chain.states.items()}, "submitted": submitted}))

"""The ledger: every record resolves in this repository, RUNS.md is what they make, and a report becomes a record."""

import hashlib
import json
import subprocess

import pytest
import yaml

from hermes3.files import ROOT, UserError
from hermes3.report import ledger

RECORDS = ledger.load()
shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True)
needs_history = pytest.mark.skipif(shallow.stdout.strip() != "false", reason="needs the history of the repository")


def test_the_page_is_what_the_records_make():
    assert (ROOT / "RUNS.md").read_text() == ledger.page(RECORDS), "run hermes3 runs"
    assert {"demo_sft", "h200_8b_sft", "paper_8b_sft", "paper_70b_sft", "paper_405b_sft"} <= RECORDS.keys()


@needs_history
@pytest.mark.parametrize("name", RECORDS)
def test_every_file_and_hash_resolves(name):
    one = RECORDS[name]
    for file, digest in {one.recipe: one.recipe_sha256, "requirements.txt": one.lock_sha256}.items():
        if one.commit is None:
            assert digest is None and (ROOT / one.recipe).is_file()
        else:
            blob = subprocess.run(["git", "show", f"{one.commit}:{file}"], cwd=ROOT, capture_output=True, check=True)
            assert digest in (None, hashlib.sha256(blob.stdout).hexdigest()), file


@pytest.fixture
def report(tmp_path):
    """A report.json of one training of the 8B, as `hermes3 report` writes it, as far as the ledger reads it."""
    facts = yaml.safe_load((ROOT / "tests/runs.yml").read_text())["report"]
    facts["runs"][0]["folder"] = str(tmp_path)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(facts))
    return path


def test_a_report_becomes_a_record(report, tmp_path):
    new = ledger.record(report, "SFT", "SFT", "somebody", "The 8B")
    assert ledger.load(ledger.add("ours", new, tmp_path / "runs").parent) == {"ours": new}
    assert (new.gpus, new.hardware, new.gpu_hours, new.cost_usd) == (48, "48 h100-80gb", 54.0, 135.0)
    assert (new.tokens_per_second_per_gpu, new.mfu_percent, new.commit) == (8000.0, 36.6, "aaaa")
    assert new.scores == {"ARC-C": [61.0, 58.0, 64.0, 900]}  # a part of the questions is no score
    assert "| 36.6 | 54 | 135 |" in ledger.page({"ours": new})
    with pytest.raises(UserError, match="ours.yml is there already; give another name"):
        ledger.add("ours", new, tmp_path / "runs")


def test_the_commit_is_the_one_that_the_run_began_with(report):
    (report.parent / "made_of.json").write_text(json.dumps({"commit": "d" * 40, "lock": "e" * 64}))
    new = ledger.record(report, "SFT", "SFT", "somebody", "The 8B")
    assert (new.commit, new.lock_sha256) == ("d" * 40, "e" * 64)


@pytest.mark.parametrize(("run", "change", "text"), yaml.safe_load((ROOT / "tests/runs.yml").read_text())["refused"])
def test_what_cannot_be_recorded_is_refused(report, run, change, text):
    report.write_text(json.dumps(json.loads(report.read_text()) | change))
    with pytest.raises(UserError, match=text):
        ledger.record(report, run, "SFT", "somebody", "The 8B")

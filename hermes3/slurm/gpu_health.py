"""Are the GPUs of this node there, well and free? nvidia-smi says, and NVIDIA's DCGM too where it is installed."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

DCGM_SECONDS = 90  # `-r 1` takes a few on an idle node
# Tags of `nvidia-smi -q -x`, by what they say when a GPU must not be used. Drivers differ in which they have.
YES = {
    "remapped_row_pending": "row remapping is pending, a reset away",
    "remapped_row_failure": "row remapping has failed",
    "pending_retirement": "page retirement is pending, a reset away",
    "pending_blacklist": "page retirement is pending, a reset away",
    "channel_repair_pending": "a memory channel's repair is pending",
    "unrepairable_memory": "its memory cannot be repaired",
    "sram_threshold_exceeded": "its SRAM has had too many errors",
}
# Idle and capped by power are normal; what the hardware does to save itself is not
SLOWED = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")


def ask_nvidia_smi() -> ET.Element:
    """What `nvidia-smi -q -x` says. `ValueError` when it is not installed or cannot talk to the driver."""
    if not shutil.which("nvidia-smi"):
        raise ValueError("nvidia-smi is not on this node")
    ran = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True)
    if ran.returncode:
        said = (ran.stdout + ran.stderr).strip().splitlines() or ["nothing"]
        raise ValueError(f"nvidia-smi ended with {ran.returncode}: {said[-1]}")
    return ET.fromstring(ran.stdout)


def faults(said: ET.Element) -> list[str]:
    """What ails each GPU: uncorrected memory errors, repairs that wait for a reset, clocks that the hardware lowers."""
    return [f"GPU {index}: {fault}" for index, gpu in enumerate(said.iter("gpu")) for fault in _of_one(gpu)]


def _of_one(gpu: ET.Element) -> Iterator[str]:
    volatile = gpu.find("ecc_errors/volatile")
    for count in volatile if volatile is not None else []:
        if "uncorrectable" in count.tag and (count.text or "").strip().isdigit() and int(count.text):
            yield f"{int(count.text)} uncorrected ECC errors ({count.tag}) since the driver was loaded"
    for element in gpu.iter():
        text = (element.text or "").strip()
        if element.tag in YES and text == "Yes":
            yield YES[element.tag]
        # clocks_throttle_reason_* before driver 535, clocks_event_reason_* from it on
        elif text == "Active" and any(element.tag.endswith(f"_reason_{reason}") for reason in SLOWED):
            yield f"its clocks are held down ({element.tag.split('_reason_')[1]})"
        elif element.tag == "gpu_recovery_action" and text not in ("", "None", "N/A"):
            yield f"the driver asks for: {text}"


def processes(said: ET.Element) -> list[str]:
    """What computes on the GPUs already; a display server does not count."""
    found = []
    for index, gpu in enumerate(said.iter("gpu")):
        for process in gpu.iter("process_info"):
            kind, name = process.findtext("type", ""), process.findtext("process_name", "?")
            if "C" in kind and "nvidia-cuda-mps-server" not in name:
                found.append(f"GPU {index}: {name} (pid {process.findtext('pid', '?')})")
    return found


def dcgm_faults() -> list[str] | None:
    """Tests of `dcgmi diag -r 1` that failed; None where DCGM is not installed or its service does not answer."""
    if not shutil.which("dcgmi"):
        return None
    ran = subprocess.run(["dcgmi", "diag", "-r", "1", "-j"], capture_output=True, text=True, timeout=DCGM_SECONDS)
    try:
        said = json.loads(ran.stdout[ran.stdout.index("{") :])
    except ValueError:
        return None
    return [f"dcgmi diag: {name} failed" for name in dict.fromkeys(_failed(said, "a test"))]


def _failed(said: Any, name: str) -> Iterator[str]:
    """Names of tests whose status is Fail; releases of DCGM nest them differently."""
    if isinstance(said, dict):
        name = str(said.get("name") or said.get("category") or name)
        if str(said.get("status", "")).lower() == "fail":
            yield name
    for part in said.values() if isinstance(said, dict) else said if isinstance(said, list) else []:
        yield from _failed(part, name)

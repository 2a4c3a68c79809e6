"""Worker processes start fast: what prepares pictures never loads torch."""

import subprocess
import sys

MODULES = (
    "augment",
    "borders",
    "checks",
    "crops",
    "duplicates",
    "faces",
    "measures",
    "reading",
    "resizing",
    "saliency",
)


def test_nothing_that_prepares_pictures_loads_torch() -> None:
    names = ", ".join(f"loractl.prepare.{module}" for module in MODULES)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

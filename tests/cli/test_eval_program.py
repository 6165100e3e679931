"""`canvaslm eval` as a program with the demo model, stopped with Ctrl-C in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ..waiting import HUNG

pexpect = pytest.importorskip("pexpect", reason="pexpect starts the pseudo-terminal")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "evals.md"


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path: Path) -> None:
    """Twenty points of the same work: it is stopped in the third or soon after."""
    out = tmp_path / "out.json"
    steps = ",".join(str(most) for most in range(40, 60))
    arguments = ["eval", "sort", "-n", "20", "--sweep", f"steps={steps}", "--json", str(out)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CANVASLM_")}
    child = pexpect.spawn(
        sys.executable, ["-m", "canvaslm", *arguments], timeout=HUNG, dimensions=(40, 120),
        env={**environment, "TERM": "xterm", "OMP_NUM_THREADS": "1"}, encoding="utf-8",
    )  # fmt: skip
    child.expect(r"sort, steps=\d+ \(3 of 20\)")
    child.sendintr()
    child.expect(r"stopped: (\d+) of 20 points are done and kept")
    done = int(child.match[1])
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    document: dict[str, Any] = json.loads(out.read_text())
    assert document["complete"] is False
    assert 2 <= done == len(document["scores"]) < 20
    assert document["curves"][0]["points"][1]["mode"] == "steps=41"


@pytest.mark.slow
def test_the_pages_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    one, four, curve = capsys.readouterr().out.splitlines()
    assert one.startswith("steps=1 0.")
    assert four.startswith("steps=4 0.")
    assert curve.startswith("sort 0.")

"""What README shows is what the program does."""

from __future__ import annotations

import doctest
import re
import xml.etree.ElementTree as ElementTree

import pytest

import canvaslm
from canvaslm.ops import cpu
from canvaslm.weights.synth import plan_synth
from scripts import canvas_picture, memory_table


def readme() -> str:
    return memory_table.README.read_text(encoding="utf-8")


def test_the_picture_is_a_run_of_the_demo_model() -> None:
    drawn = canvas_picture.TARGET.read_text(encoding="utf-8")
    assert drawn == canvas_picture.picture(), "run: python scripts/canvas_picture.py"
    kinds = [
        text.get("class") for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert kinds.count("noise") > 3  # half-denoised: some places are still in doubt, most are not
    assert kinds.count("kept") > kinds.count("noise")
    assert "](docs/canvas.svg)" in readme()


def test_the_table_of_files_has_their_sizes() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) GB \| ([\d.]+) GiB \| (\d+) GB \|$", readme(), re.MULTILINE)
    assert [row[0] for row in rows] == list(memory_table.TYPES)
    for kind, size, needed, machine in rows:
        assert float(needed) * 2**30 < float(machine) * 1e9
        if kind in ("Q4_0", "BF16"):
            assert f"{plan_synth('26b', kind).size / 1e9:.1f}" == size


@pytest.mark.slow
def test_the_table_of_files_is_what_loading_needs() -> None:
    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    assert memory_table.page_with_table(readme()) == readme(), "run: python scripts/memory_table.py"


def test_how_to_begin_is_on_the_first_screen() -> None:
    first = readme()[: readme().index("## What it does")]
    for command in (
        "git clone https://github.com/canvaslm/canvaslm",
        "canvaslm run\n",
        "canvaslm run -m unsloth/diffusiongemma-26B-A4B-it-GGUF:Q4_K_M",
    ):
        assert command in first


def test_the_examples_of_taking_hold_say_what_they_show() -> None:
    """What stands at a prompt in README is run, with the demo model's session as it is opened above."""
    with canvaslm.load() as session:
        examples = doctest.DocTestParser().get_doctest(
            readme(), {"session": session}, "README", "README.md", 0
        )
        assert len(examples.examples) >= 4
        assert doctest.DocTestRunner().run(examples).failed == 0

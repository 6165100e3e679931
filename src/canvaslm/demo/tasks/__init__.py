"""What the demo model is trained on and measured by: one generator of fresh, checkable examples per task."""

from __future__ import annotations

from .base import Example, Split, Task, held_out
from .blanks import Blanks
from .capitals import Capitals
from .functions import Functions
from .json_pairs import JsonPairs
from .long_answers import LongAnswers
from .reversal import Reversal
from .small_talk import SmallTalk
from .sorting import Sorting
from .sudoku import Sudoku
from .two_turns import TwoTurns

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Sudoku(),
        Reversal(),
        JsonPairs(),
        Capitals(),
        Functions(),
        Blanks(),
        Sorting(),
        LongAnswers(),
        TwoTurns(),
        SmallTalk(),
    )
}

__all__ = ["TASKS", "Example", "Split", "Task", "held_out"]

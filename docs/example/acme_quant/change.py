"""A set of questions: JSON lines in this package, asked in words of its own."""

import re
from pathlib import Path

from pytest_quantbudget.tasks.sets import TaskSet
from pytest_quantbudget.tasks.styles import Style

STYLE = Style("Question: {}\nAnswer:", ("Question:",), re.compile(r"#### (-?[0-9.,]+)"), shots=0)
CHANGE = TaskSet("change", Path(__file__).with_name("change.jsonl"), STYLE)

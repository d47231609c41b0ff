"""Records of upstream's builder interface, for custom builders that do not import upstream."""

from dataclasses import dataclass
from typing import Literal

from dpo_core.data.preference import Message


@dataclass
class Comparison:
    """One prompt and two completions."""

    prompt_conversation: list[Message]
    completion_A: list[Message]
    completion_B: list[Message]


@dataclass
class LabeledComparison:
    """A comparison, and which completion is preferred; ties are not trained on."""

    comparison: Comparison
    label: Literal["A", "B", "Tie"]

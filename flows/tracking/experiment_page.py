"""The experiment's page as it opens: what matters of a DPO run first, where MLflow would sort by name.

MLflow keeps a shared view as a tag of the experiment and opens it by a key in the page's address. A version of MLflow
that reads the view otherwise shows its own charts instead.
"""

import json
from typing import Any

KEY = "dpo"
TAG = f"mlflow.sharedViewState.{KEY}"

BARS = ("after/prompt_strict_acc", "before/prompt_strict_acc", "after/test/accuracy")
TRAINING = ("dpo_loss", "accuracy", "margin")
HELD_OUT = ("test/dpo_loss", "test/accuracy", "test/nll_chosen")

COLUMNS = (
    "metrics.`after/prompt_strict_acc`",
    "metrics.`before/prompt_strict_acc`",
    "metrics.`after/test/accuracy`",
    "params.`dpo_beta`",
    "params.`learning_rate`",
    "tags.`dpo.promoted`",
    "attributes.`Models`",
)

SHOWN = {"isGenerated": False, "deleted": False}
BAR = {"type": "BAR", "runsCountToCompare": 10}
LINE = {
    "type": "LINE",
    "runsCountToCompare": 10,
    "xAxisKey": "step",
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "range": {},
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "selectedXAxisMetricKey": "",
    "lineSmoothness": 0,
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


# The newest first, but not by the name under which the page folds children away, whose charts it then leaves out.
NEWEST_FIRST = {"orderByKey": "attributes.`start_time`", "orderByAsc": False}


def view() -> str:
    """The view as MLflow stores one."""
    sections = {"Result": (BARS, BAR), "Training": (TRAINING, LINE), "Held out": (HELD_OUT, LINE)}
    state = {
        "selectedColumns": list(COLUMNS),
        **NEWEST_FIRST,
        "isAccordionReordered": True,  # sections stay in this order
        "compareRunSections": [section(name) for name in sections],
        "compareRunCharts": [
            {**SHOWN, **form, "uuid": metric, "metricSectionId": name, "metricKey": metric, "displayName": metric}
            for name, (metrics, form) in sections.items()
            for metric in metrics
        ],
    }
    return json.dumps(state)


def section(name: str) -> dict[str, Any]:
    """A section of charts."""
    return {**SHOWN, "uuid": name, "name": name, "display": True, "isReordered": False}

"""Shared view of the experiment's page in MLflow: the charts that matter for DPO first, instead of sorted by name.

MLflow stores a shared view as a tag of the experiment and opens it by a key in the page's address. A version of MLflow
that cannot read the view shows its own charts instead.
"""

import json
from typing import Any

VIEW_KEY = "dpo"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"

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

VISIBLE = {"isGenerated": False, "deleted": False}
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

# Sorted by start time under this key; under the page's usual key it folds child runs away and omits their charts.
NEWEST_FIRST = {"orderByKey": "attributes.`start_time`", "orderByAsc": False}


def shared_view() -> str:
    """Return the view as the JSON that MLflow stores."""
    sections = {"Result": (BARS, BAR), "Training": (TRAINING, LINE), "Held out": (HELD_OUT, LINE)}
    state = {
        "selectedColumns": list(COLUMNS),
        **NEWEST_FIRST,
        "isAccordionReordered": True,  # sections stay in this order
        "compareRunSections": [section(name) for name in sections],
        "compareRunCharts": [
            {**VISIBLE, **chart, "uuid": metric, "metricSectionId": name, "metricKey": metric, "displayName": metric}
            for name, (metrics, chart) in sections.items()
            for metric in metrics
        ],
    }
    return json.dumps(state)


def section(name: str) -> dict[str, Any]:
    """Return a section of charts."""
    return {**VISIBLE, "uuid": name, "name": name, "display": True, "isReordered": False}

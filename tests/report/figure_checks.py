"""Checks and specifications that apply to every kind of figure."""

import pandas as pd

IMPORTANCE = pd.DataFrame(
    {
        "parameter": ["learning_rate[optimizer=adam]", "batch_size"],
        "importance": [0.75, 0.25],
        "low": [0.5, 0.02],
        "high": [0.98, 0.5],
        "resampled": "configurations",
    }
)
#: One specification of each kind.
SPECIFICATIONS = {
    specification["kind"]: {"title": "Title", **specification}
    for specification in (
        {"kind": "curve", "metrics": ["train_loss", "test_accuracy"], "line": "learning_rate", "page": "optimizer"},
        {"kind": "response", "metrics": ["test_accuracy"], "parameter": "learning_rate", "line": "optimizer",
         "log_x": True, "published": "test_accuracy"},
        {"kind": "heatmap", "metrics": ["test_accuracy"], "parameter": "learning_rate", "line": "optimizer"},
        {"kind": "published", "metrics": []},
        {"kind": "parallel", "metrics": ["test_loss"]},
        {"kind": "ranking", "metrics": ["test_loss"], "line": "learning_rate"},
        {"kind": "importance", "metrics": ["test_loss"], "table": IMPORTANCE},
        {"kind": "budget", "metrics": ["test_loss"]},
        {"kind": "target", "metrics": ["test_loss"], "line": "optimizer", "target": 0.5},
        {"kind": "stack", "metrics": ["compute_s", "communicate_s"], "parameter": "workers"},
        {"kind": "speedup", "metrics": ["speedup", "efficiency"], "parameter": "workers"},
        {"kind": "cost", "metrics": ["train_s", "worker_s"], "parameter": "workers"},
        {"kind": "links", "metrics": ["speedup", "efficiency"], "parameter": "workers"},
        {"kind": "widths", "metrics": ["efficiency"]},
    )
}  # fmt: skip


def assert_no_overlap(sheet):
    """Title, legends, panels and colour bars do not overlap, and nothing leaves the figure."""
    sheet.figure.canvas.draw()
    box = sheet.figure.bbox
    parts = [legend.get_window_extent() for legend in sheet.figure.legends]
    parts += [text.get_window_extent() for text in sheet.figure.texts]
    parts += [ax.get_tightbbox() for ax in sheet.figure.axes]
    for number, part in enumerate(parts):
        assert part.x0 >= 0
        assert part.y0 >= 0
        assert part.x1 <= box.width
        assert part.y1 <= box.height
        assert not any(part.overlaps(other) for other in parts[number + 1 :])


def legend_texts(sheet):
    """Return the labels of a figure's legends."""
    return [text.get_text() for legend in sheet.figure.legends for text in legend.get_texts()]

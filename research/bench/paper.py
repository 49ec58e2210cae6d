"""The table that the paper reports (ReSearch, table 2), EM and judge in percent, to compare with ours.

Its rows are of Qwen2.5 models on Wikipedia of 2018, with E5-base-v2 and five passages per search.
"""

from __future__ import annotations

# Rows in the paper's order: model and strategy, and (EM, judge) of each benchmark.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    name: dict(zip(("hotpotqa", "2wikimultihopqa", "musique", "bamboogle"), figures, strict=True))
    for name, figures in {
        "7B naive": ((19.18, 30.64), (25.76, 27.87), (3.76, 10.38), (10.40, 22.40)),
        "7B naive-rag": ((31.90, 49.59), (25.78, 29.52), (6.21, 12.78), (20.80, 32.00)),
        "7B iter-retgen": ((34.36, 52.22), (27.92, 31.86), (8.69, 16.14), (21.60, 35.20)),
        "7B ircot": ((30.33, 52.06), (21.57, 30.65), (6.99, 14.19), (24.80, 36.80)),
        "7B research, from base": ((40.57, 60.26), (44.67, 50.06), (21.68, 32.19), (43.20, 54.40)),
        "7B research, from instruct": ((43.52, 63.62), (47.59, 54.22), (22.30, 33.43), (42.40, 54.40)),
        "32B research, from instruct": ((46.73, 67.70), (44.90, 50.30), (26.40, 38.56), (56.80, 67.20)),
    }.items()
}

"""Coverage and width of forecasts of groups on purchases of real customers, walk-forward.

    python benchmarks/forecast_coverage.py --data FOLDER

FOLDER has train/, test/ and truth/ in the layout of the impressions; every day is forecast by models of up to seven days before it, as
soon as there are two. Nothing here is fitted to the outcome: models, noise and intervals are those of the project. Customers have no
country, so groups are made of what is known of them: when they last bought, how often, and how much.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ltv_assets.cli.flatten_benchmark import find_days
from ltv_assets.core.config import PROJECT_ROOT, ModelsConfig, SamplingConfig
from ltv_assets.features.flatten import flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets.features.schema import categorical_names, feature_names
from ltv_assets.modeling.cohorts import (
    KnownRows,
    compared_by_day,
    inside,
    learn_noise,
    noise_of_level,
    out_of_fold_rows,
    with_intervals,
)
from ltv_assets.modeling.dataset import prepare_window
from ltv_assets.modeling.design_matrix import encode
from ltv_assets.modeling.evaluation.metrics import outcome_figures
from ltv_assets.modeling.folds import make_folds
from ltv_assets.modeling.stages import WindowContext, buyer_classifier, buyer_gating, revenue_regressor

MOST_DAYS, FEWEST_DAYS = 7, 2
SIZES = {"min_rows": 200, "max_segments": 12}


def read(root: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    """Features, revenue (USD), day and row_id of every row, in order of days."""
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    truth = pd.concat([pd.read_parquet(root / "truth" / f"{split}.parquet") for split in ("train", "test")]).set_index("row_id")
    parts, days = [], []
    with TemporaryDirectory() as folder:
        for (split, day), files in sorted(find_days(root).items(), key=lambda item: str(item[0][1])):
            out = Path(folder) / f"{split}-{day}.parquet"
            flatten_files(files, registry=registry, labelled=split == "train", out=out)
            parts.append(pq.read_table(out).to_pandas())
            days += [str(day)] * len(parts[-1])
    table = pd.concat(parts, ignore_index=True)
    X = table[list(feature_names(registry))].copy()
    for column in categorical_names(registry):
        X[column] = X[column].astype("category")
    return X, truth.loc[table["row_id"], "revenue"].to_numpy(np.float64), np.array(days), table["row_id"].to_numpy()


def segments_of(X: pd.DataFrame) -> pd.DataFrame:
    """Groups of customers by recency, frequency and money, as far as the columns say."""
    recency = pd.cut(X["last_buy__days_ago"], [-1.0, 7.0, 28.0, 91.0, 182.0, np.inf], labels=["week", "month", "quarter", "half", "longer"])
    frequency = pd.cut(X["num_buys_bundle__sum"], [-1.0, 1.0, 2.0, 4.0, 8.0, np.inf], labels=["1", "2", "3-4", "5-8", "9+"])
    money = pd.cut(X["iap_revenue_usd_bundle__sum"], [-1.0, 20.0, 50.0, 100.0, 250.0, np.inf], labels=["20", "50", "100", "250", "more"])
    return pd.DataFrame({"last bought": recency, "times bought": frequency, "spent (USD)": money})


def walk(X: pd.DataFrame, revenue: np.ndarray, day: np.ndarray, row_id: np.ndarray) -> pd.DataFrame:
    """Forecast and outcome of every day that has enough days before it."""
    days, segments, earlier, found = sorted(set(day)), segments_of(X), [], []
    for i in range(FEWEST_DAYS, len(days)):
        names = days[max(0, i - MOST_DAYS) : i]
        past, now = np.flatnonzero(np.isin(day, names)), np.flatnonzero(day == days[i])
        number = np.searchsorted(names, day[past])
        data = prepare_window(X.iloc[past].reset_index(drop=True), revenue[past], number, row_id=row_id[past])
        context = WindowContext(data, ModelsConfig(), SamplingConfig())
        classifier = buyer_classifier(context, None)
        gating = buyer_gating(context, classifier)
        regressor = revenue_regressor(context, None, gating)
        cap = regressor.expected.cap_usd
        folds = make_folds(number, context.models.folds)
        known = out_of_fold_rows(classifier, gating, regressor, segments.iloc[past], revenue[past], folds)
        amounts = known.amounts(cap)
        errors = compared_by_day(known, number, names, amounts, cap, **SIZES)
        own = noise_of_level(errors, amounts, gating.level)
        noise = learn_noise(
            pd.concat([errors, *earlier], ignore_index=True), amounts, followed=own.followed, lasting_share=own.lasting_share
        )
        matrix = encode(classifier.encoder, X.iloc[now].reset_index(drop=True))
        p = np.minimum(classifier.probability(classifier.log_odds(matrix)), gating.cap)
        expected = regressor.expected.predict(p, regressor.log_revenue_if_buyer(matrix), gating.whale_probability(matrix))
        seen = KnownRows(segments.iloc[now], gating.at_level(p), expected, revenue[now]).compared(amounts, cap, **SIZES)
        earlier.append(seen.assign(day=days[i], ahead=True))
        ends = with_intervals(seen, noise, 1)
        found.append(seen.join(ends[ends.columns.difference(seen.columns)]).assign(day=days[i], history=len(names), movement=noise.day.sd))
        found[-1] = found[-1].join(inside(found[-1]))
        print(days[i], shown(found[-1].iloc[:1]), flush=True)
    return pd.concat(found, ignore_index=True)


def shown(rows: pd.DataFrame) -> dict[str, float]:
    """Figures of some groups, rounded."""
    width = {
        f"width_{name}": float(((rows[f"{name}_high{unit}"] - rows[f"{name}_low{unit}"]) / rows[f"expected_{name}{unit}"]).mean())
        for name, unit in (("payers", ""), ("revenue", "_usd"))
    }
    return {name: round(float(value), 3) for name, value in {**outcome_figures(rows), **width}.items()}


def main() -> None:
    """Print one line for each day, then a Markdown table by segment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, test/ and truth/")
    found = walk(*read(parser.parse_args().data))
    parts = {**dict(list(found.groupby("segment", sort=False))), "every group": found[found["segment"] != "all"]}
    rows = {name: shown(part) for name, part in parts.items()}
    names = list(next(iter(rows.values())))
    print("| segment | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for segment, figures in rows.items():
        print(f"| {segment} | " + " | ".join(f"{figures[name]:g}" for name in names) + " |")


if __name__ == "__main__":
    main()

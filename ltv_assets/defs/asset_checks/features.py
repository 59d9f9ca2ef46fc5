"""Checks of a flattened day: nothing lost, no label among the features, nothing that moved unseen."""

from typing import Any

import pyarrow.parquet as pq

from ltv_assets.core.check_specs import MAX_FAILING_ROWS, Outcome, check
from ltv_assets.core.errors import DataError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.inventory import files_problem, rows_problem
from ltv_assets.state.project import Project

ADVERSARIAL_DAYS = 3
"""Earlier days that a new one is compared with as a whole."""


@check(
    "flattened_features",
    name="rows_reconciled",
    blocking=True,
    bounds=("data.max_bad_row_share", "data.max_bad_file_share", "checks.min_rows_per_day"),
)
def flattened_rows_reconciled(project: Project, key: PartitionKey) -> Outcome:
    """Rows of the raw files = rows flattened + set aside (singly or with their file) + sampled out; few are set aside."""
    inventory = project.warehouse.require("raw_partitions", key, "materialize it first").facts
    manifest = project.warehouse.require("flattened_features", key, "materialize it first")
    facts, data = manifest.facts, project.config.data
    quarantined, sampled_out = sum(facts["rows_quarantined"].values()), facts["rows_sampled_out"]
    with_files = facts.get("rows_in_files_quarantined", 0)
    raw, accounted = inventory["rows"], manifest.rows + quarantined + with_files + sampled_out
    figures = {
        "rows_raw": raw,
        "rows_flattened": manifest.rows,
        "rows_quarantined": quarantined,
        "rows_in_files_quarantined": with_files,
        "rows_sampled_out": sampled_out,
    }
    undecodable = facts.get("files_quarantined", [])
    rows = [{"reason": r, "rows": n} for r, n in facts["rows_quarantined"].items()]
    rows += [{"reason": f"{path}: {reason}", "rows": ""} for path, reason in undecodable[:MAX_FAILING_ROWS]]
    if raw != accounted:
        return Outcome(False, f"day {key}: {raw} raw rows but {accounted} accounted for ({raw - accounted} lost)", figures, rows)
    aside = [*undecodable, *inventory.get("files_quarantined", [])]
    problem = files_problem(key, inventory["files_good"] - len(undecodable), aside, data.max_bad_file_share) if undecodable else None
    if problem is not None:
        return Outcome(False, problem, figures, rows)
    problem = rows_problem(key, raw, facts["rows_quarantined"], data.max_bad_row_share)
    if problem is not None:
        return Outcome(False, problem, figures, rows)
    least = project.config.checks.min_rows_per_day
    if manifest.rows < least:
        return Outcome(False, f"day {key}: {manifest.rows} rows, fewer than min_rows_per_day = {least}", figures, rows)
    return Outcome(True, f"{raw} rows in, {manifest.rows} out, {quarantined + with_files} quarantined", figures, rows)


@check("flattened_features", bounds=("windows.max_train_days",))
def row_ids_new(project: Project, key: PartitionKey) -> Outcome:
    """No row_id of the day stands in one of the days before it: a row that both trains and tests flatters the model."""
    earlier = [k for k in project.warehouse.keys("flattened_features") if k < key][-project.config.windows.max_train_days :]
    if not earlier:
        return Outcome(True, "no earlier day to compare with")
    new = [str(f) for f in project.warehouse.files("flattened_features", key, verify=False)]
    rows = []
    with project.open_duckdb() as connection:
        for day in earlier:
            old = [str(f) for f in project.warehouse.files("flattened_features", day, verify=False)]
            query = "SELECT count(*), min(row_id) FROM read_parquet(?) SEMI JOIN (SELECT row_id FROM read_parquet(?)) USING (row_id)"
            count, first = connection.execute(query, [new, old]).fetchone() or (0, None)
            if count:
                rows.append({"day": day, "rows": count, "first row_id": first})
    figures = {"rows_seen_before": sum(row["rows"] for row in rows), "days_compared": len(earlier)}
    if rows:
        text = f"{figures['rows_seen_before']} rows have a row_id that stands on an earlier day, first {rows[0]['first row_id']!r}"
        return Outcome(False, f"day {key}: {text} on {rows[0]['day']}; deliver each impression once", figures, rows)
    return Outcome(True, f"no row_id of {earlier[0]} .. {earlier[-1]} again", figures)


@check("flattened_features", blocking=True)
def no_label_among_features(project: Project, key: PartitionKey) -> Outcome:
    """No feature column is a label, or derived from one, by role and by name; all labels kept are marked as labels."""
    found: list[dict[str, Any]] = []
    features, contract = 0, project.contract
    for path in project.warehouse.files("flattened_features", key, verify=False):
        for column in pq.read_schema(path):
            role = (column.metadata or {}).get(b"role", b"").decode()
            features += role == "feature"
            stem = column.name.split("__")[0]
            if stem in contract.label_names and (role != "label" or stem not in contract.stored_labels):
                found.append({"column": column.name, "role": role or "none"})
    if found:
        return Outcome(
            False, f"day {key}: label column {found[0]['column']} stands among the features; rebuild with the shipped registry", {}, found
        )
    return Outcome(True, f"{features} features, no label among them", {"features": features})


@check("flattened_features")
def values_read(project: Project, key: PartitionKey) -> Outcome:
    """Every value that is there can be read: none becomes missing because of how it is written."""
    lost = project.warehouse.require("flattened_features", key, "materialize it first").facts.get("lost_values", {})
    rows = [{"column": name, "values": count, "first": first} for name, (count, first) in lost.items()]
    figures = {"values_lost": sum(count for count, _ in lost.values()), "columns": len(lost)}
    if not rows:
        return Outcome(True, "every value that is there was read", figures)
    worst = max(rows, key=lambda row: row["values"])
    text = f"day {key}: {figures['values_lost']} values of {len(rows)} columns cannot be read and count as missing"
    return Outcome(False, f"{text}; most: {worst['column']} ({worst['values']}), first {worst['first']}", figures, rows)


@check("flattened_features", bounds=("checks.psi_warn",))
def drift(project: Project, key: PartitionKey) -> Outcome:
    """Population stability index of every feature against the newest earlier day."""
    from ltv_assets.defs.assets.ingestion import shifted_features

    shifted = shifted_features(project, key)
    if not shifted:
        return Outcome(True, "no earlier day to compare with")
    limit = project.config.checks.psi_warn
    beyond = [row for row in shifted if row["psi"] > limit]
    figures = {"largest_psi": shifted[0]["psi"], "features_beyond": len(beyond)}
    if beyond:
        worst = beyond[0]
        return Outcome(
            False,
            f"day {key}: {len(beyond)} features moved by PSI > {limit:g}, most {worst['feature']} ({worst['psi']:.2f})",
            figures,
            beyond[:20],
        )
    return Outcome(True, f"largest PSI {shifted[0]['psi']:.3f} ({shifted[0]['feature']})", figures)


@check("flattened_features", bounds=("checks.adversarial_auc_warn",))
def adversarial_drift(project: Project, key: PartitionKey) -> Outcome:
    """AUC of a small model that tells the day's rows from those of the days before it: 0.5 means that it cannot."""
    from ltv_assets.features.schema import feature_names
    from ltv_assets.monitoring.adversarial import adversarial_separation

    earlier = [k for k in project.warehouse.keys("flattened_features") if k < key][-ADVERSARIAL_DAYS:]
    if not earlier:
        return Outcome(True, "no earlier day to compare with")
    try:
        found = adversarial_separation(
            [f for k in earlier for f in project.warehouse.files("flattened_features", k, verify=False)],
            project.warehouse.files("flattened_features", key, verify=False),
            feature_names(project.registry),
            seed=project.config.seed,
            contract=project.contract,
            threads=project.config.compute.threads,
        )
    except DataError as error:
        return Outcome(True, f"day {key}: not measured: {error}")
    limit = project.config.checks.adversarial_auc_warn
    figures = {"auc": found.auc, "rows_a_side": found.rows_new}
    rows = [{"feature": name, "share of gain": share} for name, share in found.features]
    text = f"a model tells day {key} from {earlier[0]} .. {earlier[-1]} with AUC {found.auc:.3f}"
    if found.auc > limit:
        return Outcome(False, f"{text}, above adversarial_auc_warn = {limit:g}; most by {found.features[0][0]}", figures, rows)
    return Outcome(True, text, figures, rows)

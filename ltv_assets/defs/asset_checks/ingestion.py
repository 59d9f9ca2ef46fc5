"""Checks of the raw files of a day, by what its inventory says of them."""

from ltv_assets.core.check_specs import MAX_FAILING_ROWS, Outcome, check
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.ingestion.inventory import files_problem
from ltv_assets.state.project import Project


@check("raw_partitions", blocking=True, bounds=("data.max_bad_file_share", "data.require_all_hours"))
def files_readable(project: Project, key: PartitionKey) -> Outcome:
    """At least one readable file, not too many quarantined ones, and every hour if the configuration asks for it."""
    facts = project.warehouse.require("raw_partitions", key, "materialize it first").facts
    bad, good = facts["files_quarantined"], facts["files_good"]
    rows = [{"file": path, "reason": reason} for path, reason in bad[:MAX_FAILING_ROWS]]
    figures = {"files_good": good, "files_quarantined": len(bad), "hours_missing": len(facts["missing_hours"])}
    problem = files_problem(key, good, bad, project.config.data.max_bad_file_share)
    if problem is not None:
        return Outcome(False, problem, figures, rows)
    missing = facts["missing_hours"]
    if missing and project.config.data.require_all_hours:
        return Outcome(
            False, f"day {key}: {len(missing)} of 24 hours are missing (require_all_hours is true); first {missing[0]}", figures, rows
        )
    return Outcome(True, f"{good} files readable, {len(bad)} quarantined, {len(missing)} hours missing", figures, rows)


@check("raw_partitions", blocking=True)
def schema_contract(project: Project, key: PartitionKey) -> Outcome:
    """Key and label columns are present in every file; other missing columns are read as NULL and named."""
    facts = project.warehouse.require("raw_partitions", key, "materialize it first").facts
    errors = facts["schema_errors"]
    figures = {"columns_missing": len(facts["columns_missing"]), "columns_unexpected": len(facts["columns_unexpected"])}
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return Outcome(False, errors[0] + more, figures, [{"problem": e} for e in errors[:MAX_FAILING_ROWS]])
    notes = []
    if facts["columns_missing"]:
        notes.append(f"{len(facts['columns_missing'])} columns missing and read as NULL: {', '.join(facts['columns_missing'][:5])}")
    if facts["columns_unexpected"]:
        notes.append(f"{len(facts['columns_unexpected'])} unexpected columns ignored: {', '.join(facts['columns_unexpected'][:5])}")
    return Outcome(True, "; ".join(notes) or "every column of the contract is present", figures)


@check("raw_partitions")
def hours_complete(project: Project, key: PartitionKey) -> Outcome:
    """All 24 hours are there and none is empty, nor does any lie where no partition reads it."""
    facts = project.warehouse.require("raw_partitions", key, "materialize it first").facts
    missing, empty = facts["missing_hours"], facts["empty_hours"]
    rows = [{"hour": h, "problem": "missing"} for h in missing] + [{"hour": h, "problem": "empty"} for h in empty]
    elsewhere = facts.get("hours_uncovered", [])
    if rows:
        text = f"day {key}: {len(missing)} hours missing, {len(empty)} empty; first {rows[0]['hour']}"
        return Outcome(False, "; ".join((text, *elsewhere)), {"hours": 24 - len(rows)}, rows)
    return Outcome(not elsewhere, "; ".join(("24 hours", *elsewhere)), {"hours": 24})

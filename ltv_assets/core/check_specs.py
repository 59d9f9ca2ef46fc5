"""Which checks block, and by which bounds they judge."""

from __future__ import annotations

BLOCKING_CHECKS: dict[str, tuple[str, ...]] = {
    "raw_partitions": ("files_readable", "schema_contract"),
    "flattened_features": ("rows_reconciled", "no_label_among_features"),
    "buyer_classifier": ("training_rows_reconciled", "no_label_in_model"),
    "holdout_metrics": ("holdout_rows_reconciled", "zero_rate", "rmsle"),
    "predictions": ("rows_reconciled", "scores_valid"),
    "submission": ("submission_rows_reconciled", "submission_valid"),
}
"""Checks that must have passed on a partition's present content before anything downstream uses it."""

CHECK_BOUNDS: dict[str, tuple[str, ...]] = {
    "files_readable": ("data.max_bad_file_share", "data.require_all_hours"),
    "row_ids_new": ("windows.max_train_days",),
    "rows_reconciled": ("data.max_bad_row_share", "data.max_bad_file_share", "checks.min_rows_per_day"),
    "zero_rate": ("checks.zero_rate_tolerance",),
    "rmsle": ("checks.rmsle_max",),
    "calibration": ("checks.ece_max",),
    "expected_revenue": ("checks.expected_revenue_ratio_min", "checks.expected_revenue_ratio_max"),
    "drift": ("checks.psi_warn",),
    "adversarial_drift": ("checks.adversarial_auc_warn",),
}
"""Configured bounds of each check; a verdict given under other bounds does not count."""

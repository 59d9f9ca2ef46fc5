"""D7 LTV of ad impressions as a Dagster asset graph: features, sampling, models, checks and predictions."""

__version__ = "0.1.0"

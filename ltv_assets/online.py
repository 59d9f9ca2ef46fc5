"""The module that models registered by earlier versions name as their loader; see ``scoring/online.py``."""

from ltv_assets.scoring.online import OnlineModel, _load_pyfunc

__all__ = ["OnlineModel", "_load_pyfunc"]

"""The graph's tests share the whole run of ``ltv_assets_tests.conftest``; the names they use of it are at hand here."""

from __future__ import annotations

from ltv_assets_tests.conftest import Ran, command, environment

__all__ = ["Ran", "command", "environment"]

"""Runs a test once for each fault it declares, and fails it when it never held the declared message against the real one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from ltv_assets_tests.faults.catalogue import Fault


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test its declared faults, named after their cases."""
    declared: list[Fault] = getattr(metafunc.function, "faults", [])
    if declared:
        ids = [re.sub(r"[^a-z0-9]+", "-", f.case.lower()).strip("-") for f in declared]
        metafunc.parametrize("fault", declared, ids=ids, indirect=True)


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Fault]:
    """The declared fault of a test."""
    declared: Fault = request.param
    declared.heard.clear()
    yield declared
    assert declared.heard, f"{declared.family}: {declared.case}: the test never called fault.told(...)"

"""Tests marked `browser` need a Chromium: without one they are skipped, or fail where NBSGL_REQUIRE_BROWSER=1 (CI)."""

from __future__ import annotations

import os

import pytest

from tests.notebook.lab import find_browser


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which would start a server first
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser") is None:
        return
    try:
        find_browser()
    except FileNotFoundError as error:
        if os.environ.get("NBSGL_REQUIRE_BROWSER") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))

"""Fixtures for all tests."""

from __future__ import annotations

import keras
import pytest


@pytest.fixture(autouse=True)
def seeded() -> None:
    keras.utils.set_random_seed(0)

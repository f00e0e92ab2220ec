"""Batch sizes as users write them."""

from __future__ import annotations

import pytest

from engines.errors import InputError
from engines.profile import DEFAULT_PROFILE, Profile, parse_profile


def test_profile_is_read_as_three_rising_batch_sizes() -> None:
    assert parse_profile("1:8:32") == Profile(1, 8, 32) == DEFAULT_PROFILE
    assert parse_profile(str(Profile(4, 4, 4))) == Profile(4, 4, 4)


@pytest.mark.parametrize("text", ["", "8", "1:8", "0:8:32", "8:1:32", "1:8:4", "1:8:32:64", "1:x:3", "-1:2:3", "1:²:3"])
def test_other_profiles_are_bad_usage(text: str) -> None:
    with pytest.raises(InputError, match=r"is not MIN:OPT:MAX batch sizes in rising order"):
        parse_profile(text)


def test_only_a_dynamic_batch_takes_the_profile() -> None:
    assert Profile(1, 8, 32).shapes((-1, 3, 8, 8)) == ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8))
    assert Profile(1, 8, 32).shapes((4, 3, 8, 8)) == ((4, 3, 8, 8),) * 3

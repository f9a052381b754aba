"""Seconds that are none are refused before the run, not in its middle."""

from typing import Any

import pytest

from trainyard.errors import ConfigError
from trainyard.hooks import Logger, Progress


@pytest.mark.parametrize("given", ["abc", -1, None])
@pytest.mark.parametrize(("hook", "key"), [(Logger, "line_every"), (Progress, "refresh")])
def test_seconds(hook: Any, key: str, given: int | str | None) -> None:
    with pytest.raises(ConfigError) as error:
        hook(**{key: given})
    assert error.value.key == key

"""Seconds that are none are refused before the run, not in its middle."""

import pytest

from trainyard.errors import ConfigError
from trainyard.hooks import Logger, Progress


@pytest.mark.parametrize("given", ["abc", -1, None])
@pytest.mark.parametrize(("hook", "key"), [(Logger, "line_every"), (Progress, "refresh")])
def test_seconds(hook, key, given):
    with pytest.raises(ConfigError) as error:
        hook(**{key: given})
    assert error.value.key == key

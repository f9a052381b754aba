"""Keys that distinguish jobs, kept while jobs are added one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.sweep.plan import Job
from trainyard.sweep.varying import VaryingKeys

JOBS = st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from("012"), min_size=1), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(JOBS)
def test_jobs_added_one_by_one_have_the_keys_of_all(choices: list[dict[str, str]]) -> None:
    config: Any = None
    jobs = [
        Job(num, tuple(f"{key}={value}" for key, value in own.items()), config, Path())
        for num, own in enumerate(choices)
    ]
    kept = VaryingKeys(["a=0", "b=0,1"])
    for count, job in enumerate(jobs, 1):
        keys = kept.add([job])
        so_far = choices[:count]
        every = list(dict.fromkeys(key for own in so_far for key in own))
        assert keys == [key for key in every if key != "a" or len({own.get(key) for own in so_far}) > 1]

"""Where runs differ."""

from typing import Any

from trainyard.catalog import compare


def test_settings_that_differ_are_listed_with_the_value_of_each_run(make_run: Any) -> None:
    runs = [make_run("a", seed=0), make_run("b", seed=1, momentum=0.9), make_run("c", seed=0)]
    assert compare(runs).settings == {"seed": [0, 1, 0], "momentum": [None, 0.9, None]}


def test_where_a_run_is_stored_is_no_difference(make_run: Any) -> None:
    assert compare([make_run("a", work_dir="a"), make_run("b", work_dir="b")]).settings == {}


def test_code_and_environment_are_apart(make_run: Any) -> None:
    a, b = make_run("a"), make_run("b")
    b.info.facts.update({"git.commit": "decade", "version.torch": "3.0"})
    found = compare([a, b])
    assert found.code == {"git.commit": ["c0ffee", "decade"]}
    assert found.environment == {"version.torch": ["2.0", "3.0"]}


def test_the_job_of_slurm_is_no_difference(make_run: Any) -> None:
    a, b = make_run("a"), make_run("b")
    a.info.facts.update({"slurm.job": "12_0", "slurm.node": "n1"})
    b.info.facts.update({"slurm.job": "12_1", "slurm.node": "n2"})
    assert compare([a, b]).environment == {"slurm.node": ["n1", "n2"]}


def test_all_metrics_are_listed(make_run: Any) -> None:
    found = compare([make_run("a", [0.5]), make_run("b", [0.5])])
    assert found.metrics == {"train/loss": [1.0, 1.0], "val/accuracy": [0.5, 0.5], "val/loss": [0.5, 0.5]}

"""More grids: values taken together, blocks, a file of jobs, conditional keys."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.errors import ConfigError
from trainyard.sweep.compose.composer import SweepLoader
from trainyard.sweep.grid import grid_jobs
from trainyard.sweep.grid_settings import GridSettings

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def hydra() -> Iterator[Any]:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        loader: Any = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", [], RunMode.MULTIRUN)
        yield SweepLoader(loader, master), master


@pytest.fixture
def jobs(hydra: Any) -> Any:
    def made(*lines: str, **further: Any) -> Any:
        return grid_jobs(lines, GridSettings.from_config(**further), *hydra)

    return made


def test_zipped_values_are_taken_together(jobs: Any) -> None:
    assert jobs("optim.lr=1,2", "seed=0,1", "data.batch_size=8,16", zip=[["optim.lr", "data.batch_size"]]) == [
        ["optim.lr=1", "seed=0", "data.batch_size=8"], ["optim.lr=1", "seed=1", "data.batch_size=8"],
        ["optim.lr=2", "seed=0", "data.batch_size=16"], ["optim.lr=2", "seed=1", "data.batch_size=16"],
    ]  # fmt: skip


def test_each_block_is_a_grid_behind_the_command(jobs: Any) -> None:
    blocks = [{"model": "mlp", "model.hidden": "[8],[16]"}, ["model=cnn"], {"optim": "adam", "model": "cnn"}]
    assert jobs("seed=0,1", "optim=adam", blocks=blocks) == [
        ["seed=0", "optim=adam", "model=mlp", "model.hidden=[8]"],
        ["seed=0", "optim=adam", "model=mlp", "model.hidden=[16]"],
        ["seed=1", "optim=adam", "model=mlp", "model.hidden=[8]"],
        ["seed=1", "optim=adam", "model=mlp", "model.hidden=[16]"],
        ["seed=0", "optim=adam", "model=cnn"],
        ["seed=1", "optim=adam", "model=cnn"],
    ], "the third block has the jobs of the second"
    assert jobs(blocks=[{"freeze": None, "data.shuffle": True, "model.hidden": [8, 16], "init": {"a": "x"}}]) == [
        ["freeze=null", "data.shuffle=True", "model.hidden=[8,16]", "init={a:x}"]
    ], "values of a config file"


def test_each_row_of_a_file_is_a_job(jobs: Any, tmp_path: Path) -> None:
    file = tmp_path / "jobs.csv"
    file.write_bytes(b'\xef\xbb\xbfoptim.lr, model ,+note,model.hidden\r\n0.1,mlp,"a b","[8,16]"\r\n\r\n0.2,cnn,1,\r\n')
    assert jobs("seed=0,1", file=str(file)) == [
        ["seed=0", "optim.lr=0.1", "model=mlp", "+note=a b", "model.hidden=[8,16]"],
        ["seed=1", "optim.lr=0.1", "model=mlp", "+note=a b", "model.hidden=[8,16]"],
        ["seed=0", "optim.lr=0.2", "model=cnn", "+note=1"],
        ["seed=1", "optim.lr=0.2", "model=cnn", "+note=1"],
    ]


def test_a_key_whose_condition_does_not_hold_is_no_parameter(jobs: Any) -> None:
    when = {"model.hidden": "model=mlp", "optim.momentum": "optim=sgd,rmsprop"}
    assert jobs("model=mlp,cnn", "model.hidden=[8],[16]", "optim=adam", "optim.momentum=0.5,0.9", when=when) == [
        ["model=mlp", "model.hidden=[8]", "optim=adam"],
        ["model=mlp", "model.hidden=[16]", "optim=adam"],
        ["model=cnn", "optim=adam"],
    ]
    assert jobs("model.hidden=[8]", when=when) == [["model.hidden=[8]"]], "mlp is the default"
    assert jobs("model.hidden=[8]", "experiment=digits_cnn", when=when) == [["experiment=digits_cnn"]], "which sets cnn"
    assert jobs("seed=0", when=when) == [["seed=0"]], "a config file may have conditions that a command does not need"


def test_conditions_of_values_and_of_conditional_keys(jobs: Any) -> None:
    when = {
        "optim.nesterov": ["optim=sgd"],
        "optim.momentum": ["optim.nesterov=true", "model=mlp"],
        "schedule": "optim.lr=0.1",
        "schedule.scheduler.gamma": "schedule=exponential",
    }
    common = ["optim.momentum=0.9", "optim.nesterov=true,false"]
    assert jobs("optim=sgd,adam", *common, when=when) == [
        ["optim=sgd", "optim.momentum=0.9", "optim.nesterov=True"],
        ["optim=sgd", "optim.nesterov=False"],
        ["optim=adam"],
    ]
    assert jobs("optim.lr=0.1,1", "schedule=exponential", "schedule.scheduler.gamma=0.5", when=when) == [
        ["optim.lr=0.1", "schedule=exponential", "schedule.scheduler.gamma=0.5"], ["optim.lr=1"],
    ]  # fmt: skip
    assert jobs("optim={lr:0.1},{lr:0.2}", "schedule=cosine", when=when) == [
        ["optim={lr:0.1}", "schedule=cosine"], ["optim={lr:0.2}"],
    ]  # fmt: skip
    when = {"freeze": "clip_grad_norm=1"}
    assert jobs("freeze=a", "clip_grad_norm=${seed}", "seed=1,2", when=when) == [
        ["freeze=a", r"clip_grad_norm=$\{seed\}", "seed=1"], [r"clip_grad_norm=$\{seed\}", "seed=2"],
    ]  # fmt: skip
    when = {"model.dropout": "data.batch_size=1"}
    assert jobs("model.dropout=0.1", when=when) == [[]], "another value is the default"


VALUES = {
    "seed": ["0", "1", "2", "3"],
    "optim.lr": ["0.1", "0.2", "0.3"],
    "data.batch_size": ["8", "16", "32"],
    "model": ["mlp", "cnn", "resnet"],
    "model.hidden": ["[8]", "[16]"],
    "optim": ["adam", "sgd"],
}


def _some_values(keys: list[str]) -> Any:
    return st.fixed_dictionaries(
        {key: st.lists(st.sampled_from(VALUES[key]), min_size=1, max_size=3, unique=True) for key in keys}
    )


@given(data=st.data())
@settings(max_examples=60)
def test_the_jobs_are_those_of_the_definition(jobs: Any, data: Any, tmp_path: Path) -> None:
    """A job is a choice of a value for each key of a block, with the zipped ones at one index, and a row."""
    columns = data.draw(st.lists(st.sampled_from(["seed", "optim.lr"]), unique=True))
    free = [key for key in VALUES if key not in columns]
    command = data.draw(st.lists(st.sampled_from(free), unique=True).flatmap(_some_values))
    blocks = data.draw(st.lists(st.lists(st.sampled_from(free), unique=True).flatmap(_some_values), max_size=3))
    rows = (
        data.draw(st.lists(st.tuples(*(st.sampled_from(VALUES[key]) for key in columns)), min_size=1, max_size=3))
        if columns
        else [()]
    )
    when = data.draw(
        st.sampled_from(
            [None, {"model.hidden": "model=mlp"}, {"model.hidden": "model=mlp,cnn", "optim.lr": "optim=sgd"}]
        )
    )
    grids = [{**command, **block} for block in blocks or [{}]]
    pair = ("seed", "data.batch_size")
    zipped = all(
        all(len(grid.get(key, [])) > 1 for key in pair) and len({len(grid[key]) for key in pair}) == 1 for grid in grids
    )

    expected = set()
    for grid in grids:
        for values, row in itertools.product(itertools.product(*grid.values()), rows):
            job = dict(zip(grid, values, strict=True))
            if zipped and len({grid[key].index(job[key]) for key in pair}) > 1:
                continue
            job |= dict(zip(columns, row, strict=True))
            if when is not None:
                if job.get("model", "mlp") not in when["model.hidden"].partition("=")[2].split(","):
                    job.pop("model.hidden", None)
                if "optim.lr" in when and job.get("optim", "adam") != "sgd":
                    job.pop("optim.lr", None)
            expected.add(frozenset(f"{key}={value}" for key, value in job.items()))

    file = tmp_path / "jobs.csv"
    cells = [columns, *rows]
    file.write_text("".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in cells))
    found = jobs(
        *(f"{key}={','.join(values)}" for key, values in command.items()),
        blocks=[{key: ",".join(values) for key, values in block.items()} for block in blocks] or None,
        file=str(file) if columns else None,
        when=when,
        zip=[list(pair)] if zipped else None,
    )
    assert {frozenset(job) for job in found} == expected
    if blocks or when:
        assert len(found) == len(expected), "equal jobs are one"


PAIR = [["seed", "optim.lr"]]


@pytest.mark.parametrize(
    ("lines", "further", "said"),
    [
        (["seed=0,1", "optim.lr=1,2,3"], {"zip": PAIR}, "seed has 2 values, optim.lr has 3 values"),
        (["seed=0,1", "optim.lr=1,2"], {"zip": [["seed", "optim.lrr"]]}, "Did you mean 'optim.lr'?"),
        (["seed=0,1", "optim.lr=1"], {"zip": PAIR}, "'optim.lr' is invalid. Expected keys with several values: seed."),
        (["seed=0"], {"zip": PAIR}, "none in this sweep"),
        ([], {"zip": ["seed", "optim.lr"]}, "[[optim.lr,data.batch_size]], or null"),
        ([], {"zip": [["seed"]]}, "at least two keys"),
        ([], {"zip": [["seed", "seed"]]}, "keys that are not repeated"),
        ([], {"zip": [["seed", 1]]}, "1 is invalid. Expected a key"),
        (
            ["seed=0,1"],
            {"zip": PAIR, "blocks": [{"optim.lr": "1,2"}, {}]},
            "hydra.sweeper.blocks[1] has several values only for seed.",
        ),
        (
            ["init={a:1},{a:2}", "init={b:1},{b:2}", "seed=0,1"],
            {"zip": [["init", "seed"]]},
            "a key whose values are listed in one override",
        ),
        ([], {"blocks": []}, "a list of blocks, or null"),
        ([], {"blocks": {"seed": 1}}, "a list of blocks"),
        ([], {"blocks": ["seed=1"]}, "'seed=1' is invalid. Expected a list of blocks"),
        ([], {"file": 3}, "the path of a CSV file"),
        ([], {"when": ["model=mlp"]}, "Expected a mapping of keys to conditions"),
        (
            [],
            {"when": {"model.hidden": "mlp"}},
            "hydra.sweeper.when.model.hidden: 'mlp' is invalid. Expected a condition",
        ),
        (
            [],
            {"when": {"model.hidden": "model=mpl"}},
            "'mpl' is invalid. Expected an option of model: cnn, lightning, mlp",
        ),
        ([], {"when": {"model.hidden": "model=mpl"}}, "Did you mean 'mlp'?"),
        ([], {"when": {"model.hiden": "model=mlp"}}, "'model.hiden' is invalid. Expected a key of model: "),
        ([], {"when": {"model.hiden": "model=mlp"}}, "Did you mean 'model.hidden'?"),
        (["model.hiden=1,2", "model=cnn"], {"when": {"model.hiden": "model=mlp"}}, "Did you mean 'model.hidden'?"),
        ([], {"when": {"model.hidden": "optin=sgd"}}, "Did you mean 'optim'?"),
        ([], {"when": {"modell.hidden": "model=mlp"}}, "'modell.hidden' is invalid"),
        ([], {"when": {"optim.lr": "optim.eps=1", "optim.eps": "optim.lr=1"}}, "circular dependencies"),
        ([], {"when": {"optim.lr": "optim=[["}}, "'optim=[[' is invalid. Expected a condition"),
    ],
)
def test_settings_that_cannot_be_meant(jobs: Any, lines: Any, further: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        jobs(*lines, **further)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "The file is empty."),
        (b"optim.lr,seed\n", "only one row"),
        (b"optim.lr,+optim.lr\n1,2\n", "optim.lr has several"),
        (b"optim.lr,seed\n1\n", "Line 2 has 1 cell, but the file has 2 columns."),
        (b"learning rate\n1\n", "The file has a column 'learning rate'"),
        (b"~optim\n1\n", "The file has a column '~optim'"),
        (b"optim.lr,\n1,2\n", "The file has a column ''"),
        (b"optim.lr,@x\n1,2\n", "The file has a column '@x'"),
        (b"+,optim.lr\n1,2\n", "The file has a column '+'"),
        (b'optim.lr\n1\n"1,2"\n', "Line 3, optim.lr: '1,2' lists several"),
        (b'optim.lr\n"[1"\n', "Line 2, optim.lr: '[1' cannot be parsed"),
        (b"name\na]\n", "If the value is a string, write it in both kinds of quotes in the file, such as \"'a]'\"."),
        (b'optim.lr\n"1\n', "a readable CSV file in UTF-8. Reading the file failed: unexpected end of data."),
        (
            b"optim.lr\n\xff\n",
            "a readable CSV file in UTF-8. Reading the file failed: 'utf-8' codec can't decode byte 0xff",
        ),
        (
            b"model\nmlp\n",
            "a file without model, which is also given as an override. Remove the override model=mlp,cnn, or remove "
            "the column from the file.",
        ),
        (b"tracker.uri\n'http://me:secret@host'\n", "a value without a password"),
    ],
)
def test_files_that_cannot_be_meant(jobs: Any, tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "jobs.csv"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        jobs("model=mlp,cnn", file=str(file))
    assert said in str(raised.value)


def test_a_file_that_is_not_there(jobs: Any, tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").touch()
    for name in ("job.csv", "", "."):
        with pytest.raises(ConfigError, match=r"hydra\.sweeper\.file"):
            jobs(file=str(tmp_path / name))

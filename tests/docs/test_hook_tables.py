"""The tables of docs/hooks.md say what the hooks and the loops do."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_tables import cells, codes, defaults, names, page, plain, section, table, tables, value
from omegaconf import OmegaConf

from trainyard import hooks
from trainyard.hooks import Hook
from trainyard.runner import Member, Runner, default_hooks
from trainyard.runner.dispatch import OF_MEMBER, PRIORITIES, STAGES
from trainyard.runner.dispatch import priority as number_of

CONF = Path(__file__).parents[2] / "conf/hook"
PAGE = page("hooks.md")
BUILT_IN: dict[str, type[Hook]] = {name: getattr(hooks, name) for name in hooks.__all__ if name != "Hook"}
RARE = {"after_idle_iter", "before_leave", "after_join"}  # of several ranks, and of a stack


def stage_rows() -> dict[str, list[str]]:
    """The stages of the table, each with its arguments after the runner."""
    found: dict[str, list[str]] = {}
    for row in table(section(PAGE, "Stages"), "stage"):
        given = row["arguments after `runner`"]
        taken = codes(given)[0].split(", ") if given.startswith("`") else []
        for stage in codes(row["stage"]):
            assert stage not in found
            found[stage] = taken
    return found


def described() -> dict[str, tuple[str, str]]:
    """The built-in hooks of the page: the class and the text of each name."""
    text = section(PAGE, "The built-in hooks")
    found = list(re.finditer(r"^\*\*`(\w+)`\*\* \(`(\w+)`", text, re.MULTILINE))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {each[1]: (each[2], text[each.end() : end]) for each, end in zip(found, ends, strict=True)}


def configured() -> dict[str, tuple[str, dict[str, Any]]]:
    """The hooks of conf/hook: of each name the option, and what it gives the class."""
    found = {}
    for file in CONF.glob("*.yaml"):
        for name, node in OmegaConf.to_container(OmegaConf.load(file)).items():
            if name != "defaults":
                found[str(name)] = (file.stem, node)
    return found


def arguments(kind: type) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(kind).parameters.items()}


def test_every_stage_has_a_row() -> None:
    assert set(stage_rows()) == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_in_the_docstring_of_the_base(stage: str) -> None:
    """There `test` is told with `val`."""
    told = {name for line in (Hook.__doc__ or "").splitlines() if "|" in line for name in codes(cells(line)[0])}
    assert {stage, stage.replace("test", "val")} & told


def test_built_in_hooks_take_the_arguments_of_the_table() -> None:
    told = stage_rows()
    seen = set()
    for name, kind in BUILT_IN.items():
        for stage in STAGES:
            if hasattr(kind, stage):
                _, _, *taken = inspect.signature(getattr(kind, stage)).parameters
                needed = [argument for argument in told[stage] if argument != "member" or argument in taken]
                assert taken == needed, f"{name}.{stage}"
                seen.add(stage)
    assert seen >= RARE - {"after_join"}  # of the others the next test sees every call


class Seen(Hook):
    """Notes every stage that comes, with what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, list[str]]] = []

    def __getattr__(self, stage: str) -> Any:
        if stage not in STAGES:
            raise AttributeError(stage)
        if stage in OF_MEMBER:
            return lambda runner, checkpoint, member: self.calls.append((stage, 0, ["checkpoint", "member"]))
        return lambda runner, *given, **named: self.calls.append((stage, len(given), list(named)))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, list[str]]]:
    """The calls of a run of one epoch of one batch, with a turn of validation by losses; resumed, and tested."""
    directory = tmp_path_factory.mktemp("run")
    hook = Seen()

    def made(epochs: int, resume: bool) -> Runner:
        loop = {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": epochs}
        return Runner(
            {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [2]},
            {"_target_": "trainyard.data.Rings", "num_samples": 30, "batch_size": 100},
            {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
            metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
            loop=loop | {"workflow": [["train", 1], ["val", 1]]},
            hooks={"seen": hook, "checkpoint": {"_target_": "trainyard.hooks.Checkpoint"}},
            device="cpu",
            work_dir=directory,
            resume=resume,
        )

    made(1, resume=False).train()
    again = made(2, resume=True)
    again.train()
    again.test()
    return hook.calls


def test_every_stage_is_called_with_the_arguments_of_the_table(seen: list[tuple[str, int, list[str]]]) -> None:
    told = stage_rows()
    assert {stage for stage, _, _ in seen} == set(STAGES) - RARE
    for stage, given, named in seen:
        assert given + len(named) == len(told[stage]), stage
        assert named == told[stage][given:], stage


def test_stages_come_in_the_order_that_is_drawn(seen: list[tuple[str, int, list[str]]]) -> None:
    text = section(PAGE, "Stages")
    drawn = re.findall(r"\b(?:before|after)_\w+", text[text.index("called in this order:") :].split("```")[1])
    first = [stage for stage, _, _ in seen]
    first = first[: first.index("after_run") + 1]
    assert drawn == [stage for stage in first if stage in drawn]
    assert set(first) - set(drawn) <= {stage for stage in STAGES if "val_loss" in stage or "checkpoint" in stage}


def test_every_priority_has_a_row_with_its_hooks() -> None:
    rows = table(section(PAGE, "Priorities"), "name")
    assert {codes(row["name"])[0]: int(row["number"]) for row in rows} == PRIORITIES
    told = {name: int(row["number"]) for row in rows for name in codes(row["built-in hooks"])}
    assert told == {name: number_of(kind.priority) for name, kind in BUILT_IN.items()}


def test_every_built_in_hook_is_described_under_its_name() -> None:
    rows = table(section(PAGE, "The built-in hooks"), "name")
    told = {codes(row["name"])[0]: (codes(row["class"])[0], codes(row["option"])[0], row["ranks"]) for row in rows}
    kept = {
        name: (kind, "default" if name in default_hooks() else option, BUILT_IN[kind].ranks)
        for name, (option, node) in configured().items()
        for kind in [node["_target_"].rpartition(".")[2]]
    }
    assert told == kept
    assert {kind for kind, _, _ in told.values()} == set(BUILT_IN)
    assert {name: kind for name, (kind, _) in described().items()} == {
        name: kind for name, (kind, _, _) in kept.items()
    }


def test_all_of_ours_know_of_members_but_two() -> None:
    """docs/fused.md says so."""
    assert [name for name, kind in BUILT_IN.items() if not kind.stackable] == ["DetectionLog", "Unfreeze"]


@pytest.mark.parametrize("name", sorted(configured()))
def test_every_argument_of_a_hook_has_a_row(name: str) -> None:
    """The default is that of the config; where that of the class is another, it stands behind: (in Python: …)."""
    kind, text = described()[name]
    if name == "predictions":  # its table is on another page
        text, key = page("evaluation.md"), "`hook.predictions.`"
    else:
        key = "key"
    found = [rows for header, rows in tables(text) if header[0] == key]
    code, (_, config) = arguments(BUILT_IN[kind]), configured()[name]
    assert len(found) == bool(code), f"{name}: {len(found)} tables of its arguments"
    rows = found[0] if found else []
    assert sorted(names(rows, key)) == sorted(code)
    for argument, shown in defaults(rows, "default", key).items():
        (row,) = (row for row in rows if argument in codes(row[key]))
        given = plain(config.get(argument, code[argument]))
        if isinstance(given, str) and "${" in given:
            assert shown in given, argument
        else:
            assert value(shown) == given, argument
        behind = re.search(r"\(in Python: `(.+?)`\)", row["default"])
        differs = given != plain(code[argument])
        assert bool(behind) == differs, f"{name}.{argument}: {code[argument]} in Python"
        assert not behind or value(behind[1]) == plain(code[argument]), argument


def test_the_default_hooks_are_named() -> None:
    rows = table(section(PAGE, "The built-in hooks"), "name")
    assert {codes(row["name"])[0] for row in rows if "`default`" in row["option"]} == set(default_hooks())


def test_what_a_hook_reads_is_there() -> None:
    rows = table(section(PAGE, "Your own"), "name")
    made = Runner(
        {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [2]},
        {"_target_": "trainyard.data.Rings", "num_samples": 30},
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        loop={"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
        device="cpu",
    )
    owners = {"runner": made, "member": made.members[0]}
    for code in names(rows, "name"):
        owner, _, attribute = re.match(r"(\w+)(\.)(\w+)", code).groups()
        assert hasattr(owners[owner], attribute), code
    assert isinstance(made.members[0], Member)

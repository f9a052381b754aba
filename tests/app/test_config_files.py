"""Folders and files of configs that Hydra does not find, does not read, or reads in another way than the user meant."""

from pathlib import Path
from typing import Any

import pytest

EXPERIMENT = "defaults:\n  - override /model: mlp\nmodel:\n  hidden: [5]\n"


def _experiment(text: str | bytes, name: str = "mine") -> list[str]:
    """Write an experiment into a folder of configs, and return the arguments that select it."""
    file = Path(f"own/experiment/{name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["--config-dir", "own", f"experiment={name}", "hydra.run.dir=run"]


def _told(command: Any, *arguments: str) -> str:
    before = sorted(Path().rglob("*"))
    status, said = command(*arguments)
    assert status == 2, said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, "one paragraph"
    assert sorted(Path().rglob("*")) == before, "nothing is left behind"
    return str(said).strip()


def test_folders_that_do_not_exist(command: Any) -> None:
    Path("configs").mkdir()
    here = Path.cwd()
    assert _told(command, "-cp", "config") == (
        f"--config-path: '{here}/config' is invalid. Expected the path of an existing folder. "
        f"Did you mean '{here}/configs'?"
    )
    assert f"--config-dir: '{here}/config' is invalid." in _told(command, "--config-dir", "config")
    assert f"'{here}/configs'?" in _told(command, "seed=1", "--config-dir=config")
    Path("train.yaml").write_text("seed: 1\n")
    assert f"'{here}/train.yaml' is a file." in _told(command, "-cp", "train.yaml")


def test_a_folder_without_the_primary_config(command: Any) -> None:
    Path("configs/model").mkdir(parents=True)
    here = Path.cwd()
    assert _told(command, "-cp", "configs") == (
        f"--config-path: '{here}/configs' is invalid. Expected a folder that contains train.yaml. To add a folder of "
        "group options, such as model/mine.yaml, use --config-dir."
    )
    Path("configs/mine.yaml").write_text("defaults: [train]\n")
    assert "Available primary configs: mine. Select one with --config-name." in _told(command, "-cp", "configs")
    assert "--config-name: 'mini' is invalid. Expected a config in" in _told(
        command, "--config-dir", "configs", "-cn", "mini"
    )
    assert "Did you mean 'mine'?" in _told(command, "--config-dir", "configs", "-cn", "mini")


def test_a_relative_folder_of_configs(command: Any) -> None:
    Path("configs/model").mkdir(parents=True)
    Path("configs/mine.yaml").write_text("defaults: [train, _self_, {override model: tiny}]\nseed: 7\n")
    Path("configs/model/tiny.yaml").write_text("defaults: [mlp]\n")
    status, said = command("-cp", "configs", "-cn", "mine", "hydra.run.dir=run")
    assert status == 0, said
    assert "seed: 7" in Path("run/config.yaml").read_text()
    assert "Did you mean 'tiny'?" in _told(command, "-cp", "configs", "-cn", "mine", "model=tini"), "its own options"


def test_options_of_an_added_folder_are_listed(command: Any) -> None:
    _experiment("# @package _global_\n")
    assert "Did you mean 'mine'?" in _told(command, "--config-dir", "own", "experiment=mini")
    assert "digits_cnn, mine, rings_gan" in _told(command, "--config-dir", "own", "experiment=3")


@pytest.mark.parametrize("above", ["# My experiment.\n", "# yaml-language-server: $schema=x.json\n\n", "seed: 1\n"])
def test_a_header_that_is_not_at_the_top(command: Any, above: str) -> None:
    arguments = _experiment(f"{above}# @package _global_\n{EXPERIMENT}")
    line = above.count("\n") + 1
    assert _told(command, *arguments) == (
        f"{Path.cwd()}/own/experiment/mine.yaml, line {line}: Hydra does not read '# @package _global_' here, because "
        "another line is above it. Make it the first line of the file."
    )


def test_a_header_of_an_included_file(command: Any) -> None:
    _experiment(f"# Values of all.\n# @package _global_\n{EXPERIMENT}", "base")
    arguments = _experiment("# @package _global_\ndefaults: [base]\n")
    assert "own/experiment/base.yaml, line 2: Hydra does not read" in _told(command, *arguments)


@pytest.mark.parametrize(
    "header", ["# @package _global_\n", "\n\n#@package _global_\n", "# @mine x\n# @package _global_\n"]
)
def test_a_header_at_the_top(command: Any, header: str) -> None:
    arguments = _experiment(f"{header}# The header is `# @package _global_`.\n{EXPERIMENT}")
    status, said = command(*(each for each in arguments), quick=["data=rings", "data.num_samples=60", "tracker=none"])
    assert status == 0, said
    assert "- 5\n" in Path("run/config.yaml").read_text()


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("# @package: _global_", "Hydra does not read '# @package: _global_'. Write '# @package _global_'."),
        ("# @Package _global_", "Hydra does not read '# @Package _global_'. Write '# @package _global_'."),
        ("# @package global", "Hydra does not know 'global' in '# @package global'. Did you mean '_global_'?"),
        ("# @package _globl_", "Hydra does not know '_globl_' in '# @package _globl_'. Did you mean '_global_'?"),
        ("# @package", "'# @package' is invalid. Expected one name after @package, such as '# @package _global_', and"),
        ("# @author John Doe", "'# @author John Doe' is invalid. Hydra reads a comment with an @ at its start as"),
        ("# @package _global_ # all", "'# @package _global_ # all' is invalid. Expected one name after @package"),
    ],
)
def test_a_header_that_is_misspelled(command: Any, header: str, told: str) -> None:
    message = _told(command, *_experiment(f"{header}\n{EXPERIMENT}"))
    assert message.startswith(f"{Path.cwd()}/own/experiment/mine.yaml, line 1: {told}")


def test_an_experiment_without_a_header(command: Any) -> None:
    quick = ["data=rings", "data.num_samples=60", "loop.max_epochs=1", "tracker=none"]
    status, said = command(*_experiment("seed: 3\nloop: {max_epochs: 1}\n"), quick=quick)
    assert status == 0, said
    assert (
        "experiment.seed: this key is not used. To set seed, loop at the top level of the config, write "
        "'# @package _global_' in the first line of experiment/mine.yaml."
    ) in Path("run/train.log").read_text()


def test_files_that_are_no_text(command: Any) -> None:
    said = _told(command, *_experiment(b"# @package _global_\nname: caf\xe9\n"))
    assert (
        said
        == f"{Path.cwd()}/own/experiment/mine.yaml is not encoded in UTF-8, from byte 29 on. Save the file in UTF-8."
    )
    said = _told(command, *_experiment("# @package _global_\nname: a\x00b\n"))
    assert (
        said == f"{Path.cwd()}/own/experiment/mine.yaml, line 2: YAML does not allow the character '\\x00'. Remove it."
    )


FILE = "own/experiment/mine.yaml"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n", f"{FILE} contains a list. Expected a mapping of keys to values."),
        ("3\n", f"{FILE} contains the value 3. Expected a mapping of keys to values."),
        ("model: [1]\n", f"{FILE}: model: [1] is invalid, because a list cannot replace a mapping."),
        (
            "model: {hidden: {a: 1}}\n",
            f"{FILE}: model.hidden: {{'a': 1}} is invalid, because a mapping cannot replace a",
        ),
        (
            "~: 3\n",
            f"{FILE} contains the key null, which YAML also reads from ~ and from an empty key. Quote this key.",
        ),
        ("seed: ${\n", f"{FILE}: seed: an interpolation is invalid: no viable alternative at input '${{'."),
        ("x: [{y: '${foo'}]\n", f"{FILE}: x[0].y: an interpolation is invalid: no viable alternative at input"),
        ("x: &a [*a]\n", "include each other in a circle, or contain a value that is nested too deeply."),
        ("hydra: 3\n", f"{FILE}: hydra: 3 is invalid. Expected a mapping of Hydra's settings."),
        ("hydra: {run: out}\n", f"{FILE}: hydra.run: out is invalid. Expected a mapping of Hydra's settings."),
        (
            "hydra: {run: out, job: {name: out}}\n",
            f"{FILE}: the value out replaces a mapping of Hydra's settings. Expected a mapping.",
        ),
        ("hydra: {nope: 1}\n", f"{FILE}: hydra.nope: Hydra has no such setting."),
        ("hydra: {job: {chdir: x}}\n", f"{FILE}: hydra.job.chdir: Value 'x' is not a valid bool (type str)."),
        (
            "hydra: {searchpath: [a]}\n",
            f"{FILE}: Overriding hydra.searchpath is only supported from the primary config.",
        ),
        ("hydra: {verbose: [1]}\n", "hydra.job_logging or hydra.verbose: Python's logging refuses a setting."),
        (
            "defaults: 3\n",
            f"{FILE}: defaults: 3 is invalid. Expected a list of names of configs, and mappings with one",
        ),
        (
            "defaults: [3]\n",
            f"{FILE}: an entry of defaults: 3 is invalid. Expected the name of a config, or a mapping with",
        ),
        (
            "defaults: [{override /model: [1]}]\n",
            f"{FILE}: an entry of defaults: {{'override /model': [1]}} is invalid.",
        ),
        (
            "defaults: [{override /model: a, b: c}]\n",
            f"{FILE}: an entry of defaults: {{'override /model': 'a', 'b': 'c'}}",
        ),
        ("defaults: [_self_, _self_]\n", f"{FILE}: the defaults list contains _self_ more than once."),
        ("defaults: [mine]\n", f"{FILE}: the defaults list includes the file itself."),
        (
            "defaults: [{override /modl: mlp}]\n",
            f"{FILE}: override: 'modl' is invalid. Expected a group that the configs",
        ),
        ("defaults: [{override /modl: mlp}]\n", "tracker. Did you mean 'model'?"),
        (
            "defaults: [{override model: mlp}]\n",
            f"{FILE}: 'override experiment/model' is invalid. Write 'override /model':",
        ),
        ("defaults: [{model: mlp}]\n", "experiment/model has no options. The defaults list of"),
        (
            "defaults: [{model: mlp}]\n",
            "experiment/mine.yaml contains this name. Write 'override /model': without the /, the group is",
        ),
        ("defaults: [{/model: mlp}]\n", "The defaults lists of the configs select an option of model twice."),
        (
            "defaults: [{override /model: mpl}]\n",
            f"Did you mean 'mlp'? The defaults list of PWD/{FILE} contains this name.",
        ),
        ("defaults: [{override /hook: [ema, nope]}]\n", f"The defaults list of PWD/{FILE} contains this name."),
        (
            "defaults: [{override /model@foo: cnn}]\n",
            f"{FILE}: 'override model' is invalid, because the configs select model without a package (@…). Write "
            "'override /model: OPTION'.",
        ),
        ("hydra: {launcher: [a]}\n", f"{FILE}: hydra.launcher: ['a'] is invalid, because a list cannot replace a map"),
        ("hydra: [a]\n", f"{FILE}: hydra: ['a'] is invalid. Expected a mapping of Hydra's settings."),
        ("hydra: null\n", f"{FILE}: hydra: None is invalid. Expected a mapping of Hydra's settings."),
        ("defaults: [bass]\n", "experiment: 'bass' is invalid. Expected one of beginner, "),
    ],
)
def test_a_file_that_hydra_cannot_compose(command: Any, text: str, told: str) -> None:
    assert told.replace("PWD", str(Path.cwd())) in _told(command, *_experiment(f"# @package _global_\n{text}"))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "optim/my",
            "defaults: [adamw, _self_]\nbetas: {0.9, 0.95}\n",
            "optim.betas: {0.9: None, 0.95: None} is invalid, because a mapping cannot replace a list.",
        ),
        (
            "schedule/my",  # the config without overrides has no milestones
            "defaults: [multistep, _self_]\nscheduler: {milestones: {a: 1}}\n",
            "schedule.scheduler.milestones: {'a': 1} is invalid, because a mapping cannot replace a list.",
        ),
        (
            "optim/my",
            "# @package optim\ndefaults: [adamw@_global_.optim, _self_]\nbetas: {a: 1}\n",
            "optim.betas: {'a': 1} is invalid, because a mapping cannot replace a list.",
        ),
        (
            "hook/my",
            "defaults: [default, _self_]\nlogger: [1]\n",
            "hook.logger: [1] is invalid, because a list cannot replace a mapping.",
        ),
    ],
)
def test_a_value_of_another_kind_in_a_file_of_a_group(command: Any, name: str, text: str, told: str) -> None:
    file = Path(f"own/{name}.yaml").absolute()
    file.parent.mkdir(parents=True)
    file.write_text(text)
    arguments = ["--config-dir", "own", "hydra.run.dir=run"]
    group = name.partition("/")[0]
    assert _told(command, *arguments, f"{group}=my") == f"{file}: {told}"
    Path("own/mine.yaml").write_text(f"defaults: [train, {{override {group}: my}}, _self_]\n")
    assert _told(command, *arguments, "-cn", "mine") == f"{file}: {told}"


def test_a_misspelled_option_in_a_primary_config_that_extends_train(command: Any) -> None:
    Path("own").mkdir()
    file = Path("own/spirals.yaml").absolute()
    for entry in ("override model: nett", "override /model: nett", "override hook: [default, nett]"):
        file.write_text(f"defaults: [train, {{{entry}}}, _self_]\n")
        said = _told(command, "--config-dir", "own", "-cn", "spirals", "hydra.run.dir=run")
        assert f"The defaults list of {file} contains this name." in said
        assert "train.yaml" not in said
    file.write_text("model: mlpp\ndefaults: [train, {override model: '${model}'}, _self_]\n")
    assert "contains this name" not in _told(command, "--config-dir", "own", "-cn", "spirals", "hydra.run.dir=run")


@pytest.mark.parametrize("option", ["search", "nope"])
def test_an_override_of_the_sweeper_that_hydra_ignores(command: Any, option: str) -> None:
    arguments = _experiment(f"# @package _global_\ndefaults: [{{override /hydra/sweeper: {option}}}]\n")
    said = _told(command, *arguments)
    assert f"{Path.cwd()}/{FILE}: 'override /hydra/sweeper: {option}' has no effect, because the primary config" in said
    assert (
        "train.yaml overrides hydra/sweeper and takes precedence. Change this entry in the primary config, or" in said
    )


def test_an_override_in_a_file_without_a_header(command: Any) -> None:
    assert _told(command, *_experiment("defaults: [{override /model: mlp}]\n")) == (
        f"{Path.cwd()}/{FILE}: 'override model' is invalid, because the values of this file are placed below "
        "experiment. Write '# @package _global_' in the first line of the file."
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["=1"], "'=1' is not a valid override: it has no key. Expected KEY=VALUE."),
        (["+@x=1"], "'+@x=1' is not a valid override: it has no key."),
        (["hydra.run.dir=[1]"], "hydra.run.dir: '[1]' is invalid. Cannot convert 'list' to string: '[1]'."),
        (["~hydra.run"], "hydra.run cannot be removed."),
        (["hydra.searchpath=[http://x]"], "No config source registered for schema http, supported types : "),
        (["--resolve"], "The --resolve flag can only be used in conjunction with --cfg or --help."),
        (["--experimental-rerun", "x"], "File x does not exist!"),
        (["-cp", "pkg://nope"], "--config-path: 'pkg://nope' is invalid. Expected the name of a package"),
        (["--cfg", "job", "--resolve", "seed=${nope}"], "Interpolation key 'nope' not found."),
    ],
    ids=str,
)  # fmt: skip
def test_flags_and_values_of_hydra(command: Any, arguments: list[str], told: str) -> None:
    assert told in _told(command, *arguments)


def test_a_current_folder_that_was_removed(command: Any) -> None:
    Path.cwd().rmdir()
    status, said = command("model=mlp")
    assert status == 2
    assert said == (
        "The current folder was removed, or you have no access to it. Change to an existing folder (cd), and "
        "repeat the command.\n"
    )

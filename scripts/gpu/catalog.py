"""Parts of the check, in the order in which they run, and the tables of their results."""

from __future__ import annotations

from dataclasses import dataclass

TOTAL = 480
"""Maximum number of seconds of the complete check."""
MACHINE = 20
"""Seconds of this time for the first import of PyTorch and the check of the machine."""


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        key: its name in the JSON file.
        title: the line above the table.
        rows: the names of the rows.
        unit: the unit of the times; None: the rows contain findings.
    """

    key: str
    title: str
    rows: tuple[str, ...]
    unit: str | None = None


@dataclass(frozen=True)
class Part:
    """A part of the check, which runs in a separate process.

    Attributes:
        name: the name on the command line and in the JSON file.
        module: the module in the package `parts`.
        limit: the number of seconds after which the part is ended; its results until then are kept.
        about: a description.
        tables: the tables of the results.
        beside: whether the part runs at the same time as the next parts, until a part that measures time.
        timed: whether the part measures time; then no other part runs at the same time.
    """

    name: str
    module: str
    limit: int
    about: str
    tables: tuple[Table, ...]
    beside: bool = False
    timed: bool = False


STEP = "µs per step"
MEMBER_STEP = "µs per member step"
STEP_SIDES = (
    "captured",
    "capture=false",
    "plain, eager, resident data",
    "plain, eager, DataLoader",
    "plain, whole-step CUDA graph",
    "plain, torch.compile reduce-overhead",
)
ADAM_SIDES = ("Triton kernel", "functions on lists", "torch's fused Adam, one rate for all")
STACK_SIDES = (
    "one run, captured",
    "one run, capture=false",
    "K = 1",
    "K = 16",
    "K = 128",
    "K = 1024",
    "torch.func by hand, eager, K = 128",
    "torch.func by hand, captured, K = 128",
    "JAX jit(vmap), K = 128",
    "8 processes",
    "8 processes, MPS",
)
WORKS = {"mlp": "small MLP", "resnet": "small ResNet, bf16, channels last", "transformer": "small transformer, bf16"}

PARTS = (
    Part(
        "compile",
        "compile",
        90,
        "compiles the models of `steps` to fill the compiler's cache before the measurement",
        (Table("compile", "Compilation time in seconds:", tuple(WORKS)),),
        beside=True,
    ),
    Part(
        "tests",
        "tests",
        70,
        "runs the tests marked `gpu`: the captured step has the same bits as the eager step, a failed capture has no "
        "effect on the training, a resumed run ends with the same bits as an uninterrupted run",
        (Table("tests", "Tests marked `gpu`:", ("passed", "failed", "skipped", "without a result")),),
    ),
    Part(
        "sweep",
        "sweep",
        25,
        "runs a sweep of 16 jobs with `accumulate=2`, eight seeds and early stopping",
        (Table("sweep", "A sweep of 16 jobs:", ("jobs", "stacks", "stopped early", "capture", "seconds")),),
    ),
    Part(
        "waits",
        "waits",
        15,
        "runs 200 iterations with the default hooks, EMA, two data workers and checkpoints, with "
        '`torch.cuda.set_sync_debug_mode("warn")`',
        (Table("waits", "Waits of the host for the device:", ("iterations", "waits", "by line")),),
    ),
    Part(
        "kernels",
        "kernels",
        30,
        "counts the kernels of a step of the MLP, in a single run and in a stack of 256; measures two implementations"
        " of a stacked convolution, and the stacked Adam",
        (
            Table("kernels", "Kernels per step of the MLP:", ("K = 1", "K = 256")),
            Table("kernel_steps", "Time of the same steps:", ("K = 1", "K = 256"), STEP),
            Table(
                "convolution",
                "Stacked convolution, K = 64, batch 64, 8 to 16 channels on 8x8, forward and backward:",
                ("grouped convolution", "unfold and bmm"),
                STEP,
            ),
            Table(
                "adam",
                "Stacked Adam, K = 256 members of the MLP:",
                ADAM_SIDES,
                STEP,
            ),
        ),
        timed=True,
    ),
    Part(
        "memory",
        "memory",
        20,
        "measures `memory_reserved` over 10 epochs with two data workers, and after a forced failure of the capture",
        (Table("memory", "Reserved memory in MB after each epoch:", ("captured", "capture fails")),),
    ),
    Part(
        "steps",
        "steps",
        160,
        "measures a training step of Trainyard and of hand-written loops",
        tuple(Table(key, f"A training step, {title}:", STEP_SIDES, STEP) for key, title in WORKS.items()),
        timed=True,
    ),
    Part(
        "stacks",
        "stacks",
        105,
        "compares stacks of K members with a single run and with other methods to train many small models",
        (
            Table(
                "stacks",
                "MLP 64-64-64-10 on the digits, batch 64, members that differ in seed and learning rate:",
                STACK_SIDES,
                MEMBER_STEP,
            ),
        ),
        timed=True,
    ),
    Part(
        "whole_sweep",
        "sweep",
        35,
        "measures a sweep of 256 jobs from the start to the end of the command, with validation after each epoch and "
        "tracking in journals",
        (
            Table(
                "whole_sweep",
                "A complete sweep:",
                ("jobs", "stacks", "capture", "seconds", "µs per member step, overall", "journals"),
            ),
        ),
        timed=True,
    ),
)

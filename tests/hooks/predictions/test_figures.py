"""What is drawn, and what is written of tokens."""

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from trainyard.hooks.predictions import figures
from trainyard.hooks.predictions.token_page import compared, page

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Ankle boot", "a name $with$ dollars that is longer than the rest"]


def pixels(figure: Any) -> Any:
    """The figure as numbers, and a check that nothing of it is cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width
    assert box.y1 <= height
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def share_of(image: Any, colour: Any) -> Any:
    return (np.abs(image - to_rgb(colour)).max(-1) < 0.02).mean()


def test_rows_of_a_confusion_matrix_as_shares() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 2]])
    assert figures.row_shares(counts).tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0.25, 0.5]]


@pytest.mark.parametrize(("classes", "long"), [(2, False), (3, True), (10, True), (30, False), (120, True)])
def test_the_confusion_matrix(classes: int, long: bool) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, (classes, classes)) + np.diag(rng.integers(5, 200, classes))
    counts[1] = 0
    names = [NAMES[k % 5] if long else str(k) for k in range(classes)]
    figure = figures.confusion(counts, names, "val, epoch 1, iteration 10\n9 of 10 right")
    pixels(figure)
    axes = figure.axes[0]
    assert np.array_equal(axes.images[0].get_array(), figures.row_shares(counts))
    written = {text.get_position(): text.get_text().split("\n")[0] for text in axes.texts}
    expected = {(j, i): str(counts[i, j]) for i in range(classes) for j in range(classes) if counts[i, j]}
    assert written == (expected if classes <= 30 else {})


def test_a_share_that_is_nearly_all_is_not_all() -> None:
    figure = figures.confusion(np.array([[999, 1], [0, 5]]), ["0", "1"], "title")
    assert {text.get_text() for text in figure.axes[0].texts} == {"999\n99.9 %", "1\n0.1 %", "5\n100 %"}


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 32, 32), (2, 9, 5), (3, 300, 500)])
def test_images(shape: Any) -> None:
    pictures = np.random.default_rng(0).normal(size=(5, *shape))
    for names in (["3", "5"], [NAMES[0], NAMES[4]]):
        labels = [(names[0], names[k % 2], k % 2 == 0) for k in range(5)]
        figure = figures.images(pictures, labels, [f"97 %, #{k}" for k in range(5)], "val\nthe first 5")
        image = pixels(figure)
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100, "there is something to see"
        assert share_of(image, figures.WRONG) > 0.01
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert sum("✗" in text for text in texts) == 2
    right = figures.images(pictures, [("3", "3", True)] * 5, [""] * 5, "title")
    assert share_of(pixels(right), figures.WRONG) == 0


def test_images_keep_one_scale_and_their_own_colours() -> None:
    pictures = np.zeros((2, 3, 4, 4))
    pictures[0, 0], pictures[1] = 1.0, 0.5
    image = pixels(figures.images(pictures, [("0", "0", True)] * 2, ["", ""], "t"))
    assert share_of(image, (1, 0, 0)) > 0.1
    assert share_of(image, (0.5, 0.5, 0.5)) > 0.1
    flat = figures.images(np.full((1, 1, 4, 4), 7.0), [("0", "0", True)], [""], "t")
    assert np.isfinite(pixels(flat)).all()
    pixels(figures.images(np.full((1, 1, 4, 4), np.nan), [("0", "0", True)], [""], "t"))


@pytest.mark.parametrize("classes", [2, 12, 60])
def test_points(classes: int) -> None:
    rng = np.random.default_rng(0)
    x, predicted = rng.normal(size=(300, 2)), rng.integers(0, classes, 300)
    target = np.where(rng.random(300) < 0.9, predicted, 0)
    figure = figures.points(x, predicted, target, [NAMES[k % 5] for k in range(classes)], "val\n300 samples")
    image = pixels(figure)
    wrong = figure.axes[0].collections[-1].get_offsets()
    assert np.array_equal(wrong, x[predicted != target])
    assert all(share_of(image, colour) > 0 for colour in figures.PALETTE[:classes])


def test_a_table() -> None:
    lines = [[str(k), NAMES[4], "Coat", "97 %", "-1.234e-05"] for k in range(9)]
    figure = figures.table(["sample", "predicted", "true", "probability", "x0"], lines, [True] * 5 + [False] * 4, "val")
    pixels(figure)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("✗") == 4
    assert texts.count("-1.234e-05") == 9


@pytest.mark.parametrize("outputs", [1, 3, 6])
def test_numbers(outputs: int) -> None:
    true = np.random.default_rng(0).normal(size=(50, outputs)) * 1000
    figure = figures.numbers(true * 0.9, true, "val\n50 samples")
    pixels(figure)
    assert len(figure.axes) == min(4, outputs)
    assert np.allclose(figure.axes[0].collections[0].get_offsets(), np.stack([true[:, 0], true[:, 0] * 0.9], 1))
    pixels(figures.numbers(np.full((2, 1), np.nan), np.full((2, 1), np.nan), "diverged"))


def test_tokens_stand_beneath_each_other() -> None:
    letters = "abc\n"
    text, right, count = compared(
        np.array([0, 1, 2, 3, -100]), np.array([0, 2, 2, 1, 1]), lambda tokens: "".join(letters[t] for t in tokens)
    )
    assert text.splitlines() == ["true       abc↵·", "predicted  acc" + "bb", "            ^ ^"]
    assert (right, count) == (2, 4)


def test_tokens_without_a_text_are_numbers() -> None:
    text, right, count = compared(np.array([7, 12, 3]), np.array([7, 1, 3]), None)
    assert text.splitlines() == ["true       7  12 3", "predicted  7  1  3", "              ^^"]
    assert (right, count) == (2, 3)


def test_long_texts_are_broken() -> None:
    text, *_ = compared(np.zeros(230, dtype=int), np.zeros(230, dtype=int), lambda tokens: "x")
    assert [len(line) for line in text.splitlines()] == [111, 111, 0, 111, 111, 0, 41, 41, 0][: len(text.splitlines())]


def test_a_page_has_each_sample() -> None:
    tokens = np.array([[1, 2], [3, 4]])
    text = page("val, epoch 1", np.array([5, 9]), tokens, tokens[:, ::-1], [0.5, 1.25], None)
    assert "Sample 5: 0 of 2 tokens right, loss 0.500" in text
    assert "Sample 9: 0 of 2 tokens right, loss 1.250\ntrue       3 4\npredicted  4 3\n           ^ ^" in text

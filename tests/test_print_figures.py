"Figures for print: legible at their size, no legend on data, the rows and rules of the screen."
import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from test_figures import BESIDE, COMPARED, HISTORIES, ROWS, history

from semgbook import print_figures
from semgbook.figures import FigureError, colour_of
from semgbook.print_figures import BOTH_PHASES, PRINT_FIGURES, print_beside, print_curves, print_error_bars, print_study, shared_words

STUDY = pd.DataFrame(dict(x=[4, 16, 4, 16], way=["TDS", "TDS", "BiLSTM", "BiLSTM"], cer=[20.0, 9, 30, 9], low=[18.0, 8, 28, 8], high=[22.0, 10, 32, 10]))
EXAMPLES = {"print_curves": dict(histories=HISTORIES), "print_error_bars": dict(rows=ROWS), "print_beside": dict(rows=BESIDE, recordings="made-up"), "print_study": dict(rows=STUDY, x_title="electrodes per band (count)")}
LONG = ["", ", rolling normalisation", ", transfer as published, from simulated 2 kHz", ", transfer, own warm-ups, from simulated 2 kHz", ", transfer, all at once, from other persons", ", transfer as published, from other persons",
        ", transfer, own warm-ups, from other persons", ", rolling normalisation, with other persons", ", everything, anchored, 120 s", ", everything, 120 s", ", output and norm, 60 s", ", " + "a name wider than a page " * 8]


def methods(n, words=" (mean of 3 runs)"):
    "Histories of n methods with long names."
    return {f"BiLSTM{LONG[i]}{words}": history(30, seed=i) for i in range(n)}


def short_methods(n):
    "Histories of n methods with short names of uneven length."
    return {name: history(30) for name in ("16 of 16", "8 of 16, evenly", "8 of 16, first, after rotation", "8 of 16, first", "4 of 16, evenly", "4 of 16, first", "4 of 16, first, after rotation", "MMD", "rolling + DANN", "C", "D", "E")[:n]}


def drawn_lines(figure):
    return [line for line in figure.axes[0].lines if len(line.get_xdata())]


def legend_words(figure):
    legend, = figure.legends
    return legend.get_title().get_text(), [t.get_text() for t in legend.get_texts()]


def test_registry_is_complete():
    "Every public function of the module that draws is registered, and each has an example here."
    drawing = {n for n, f in vars(print_figures).items() if not n.startswith("_") and getattr(f, "__annotations__", {}).get("return") is Figure}
    assert set(PRINT_FIGURES) == drawing == set(EXAMPLES)


@pytest.mark.parametrize("name", list(PRINT_FIGURES))
def test_figure(name):
    figure = PRINT_FIGURES[name](**EXAMPLES[name])
    assert "%" in figure.axes[0].get_xlabel() + figure.axes[0].get_ylabel() and plt.get_fignums() == []


@pytest.mark.parametrize("name", list(PRINT_FIGURES))
def test_inputs_are_not_changed(name):
    told = lambda: json.dumps(EXAMPLES[name], default=lambda o: o.to_json())
    before = told()
    PRINT_FIGURES[name](**EXAMPLES[name])
    assert before == told()


# --- legends --------------------------------------------------------------------------------------

def boxes(figure):
    "Where the axes with their labels and the legend are when the figure is saved, in inches, and the figure's size."
    figure.set_dpi(200)
    figure.draw_without_rendering()
    scale = lambda box: [edge / figure.dpi for edge in box.extents]  # left, bottom, right, top
    return [scale(ax.get_tightbbox()) for ax in figure.axes], scale(figure.legends[0].get_window_extent()), figure.get_size_inches()


@pytest.mark.parametrize("named, metric", [(methods, "cer"), (short_methods, "loss")])
@pytest.mark.parametrize("width", [3.3, 5.5, 11.0])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 7, 8, 12])
def test_a_legend_never_covers_data(n, width, named, metric):
    "Not the axes, not their labels; all of it is on the paper, and the plot keeps its size."
    figure = print_curves(named(n), metric, width)
    (axes,), (left, bottom, right, top), (wide, high) = boxes(figure)
    assert top <= axes[1] and left >= 0 and bottom >= 0 and right <= wide and axes[3] <= high
    assert 0.3 * width < axes[3] - axes[1] < 0.6 * width
    first = figure.legends[0].get_texts()[0]
    assert first.get_fontsize() >= 7


def test_a_wide_legend_has_columns_and_a_narrow_one_rows():
    found = []
    for width in (3.3, 5.5, 11.0):
        figure = print_curves(methods(8), width=width)
        figure.draw_without_rendering()
        found.append(len({round(t.get_window_extent().x0) for t in figure.legends[0].get_texts()}))
    assert found == sorted(set(found)) and found[0] == 1


def test_the_legend_of_a_study_stands_below_too():
    rows = pd.concat([STUDY.assign(way=f"first neighbours, {way} the rotation, {STUDY.way[i]} {i}", cer=STUDY.cer + i) for i, way in enumerate(("before", "after"))])
    figure = print_study(rows, "electrodes")
    (axes,), legend, _ = boxes(figure)
    assert legend[3] <= axes[1] and legend_words(figure) == ("all: first neighbours", ["before the rotation, TDS 0", "after the rotation, TDS 1"])


def test_training_is_left_out_where_many_methods_are_and_the_figure_says_so():
    few, many = (print_curves(methods(n)) for n in (BOTH_PHASES, BOTH_PHASES + 1))
    assert len(drawn_lines(few)) == 2 * BOTH_PHASES and legend_words(few)[1][-2:] == ["validation", "training"] and "left out" not in legend_words(few)[0]
    assert len(drawn_lines(many)) == BOTH_PHASES + 1 and {line.get_linestyle() for line in drawn_lines(many)} == {"-"}
    assert legend_words(many)[0].endswith("validation only, training curves left out") and "training" not in legend_words(many)[1]
    for line, h in zip(drawn_lines(many), methods(BOTH_PHASES + 1).values(), strict=True): assert np.array_equal(line.get_ydata(), h.val_cer)


def test_a_phase_that_nobody_logged_was_not_left_out():
    only = {name: h.drop(columns="val_cer") for name, h in methods(8).items()}
    figure = print_curves(only)
    assert len(drawn_lines(figure)) == 8 and "training only" in legend_words(figure)[0] and "left out" not in legend_words(figure)[0]
    figure = print_curves({"TDS": history(1)[["epoch", "val_cer"]]})
    assert [line.get_marker() for line in drawn_lines(figure)] == ["o"] and legend_words(figure) == ("validation only", ["TDS"])


def test_what_all_say_is_said_once():
    title, names = legend_words(print_curves(methods(8)))
    assert title.startswith("all: BiLSTM, mean of 3 runs;") and names[:2] == ["BiLSTM", "rolling normalisation"] and not any("mean" in n for n in names)
    mixed = legend_words(print_curves({"100 % (mean of 2 runs)": history(), "50 %, equal steps": history()}))
    assert mixed == ("", ["100 % (mean of 2 runs)", "50 %, equal steps", "validation", "training"])


@pytest.mark.parametrize("labels, left, said", [
    (["A, x", "A, y"], ["x", "y"], "A"), (["A", "A, x", "A, y"], ["A", "x", "y"], "A"), (["x, 30 s (2)", "y, 30 s (2)"], ["x", "y"], "30 s, 2"), (["A (3)"], ["A (3)"], ""), (["A", "B"], ["A", "B"], ""), (["A B", "A C"], ["A B", "A C"], ""),
    (["A (p, 60 epochs) (3)", "A (q, 60 epochs) (3)"], ["(p, 60 epochs)", "(q, 60 epochs)"], "A, 3"), (["A (b (c))", "B (b (c))"], ["A (b (c))", "B (b (c))"], "")])
def test_shared_words(labels, left, said):
    "Whole parts, from both ends; nothing is left empty, and parentheses stay whole."
    assert shared_words(labels) == (dict(zip(labels, left, strict=True)), said)


# --- what is drawn --------------------------------------------------------------------------------

def test_curves_have_the_colours_of_the_screen_and_no_two_alike():
    seeds = {"TDS, seed 0": history(), "TDS, seed 1": history(seed=1), "BiLSTM": history(seed=2)}
    colours = [line.get_color() for line in drawn_lines(print_curves(seeds))[::2]]
    assert colours[0] == colour_of("TDS") and colours[2] == colour_of("BiLSTM") and len(set(colours)) == 3


def test_curves_of_nothing_are_refused():
    with pytest.raises(FigureError, match="val_cer"): print_curves({"TDS": history()[["epoch"]]})
    with pytest.raises(FigureError, match="'TDS' has no column epoch"): print_curves({"TDS": history().drop(columns="epoch")})
    with pytest.raises(FigureError, match="nothing to draw"): print_curves({"TDS": history().assign(val_cer=np.nan, train_cer=np.nan)})


def test_a_loss_is_read_in_plain_numbers():
    ax = print_curves(HISTORIES, "loss").axes[0]
    ax.figure.draw_without_rendering()
    told = [t.get_text() for t in ax.get_yticklabels()]
    assert ax.get_yscale() == "log" and "nats" in ax.get_ylabel() and all(re.fullmatch(r"[\d.]+", t) for t in told) and {"1", "2"} <= set(told)


def test_bars_stand_where_those_of_the_screen_stand():
    figure = print_error_bars(ROWS)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["TDS  val", "test", "Residual BiLSTM  val", "test"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == list(ROWS.cer) and {t.get_text() for t in figure.axes[0].texts} == {"6.2", "11.4", "9.0", "117.9"}


def test_beside_draws_the_first_decoder_and_cuts_an_endless_whisker():
    figure = print_beside(COMPARED, "simulated")
    val, test = figure.axes
    assert [t.get_text() for t in val.texts] == ["10.0  / 9.0"] and [t.get_text() for t in test.texts] == ["20.0>", "not run  / 30.0", "25.0"]
    assert test.get_xlim()[1] < 70 and [t.get_text() for t in val.get_yticklabels()] == ["A", "B", "C"]
    with pytest.raises(FigureError, match="nothing to draw"): print_beside(COMPARED[COMPARED.method == "D"], "simulated")


def test_a_study_ends_where_its_means_end():
    figure = print_study(STUDY.assign(high=[22.0, 10, 400, 10]), "electrodes")
    assert figure.axes[0].get_ylim()[1] < 42 and list(figure.axes[0].get_xticks()) == [4, 16]

"Every figure draws, says its units and protocol, and shows what it was given."
import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from semgbook import figures
from semgbook.charset import QWERTY
from semgbook.figures import (FIGURES, KIND_COLOURS, PALETTE, FigureError, beside_bars, beside_rows, cer_curves, colour_of, decoded_times, emission_heatmap, error_bars,
                              error_kinds, loss_curves, shades, tint)

PROTOCOL = "4 s windows · greedy · made up"


def history(epochs=8, seed=0):
    value = np.linspace(100, 10, epochs) + np.random.default_rng(seed).normal(0, 1, epochs)
    return pd.DataFrame(dict(epoch=np.arange(epochs), step=100 * np.arange(1, epochs + 1), train_cer=value - 2, val_cer=value, train_loss=value / 25, val_loss=value / 24))


def watched(**changes):
    "A history as an adversarial training writes it."
    return history(seed=2).assign(domain_accuracy=np.linspace(0.8, 0.3, 8), domain_chance=0.25, domain_weight=np.linspace(0, 1, 8), task_norm=2.0, domain_norm=0.5, applied=np.linspace(0, 0.5, 8)).assign(**changes)


HISTORIES = {"TDS": history(), "Residual BiLSTM, seed 1": history(seed=1)}
ROWS = pd.DataFrame([("TDS", "val", 6.2, 5.6, 6.9, None, 1.9, 0.9, 3.4), ("TDS", "test", 11.4, 10.1, 12.8, 11.3, 3.6, 1.6, 6.2),
                     ("Residual BiLSTM", "val", 9.0, None, None, None, 2.4, 1.5, 5.1), ("Residual BiLSTM", "test", 117.9, 95.8, 120.3, 22.9, 5.2, 102.9, 9.8)],
                    columns="method phase cer low high published missed extra wrong".split())

BESIDE = ROWS.assign(runs=[[(f"{m}-{p}-s0", cer - 1), (f"{m}-{p}-s1", cer + 1)] for m, p, cer in zip(ROWS.method, ROWS.phase, ROWS.cer)], interval="95 %, over 2 seeds")

# val and test, several ways of decoding, an interval without end, published and not run, neither
COMPARED = pd.DataFrame([("A", "val", 10.0, 8.0, 12.0, 9.0, [("a-s0", 9.0), ("a-s1", 11.0)], "greedy"), ("A", "test", 20.0, 18.0, 200.0, None, [("a-s0", 19.0), ("a-s1", 21.0)], "greedy"), ("A", "test", 15.0, None, None, 14.0, [("a-s0", 15.0)], "language model"),
                         ("B", "test", None, None, None, 30.0, [], "greedy"), ("C", "test", 25.0, None, None, None, [("c-s0", 25.0)], "greedy"), ("D", "test", None, None, None, None, [], "greedy")],
                        columns="method phase cer low high published runs decoder".split())


def stretch(text="the fox⌫⏎ A", decoded="the box⌫⏎ A", frames_per_key=20, seed=0):
    labels = QWERTY.labels_of_text(decoded)
    scores = np.random.default_rng(seed).normal(size=(frames_per_key * (len(text) + 1), QWERTY.n_classes))
    scores[:, QWERTY.blank] += 9
    for i, label in enumerate(labels): scores[frames_per_key * (i + 1) + np.arange(2), label] += 14
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    times = 5e5 + np.arange(len(scores)) / 125
    return dict(log_probs=log_probs.astype(np.float32), frame_times=times, class_names=list(QWERTY.chars),
                press_times=times[frames_per_key * np.arange(1, len(text) + 1)], reference=text, prediction=decoded)


EXAMPLES = {
    "loss_curves": dict(histories=HISTORIES, protocol=PROTOCOL),
    "cer_curves": dict(histories=HISTORIES, protocol=PROTOCOL),
    "learning_curves": dict(histories=HISTORIES, protocol=PROTOCOL, over="step"),
    "domain_curves": dict(histories={"DANN": watched(), "TDS": history()}, protocol=PROTOCOL),
    "error_bars": dict(rows=ROWS, protocol=PROTOCOL),
    "error_kinds": dict(rows=ROWS, protocol=PROTOCOL),
    "sweep_map": dict(rows=pd.DataFrame([(w, b, 9 + (w - 1)**2 + b) for w in (0.0, 1.0, 2.0) for b in (0.0, 2.0)], columns=["lm_weight", "insertion_bonus", "cer"]), protocol=PROTOCOL),
    "cost_map": dict(rows=ROWS[ROWS.phase == "test"].assign(parameters=[5e6, 1.5e6], mmacs_per_s=[600.0, 90.0], seconds=[100.0, 250.0]), protocol=PROTOCOL),
    "study_curves": dict(rows=pd.DataFrame(dict(x=[4, 16, 4, 16], way=["TDS", "TDS", "BiLSTM", "BiLSTM"], cer=[20.0, 9, 30, 9], low=[18.0, 8, 28, 8], high=[22.0, 10, 32, 10])), x_title="electrodes per band (count)", protocol=PROTOCOL),
    "beside_bars": dict(rows=BESIDE, recordings="made-up", protocol=PROTOCOL),
    "emission_heatmap": dict(**stretch(), protocol=PROTOCOL),
}
UNITS = dict(loss_curves="nats", domain_curves="nats", cer_curves="%", learning_curves="nats", error_bars="%", error_kinds="%", sweep_map="weight", cost_map="%", study_curves="%", beside_bars="%", emission_heatmap="(s)")


def test_registry_is_complete():
    "Every public function of the module that draws is registered, and each has an example here."
    drawing = {n for n, f in vars(figures).items() if not n.startswith("_") and n != "style" and getattr(f, "__annotations__", {}).get("return") is go.Figure}
    assert set(FIGURES) == drawing == set(EXAMPLES) == set(UNITS)


def test_the_best_pair_of_a_sweep_is_ringed():
    figure = figures.sweep_map(**EXAMPLES["sweep_map"])
    assert (figure.data[1].x, figure.data[1].y) == (("1",), ("0",)) and np.nanmin(figure.data[0].z) == 9
    with pytest.raises(figures.FigureError, match="insertion_bonus"): figures.sweep_map(pd.DataFrame(dict(lm_weight=[1.0], cer=[2.0])))


def test_an_objective_is_seen_in_four_panels():
    "What was noted stands in its panel; chance beside the classifier; a distance where there is none; a run without objective in the first panel only."
    example, panels = EXAMPLES["domain_curves"]["histories"], {"y2": ["domain_accuracy", "domain_chance"], "y3": ["task_norm", "domain_norm", "applied"], "y4": ["domain_weight"]}
    drawn = [t for t in figures.domain_curves(example).data if t.showlegend is False]
    for axis, columns in panels.items():
        panel = [t for t in drawn if t.yaxis == axis]
        assert {t.name for t in panel} == {"DANN"} and all(np.array_equal(t.y, example["DANN"][c]) for t, c in zip(panel, columns, strict=True))
        assert len({t.line.dash for t in panel}) == len(columns)
    assert [(t.name, tuple(t.y)) for t in drawn if t.yaxis == "y"] == [(m, tuple(example[m][f"{p}_loss"])) for m in example for p in ("val", "train")]
    distance = figures.domain_curves({"MMD": watched(domain_accuracy=np.nan, domain_loss=0.1)})
    assert [tuple(t.y) for t in distance.data if t.yaxis == "y2"] == [(0.1,) * 8] and "distance" in distance.layout.yaxis2.title.text
    with pytest.raises(FigureError, match="TDS.*domain_weight"): figures.domain_curves({"TDS": history()})


def test_costs_are_exchanged_by_buttons():
    figure = figures.cost_map(**EXAMPLES["cost_map"])
    assert [b.args[0]["x"] for b in figure.layout.updatemenus[0].buttons] == [[[5e6], [1.5e6]], [[600.0], [90.0]], [[100.0], [250.0]]]
    assert [b.args[1]["xaxis.title.text"] for b in figure.layout.updatemenus[0].buttons] == list(figures.COSTS.values())
    with pytest.raises(figures.FigureError, match="parameters"): figures.cost_map(ROWS)


@pytest.mark.parametrize("none", [None, np.nan])
def test_one_seed_has_no_whisker_and_says_so(none):
    rows = pd.DataFrame(dict(method=["TDS", "BiLSTM"], way=["TDS", "BiLSTM"], x=[4, 4], cer=[9.0, 8.0], low=[8.0, none], high=[10.0, none], parameters=[10, 20]), dtype=object)
    for figure in (figures.cost_map(rows), figures.study_curves(rows, "x")):
        assert [float(t.error_y.array[0]) == 1 for t in figure.data] == [True, False]
        assert "one run" in (figure.data[1].hovertemplate + str(figure.data[1].customdata)) and "9.00" not in figure.data[0].hovertemplate


def test_each_way_of_a_study_is_a_line_in_order_of_what_was_varied():
    example = EXAMPLES["study_curves"]
    shuffled = figures.study_curves(example["rows"].sample(frac=1, random_state=1), example["x_title"])
    assert {t.name: (tuple(t.x), tuple(t.y)) for t in shuffled.data} == {"TDS": ((4, 16), (20, 9)), "BiLSTM": ((4, 16), (30, 9))}


@pytest.mark.parametrize("name", list(FIGURES))
def test_figure(name):
    figure = FIGURES[name](**EXAMPLES[name])
    layout = figure.layout
    assert UNITS[name] in (layout.xaxis.title.text or "") + (layout.yaxis.title.text or "")
    assert layout.title.text and PROTOCOL in layout.title.subtitle.text
    assert layout.template == figures.TEMPLATE or layout.template.layout.font.family == figures.FONT
    assert layout.width is None                      # as wide as the page
    assert len(figure.to_json()) < 100_000


@pytest.mark.parametrize("name", list(FIGURES))
def test_inputs_are_not_changed(name):
    before = json.dumps(EXAMPLES[name], default=lambda o: o.to_json() if hasattr(o, "to_json") else o.tolist())
    FIGURES[name](**EXAMPLES[name])
    assert before == json.dumps(EXAMPLES[name], default=lambda o: o.to_json() if hasattr(o, "to_json") else o.tolist())


def test_colours_are_stable_and_distinct(monkeypatch):
    monkeypatch.setattr(figures, "_METHODS", {"tds": PALETTE[0], "bilstm": PALETTE[1]})  # as in a fresh process: other tests have named methods of their own
    assert colour_of("TDS") == colour_of("tds") == colour_of("TDS, seed 7") == colour_of(" TDS (simulated)") == PALETTE[0]
    others = [colour_of(f"some method {i}") for i in range(4)]
    assert others == [colour_of(f"some method {i}") for i in reversed(range(4))][::-1]
    assert len({*others, colour_of("tds"), colour_of("bilstm")}) == 6
    assert not set(KIND_COLOURS.values()) & set(PALETTE) and tint("#102030", 0) == "#102030" and tint("#102030", 1) == "#FFFFFF"
    bars, curves = error_bars(ROWS), cer_curves(HISTORIES)
    assert bars.data[0].marker.color[3] == colour_of("Residual BiLSTM") == next(t for t in curves.data if t.name.startswith("Residual")).line.color


def test_no_two_lines_of_a_figure_look_alike(monkeypatch):
    "Neither seeds of one method nor methods that share a colour when all are given."
    monkeypatch.setattr(figures, "_METHODS", {"tds": PALETTE[0], "bilstm": PALETTE[1]})
    labels = ["TDS, seed 0", "TDS, seed 1", "TDS, seed 2", *(f"method {i}" for i in range(20))]
    assert shades(labels)["TDS, seed 0"] == PALETTE[0] and len({*shades(labels).values()}) == len(labels)


@pytest.mark.parametrize("over", ["epoch", "step"])
def test_both_panels_show_the_same_runs_over_the_same_axis(over):
    figure = figures.learning_curves(HISTORIES, PROTOCOL, over)
    drawn = [t for t in figure.data if t.showlegend is False]
    for axis, metric in (("y", "loss"), ("y2", "cer")):
        panel = [t for t in drawn if t.yaxis == axis]
        assert [t.name for t in panel] == [label for label in HISTORIES for _ in ("val", "train")]
        for t, column in zip(panel, ("val", "train") * len(HISTORIES), strict=True):
            assert np.array_equal(t.y, HISTORIES[t.name][f"{column}_{metric}"]) and np.array_equal(t.x, HISTORIES[t.name][over])
    assert figure.layout.xaxis.matches == "x2" and over in figure.layout.xaxis2.title.text
    assert len({t.legendgroup for t in drawn}) == len(HISTORIES), "a click in the legend hides a run in both panels"
    assert {t.line.color for t in drawn if t.name == "TDS"} == {colour_of("TDS")}


def test_curves_over_steps_need_steps():
    with pytest.raises(FigureError, match="'TDS' has no column step"): figures.learning_curves({"TDS": history().drop(columns="step")}, over="step")
    with pytest.raises(FigureError, match="val_loss"): figures.learning_curves({"TDS": history().drop(columns=["train_loss", "val_loss"])})


def test_curves_of_little_data():
    "One epoch, no training columns, gaps: drawn; nothing at all: an error that names it."
    one = history(1)[["epoch", "val_cer"]]
    assert [t.mode for t in cer_curves({"TDS": one}).data if t.showlegend is False] == ["markers"]
    gaps = history().assign(val_cer=[np.nan, 90, np.nan, 70, 60, 50, 40, 30])
    assert cer_curves({"TDS": gaps}).data
    with pytest.raises(FigureError, match="val_cer"): cer_curves({"TDS": gaps[["epoch"]]})
    with pytest.raises(FigureError, match="'TDS' has no column epoch"): loss_curves({"TDS": pd.DataFrame({"val_loss": [1]})})


def test_bars_keep_runs_apart():
    twice = pd.concat([ROWS.assign(seed=0), ROWS.assign(seed=1)])
    bars = error_bars(twice).data[0]
    assert len(set(bars.y)) == 8
    labels = error_bars(twice).layout.yaxis.ticktext
    assert "<b>TDS, seed 1</b>  val" in labels
    assert len(set(error_bars(pd.concat([ROWS, ROWS])).data[0].y)) == 8       # no seed column: numbered
    order = dict(zip(bars.y, bars.x, strict=True))
    assert [order[y] for y in sorted(order)] == [6.2, 11.4, 6.2, 11.4, 9.0, 117.9, 9.0, 117.9]    # runs of a method stand together


def test_phases_have_a_fixed_order():
    rows = pd.DataFrame(dict(method="TDS", phase=["test", "val_no_rest", "val", "train"], cer=[4.0, 3.0, 2.0, 1.0]))
    bars = error_bars(rows).data[0]
    assert [x for _, x in sorted(zip(bars.y, bars.x, strict=True))] in ([1, 3, 2, 4], [1, 2, 3, 4])
    assert bars.marker.color[0] == colour_of("TDS")


def test_bars_need_columns_and_values():
    with pytest.raises(FigureError, match="has no column cer; it has method, phase"): error_bars(ROWS[["method", "phase"]])
    with pytest.raises(FigureError, match="no column wrong"): error_kinds(ROWS.drop(columns="wrong"))
    with pytest.raises(FigureError, match="nothing to draw"): error_bars(ROWS.assign(cer=None))
    assert len(error_bars(ROWS[["method", "phase", "cer"]]).data[0].x) == 4   # no intervals, no published values


def test_bars_leave_room_for_the_largest():
    assert error_bars(ROWS).layout.xaxis.range[1] > 120.3 and error_bars(ROWS.assign(cer=0.0, low=0.0, high=0.0, published=None)).layout.xaxis.range[1] > 0


def test_heatmap_shows_what_matters():
    example = stretch()
    figure = emission_heatmap(**example)
    shown = {c for c in figure.data[0].y}
    assert {"t", "h", "e", "␣", "f", "b", "⌫", "⏎", "A"} <= shown and len(shown) < 20 and list(figure.data[1].y) == ["blank"]
    typed, decoded = figure.data[2], figure.data[3]
    assert "".join(typed.text) == "the␣fox⌫⏎␣A" and "".join(decoded.text) == "the␣box⌫⏎␣A"
    marked = [c for c, colour in zip(typed.text, typed.textfont.color, strict=True) if colour != figures.INK]
    assert marked == ["f"] and len(figure.layout.shapes) == len(example["reference"])
    assert np.allclose(typed.x, decoded.x) and figure.data[0].z.dtype == np.uint8 and figure.data[0].z.shape == (len(shown), len(example["frame_times"]))
    assert figure.layout.xaxis.range[0] == 0          # seconds in the stretch, not since the beginning of the session


@pytest.mark.parametrize("seconds, keys", [(2, 12), (20, 160)])
def test_heatmap_of_short_and_long_stretches(seconds, keys):
    text = ("the quick brown fox jumps over " * 6)[:keys]
    figure = emission_heatmap(**stretch(text, text, frames_per_key=round(125 * seconds / keys)))
    assert len(figure.to_json()) < 250_000 and figure.layout.meta["min_width"] >= 12 * keys and figure.layout.height >= 450


def test_heatmap_of_nothing():
    example = stretch()
    silent = {**example, "press_times": np.array([]), "reference": "", "prediction": ""}
    silent["log_probs"] = np.log(np.full((50, QWERTY.n_classes), 1e-9)); silent["frame_times"] = np.arange(50) / 125
    silent["log_probs"][:, -1] = 0
    assert emission_heatmap(**silent).data
    assert len(emission_heatmap(**{**example, "prediction": ""}).data[3].x) == 0


def test_heatmap_refuses_what_does_not_belong_together():
    example = stretch()
    with pytest.raises(FigureError, match="99 classes, but 5 names"): emission_heatmap(**{**example, "class_names": list("abcde")})
    with pytest.raises(FigureError, match="press times"): emission_heatmap(**{**example, "reference": "th"})
    assert emission_heatmap(**{**example, "class_names": [*QWERTY.chars, "blank"]}).data


def test_decoded_times_of_any_text():
    "Greedy text at its onsets; other texts in rising order within the stretch."
    example = stretch()
    names = [*QWERTY.chars, "blank"]
    greedy = decoded_times(example["log_probs"], example["frame_times"], names, example["prediction"])
    assert np.allclose(greedy, example["press_times"])
    for text in ("", "x", "the fox", "something else entirely", "qqqq"):
        times = decoded_times(example["log_probs"], example["frame_times"], names, text)
        assert len(times) == len(text) and (np.diff(times) >= 0).all()


def words_of(figure):
    return {(t.meta["method"], t.xaxis, t.meta["decoder"]): t.text[0] for t in figure.data if t.type == "scatter" and t.mode == "text"}


def test_bars_say_what_is_ours_and_what_is_not():
    figure = beside_bars(COMPARED, "simulated", "made up")
    words = words_of(figure)
    assert words == {("A", "x", "greedy"): "10.0  ◇ 9.0", ("A", "x2", "greedy"): "20.0▸", ("A", "x2", "language model"): "15.0  ◇ 14.0", ("B", "x2", "greedy"): "not run  ◇ 30.0", ("C", "x2", "greedy"): "25.0"}
    assert figure.layout.meta["methods"] == ["A", "B", "C"] and figure.layout.meta["decoders"] == ["greedy", "language model"]
    assert all(t.visible == (t.meta["decoder"] == "greedy") for t in figure.data if t.meta)
    assert all("ours (simulated)" in t.hovertemplate for t in figure.data if t.type == "bar")
    dots = next(t for t in figure.data if t.type == "scatter" and t.mode == "markers" and t.meta and t.meta["method"] == "A" and t.marker.symbol is None)
    assert list(dots.x) == [9.0, 11.0] and [c[0] for c in dots.customdata] == ["a-s0", "a-s1"] == list(dots.meta["runs"])


def test_an_endless_whisker_does_not_squeeze_the_bars():
    figure = beside_bars(COMPARED, "simulated")
    assert figure.layout.xaxis2.range[1] < 70
    ends = [t.x[0] + t.error_x.array[0] for t in figure.data if t.type == "bar" and t.error_x.array[0] is not None and not np.isnan(t.error_x.array[0])]
    assert max(ends) < 60 and "18.00 to 200.00" in next(t.hovertemplate for t in figure.data if t.type == "bar" and "test" in t.hovertemplate)


def test_bars_need_rows():
    with pytest.raises(FigureError, match="no column phase"): beside_rows(COMPARED[["method", "cer"]])
    with pytest.raises(FigureError, match="nothing to draw"): beside_bars(COMPARED[COMPARED.method == "D"], "simulated")
    with pytest.raises(FigureError, match="nothing to draw"): beside_bars(COMPARED.assign(phase="train"), "simulated")
    only = beside_bars(COMPARED[COMPARED.method == "C"], "simulated")
    assert [t.name for t in only.data if not t.meta] == ["one run of ours"] and "xaxis2" not in only.to_dict()["layout"]

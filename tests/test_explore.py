"Pages with controls: moving a control is drawing anew, and mistakes are said."
import json
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from semgbook import explore


def counting():
    "A panel that counts its drawings, and the list of values it drew."
    import ipywidgets as W
    drawn = []

    def draw(height, name):
        if height < 0: raise ValueError(f"height is {height}: give 0 or more")
        if height == 13: raise ZeroDivisionError("a fault")
        drawn.append((height, name))
        return [go.Figure(go.Bar(y=np.array([float(height)]))), f"<b>{name}</b>"]
    return explore.Panel(draw, {"height": W.IntSlider(1, -20, 20), "name": W.Text("a")}), drawn


def on_screen(picture):
    "What the browser is told to draw."
    return json.loads(picture.spec)


def test_a_move_draws_once_and_reaches_the_screen():
    panel, drawn = counting()
    panel.move(height=5)
    panel.move(height=5)  # no change, no drawing
    panel.controls["name"].value = "b"
    assert drawn == [(1, "a"), (5, "a"), (5, "b")]
    assert on_screen(panel.views[0]) == json.loads(panel.shown[0].to_json()) and panel.views[1].value == "<b>b</b>"


def test_a_mistake_is_said_and_the_picture_stays():
    panel, _ = counting()
    panel.move(height=7)
    before = panel.views[0].spec
    panel.move(height=-3)
    assert "give 0 or more" in panel.note.value and panel.views[0].spec == before
    panel.move(height=8)
    assert panel.note.value == "" and panel.views[0].spec != before


def test_a_fault_of_the_program_is_not_hidden():
    panel, _ = counting()
    with pytest.raises(ZeroDivisionError): panel.move(height=13)


def test_what_is_shown_does_not_depend_on_the_way():
    one, _ = counting()
    other, _ = counting()
    one.move(height=3, name="x")
    for height in (9, -4, 2): other.move(height=height)
    other.move(name="y")
    other.move(name="x", height=3)
    assert [v.spec if hasattr(v, "spec") else v.value for v in one.views] == [v.spec if hasattr(v, "spec") else v.value for v in other.views] and other.note.value == ""


def test_a_panel_shows_itself_with_and_without_python():
    bundle = counting()[0]._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["application/vnd.plotly.v1+json"]["data"][0]["type"] == "bar"
    json.dumps(bundle)


def test_saved_state_is_small():
    "Plotly's library is not part of what a saved page keeps of a figure."
    state = explore.Picture(go.Figure(go.Scatter(y=[1, 2]))).get_state()
    assert len(json.dumps({k: v for k, v in state.items() if isinstance(v, str)})) < 50_000


def test_pages_define_nothing():
    "The pages with controls only call what the modules offer."
    for page in (Path(explore.__file__).parents[1] / "nbs" / "explore").glob("*.ipynb"):
        source = "\n".join("".join(c["source"]) for c in json.loads(page.read_text())["cells"] if c["cell_type"] == "code")
        assert "def " not in source and "class " not in source and "clear_output" not in source

"Exporting: the rewritten steps are the same functions, and a file that is not the model is not written."
import importlib.util
import json

import pytest
import torch
from test_transfer import LINE, SHAPE, Pair

from semgbook.blocks import BLOCKS, Block
from semgbook.exporting import Exportable, check_export, export_onnx, export_torchscript, run_export
from semgbook.features import FRONT_ENDS, build_front_end
from semgbook.transfer import TransferError

LINES = {"tds": LINE, "flat": "norm flatten stride(kernel=3,stride=2)", "plain": "mlp(features=8/6,reach=0) tds(channels=4,kernel=5) stride(kernel=4,stride=3)",
         "hybrid": "norm mlp(features=6) gru(hidden=6) tds(channels=4,kernel=5)",
         "bilstm": "norm(mask=1) mlp(features=6) bilstm(hidden=5)", "causal": "norm mlp(features=6) bilstm(hidden=5,bidirectional=0,layers=1)"}
UNBOUNDED = {"hybrid", "bilstm", "causal"}
needs_onnx = pytest.mark.skipif(any(importlib.util.find_spec(p) is None for p in ("onnx", "onnxscript", "onnxruntime")), reason="needs onnx, onnxscript and onnxruntime")


@pytest.mark.parametrize("name", LINES)
def test_rewriting_changes_nothing(name):
    model = Pair(LINES[name])
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    exportable = Exportable(model.encoder, model.head)
    assert model.training and model.encoder.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    model.eval()
    x = torch.randn(2, 50, *SHAPE)
    with torch.no_grad(): torch.testing.assert_close(exportable(x), model(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LINES)
def test_torchscript_parity(name, tmp_path):
    model = Pair(LINES[name])
    path = export_torchscript(tmp_path / "m.pt", model.encoder, model.head, card={"charset": "qwerty"})
    table = check_export(path, model.encoder, model.head)
    assert table.difference.max() < 1e-4 and len(table) == 4 and table.steps.nunique() == 4
    assert set(table.examples) == ({1} if name in UNBOUNDED else {1, 2, 3})
    run = run_export(path)
    with pytest.raises(Exception, match="this model takes"): run(torch.randn(1, 50, 2, 4, 6))
    if name in UNBOUNDED:
        with pytest.raises(Exception, match="one example at a time"): run(torch.randn(2, 50, *SHAPE))
    else:
        with pytest.raises(Exception, match="needs at least"): run(torch.randn(2, model.encoder.field - 1, *SHAPE))
    extra = {"card.json": ""}
    torch.jit.load(path, _extra_files=extra)
    assert json.loads(extra["card.json"])["charset"] == "qwerty"


def test_check_export_sees_a_wrong_file(tmp_path):
    model, other = Pair(), Pair(seed=1)
    path = export_torchscript(tmp_path / "m.pt", model.encoder, model.head)
    assert check_export(path, other.encoder, other.head).difference.min() > 1e-2


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("onnx", marks=needs_onnx)])
def test_from_the_raw_signal(kind, tmp_path):
    model, front_end = Pair("norm mlp(features=12) tds(channels=4,kernel=5)", shape=(2, 16, 33)), build_front_end("log_spectrogram")
    export, name = {"torchscript": (export_torchscript, "m.pt"), "onnx": (export_onnx, "m.onnx")}[kind]
    path = export(tmp_path / name, model.encoder, model.head, front_end)
    table = check_export(path, model.encoder, model.head, front_end)
    assert table.difference.max() < 1e-4 and table.steps.min() == 64 + 4 * 16 and table.outputs.tolist() == [1, 1, 5, 32]


@needs_onnx
@pytest.mark.parametrize("name", LINES)
def test_onnx_parity(name, tmp_path):
    import onnx
    model = Pair(LINES[name])
    path = export_onnx(tmp_path / "m.onnx", model.encoder, model.head, card={"charset": "qwerty"})
    table = check_export(path, model.encoder, model.head)
    assert table.difference.max() < 1e-4 and table.steps.nunique() == 4
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    assert json.loads({e.key: e.value for e in proto.metadata_props}["card"])["charset"] == "qwerty"
    n, t, *rest = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert (n, t) == (1 if name in UNBOUNDED else "N", "T") and rest == list(SHAPE)
    if n == 1:
        with pytest.raises(Exception, match="(?i)invalid dimensions|invalid_argument"): run_export(path)(torch.randn(2, 50, *SHAPE))


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    model = Pair()
    for name in FRONT_ENDS:
        if name == "log_spectrogram": continue
        with pytest.raises(TransferError, match="cannot be exported"): export_torchscript(tmp_path / "m.pt", model.encoder, model.head, build_front_end(name))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TransferError, match="pip install onnx"): export_onnx(tmp_path / "m.onnx", model.encoder, model.head)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("onnx", marks=needs_onnx)])
def test_a_recurrent_encoder_behind_a_stride(kind, tmp_path):
    "The newer recorder burns in the length of this one."
    model = Pair("norm mlp(features=6) stride bilstm(hidden=5)")
    path = (export_torchscript if kind == "torchscript" else export_onnx)(tmp_path / "m.x", model.encoder, model.head)
    assert check_export(path, model.encoder, model.head).difference.max() < 1e-4


class BurntIn(Block):
    "A block that turns a length into a constant while it is recorded."
    def forward(self, x, lengths=None): return x * (1 + int(x.shape[1]) % 7)


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("onnx", marks=needs_onnx)])
def test_a_graph_that_is_right_at_one_length_only_is_not_written(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(BLOCKS, "burnt", BurntIn)
    model = Pair("norm flatten burnt")
    with pytest.raises(TransferError, match="was not written"):
        (export_torchscript if kind == "torchscript" else export_onnx)(tmp_path / "m.x", model.encoder, model.head)
    assert not list(tmp_path.iterdir())

"Transfer: foreign checkpoints read without running them, published weights number by number, our own files, partial loading, export."
import importlib.util
import json
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from test_encoders import formula_state

from semgbook.blocks import BLOCKS, Block
from semgbook.charset import FINGERS, FINGERS_NO_REST, QWERTY
from semgbook.ctc import CTCHead
from semgbook.encoders import build_encoder
from semgbook.features import FRONT_ENDS, build_front_end
from semgbook.transfer import (
    CARD_FIELDS,
    Exportable,
    RecordUnpickler,
    TransferError,
    check_export,
    export_onnx,
    export_published,
    export_torchscript,
    feature_order,
    import_published,
    is_dangerous,
    load_checkpoint,
    load_into,
    load_matching,
    make_card,
    published_tensors,
    read_card,
    read_lightning,
    run_export,
    save_checkpoint,
    swap_head,
)

SHAPE = (2, 4, 5)  # bands, electrodes, bins
LINE = "norm mlp(features=12) tds:2(channels=4,kernel=5)"


class Pair(torch.nn.Module):
    def __init__(self, line=LINE, n_classes=9, seed=0, shape=SHAPE):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = build_encoder(line, *shape)
        self.head = CTCHead(self.encoder.out_features, n_classes)
        for p in self.parameters(): p.data = p.data + 0.1 * torch.randn_like(p)
        for block in self.encoder.blocks.values():
            if hasattr(block, "gain"):
                block.norm.running_mean.normal_()
                block.norm.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x, lengths=None):
        lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
        return self.head(self.encoder(x, lengths), self.encoder.out_lengths(lengths)).log_probs


# --- a checkpoint as Lightning 1.8 writes it, with OmegaConf imitated -------------------------------------------------

class Foreign:
    "Builds the classes of omegaconf, in modules of that name, so that pickle finds them while the file is written."
    NAMES = {"omegaconf.dictconfig": ["DictConfig"], "omegaconf.listconfig": ["ListConfig"], "omegaconf.nodes": ["AnyNode"],
             "omegaconf.base": ["ContainerMetadata", "Metadata"]}

    def __init__(self, monkeypatch):
        for name, classes in ({"omegaconf": []} | self.NAMES).items():
            module = types.ModuleType(name)
            for c in classes:
                kind = type(c, (), {"__module__": name})
                setattr(module, c, kind)
                setattr(self, c, kind)
            monkeypatch.setitem(sys.modules, name, module)

    def wrap(self, value, parent=None):
        "The objects that OmegaConf makes of plain values."
        from typing import Any
        kind = self.DictConfig if isinstance(value, dict) else self.ListConfig if isinstance(value, list) else self.AnyNode
        node, meta = kind(), (self.Metadata if kind is self.AnyNode else self.ContainerMetadata)()
        meta.__dict__.update(ref_type=Any, object_type=type(value), optional=True, resolver_cache=defaultdict(dict), flags={})
        inner = {k: self.wrap(v, node) for k, v in value.items()} if isinstance(value, dict) else [self.wrap(v, node) for v in value] if isinstance(value, list) else value
        node.__dict__.update({"_metadata": meta, "_parent": parent, "_val" if kind is self.AnyNode else "_content": inner})
        return node


SETTINGS = {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001}, "mlp_features": [384], "in_features": 528, "path": "${dataset.root}", "nothing": None}


def lightning(state, **more):
    "The top level of a Lightning 1.8 checkpoint."
    adam = {i: {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(v)} for i, v in enumerate(state.values())}
    return {"epoch": 149, "global_step": 18600, "pytorch-lightning_version": "1.8.6", "state_dict": OrderedDict(state), "loops": {"fit_loop": {}},
            "callbacks": {"ModelCheckpoint{'monitor': 'val/CER'}": {"best_model_score": torch.tensor(18.0)}}, "optimizer_states": [{"state": adam}],
            "lr_schedulers": [{"base_lrs": [1e-3]}], "hparams_name": "kwargs", "hyper_parameters": {}} | more


def write(path, state=None, **more):
    torch.save(lightning(state or {"a": torch.ones(3)}, **more), path)
    return path


def test_reads_the_lightning_shape_in_a_process_without_omegaconf(tmp_path, monkeypatch):
    state = OrderedDict(a=torch.randn(3, 4).t(), b=torch.tensor(7), c=torch.randn(2, 3).half(), d=torch.nn.Parameter(torch.randn(5)), e=torch.tensor([True, False]))
    state._metadata = {"": {"version": 1}}
    foreign, plain = Foreign(monkeypatch), SETTINGS | {"where": PurePosixPath("a/b"), "size": torch.Size([2, 3]), "dtype": torch.float16}
    write(tmp_path / "x.ckpt", state, hyper_parameters={k: foreign.wrap(v) if k in SETTINGS else v for k, v in plain.items()})
    torch.save(dict(state), tmp_path / "expected.pt")
    code = """
import json, sys, torch
from semgbook.transfer import read_lightning
c, wanted = read_lightning(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
assert not any(m.startswith("omegaconf") for m in sys.modules)
assert list(c.state) == list(wanted) and all(torch.equal(c.state[k], v) and c.state[k].dtype == v.dtype for k, v in wanted.items())
assert all(v.is_contiguous() and not v.requires_grad for v in c.state.values())
print(json.dumps([c.hyper_parameters, c.epoch, c.global_step, c.version, c.stubs]))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.ckpt", tmp_path / "expected.pt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings, epoch, step, version, stubs = json.loads(done.stdout)
    assert settings == SETTINGS | {"where": "a/b", "size": [2, 3], "dtype": "<torch.float16>"}
    assert (epoch, step, version) == (149, 18600, "1.8.6")
    assert {"omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode", "typing.Any"} <= set(stubs)
    assert not any("OrderedDict" in s or "Storage" in s or "builtin" in s for s in stubs)


def test_a_whole_container_as_hyper_parameters_and_loops_in_it(tmp_path, monkeypatch):
    foreign = Foreign(monkeypatch)
    ring = [1]
    ring.append(ring)
    assert read_lightning(write(tmp_path / "a.ckpt", hyper_parameters=foreign.wrap(SETTINGS))).hyper_parameters == SETTINGS
    assert read_lightning(write(tmp_path / "b.ckpt", hyper_parameters={"ring": ring, "names": {"z"}, "n": types.SimpleNamespace(lr=3)})).hyper_parameters == {
        "ring": [1, "<...>"], "names": ["z"], "n": {"class": "types.SimpleNamespace", "lr": 3}}


def test_views_of_one_storage_come_out_apart(tmp_path):
    base = torch.arange(12.0)
    state = read_lightning(write(tmp_path / "v.ckpt", {"head": base[2:6], "grid": base.view(3, 4)[:, 1], "none": base[:0]})).state
    assert state["head"].tolist() == [2, 3, 4, 5] and state["grid"].tolist() == [1, 5, 9] and state["none"].shape == (0,)
    state["head"].zero_()
    assert state["grid"].tolist() == [1, 5, 9]
    with pytest.raises(TransferError, match="outside its storage"):  # four bytes that claim to be four million
        read_lightning(write(tmp_path / "v.ckpt", {"wide": torch.zeros(1).expand(1000, 1000)}))


# --- attacks ----------------------------------------------------------------------------------------------------------

class Call:
    "Rebuilt by calling something."
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call


def repack(path, program, **entries):
    "The torch file with another program, stored as torch stores."
    with zipfile.ZipFile(path) as old: content = {i.filename: old.read(i) for i in old.infolist()}
    root = next(n for n in content if n.endswith("/data.pkl")).removesuffix("data.pkl")
    content |= {root + "data.pkl": program} | {root + k.replace("__", "/"): v for k, v in entries.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in content.items(): new.writestr(name, data)
    return path


def short(text): return b"\x8c" + bytes([len(text)]) + text.encode()


def stack_global(module, name, argument):
    "Protocol 4: two texts on the stack make a name of any spelling, then a call."
    return b"\x80\x04" + short(module) + short(name) + b"\x93" + short(argument) + b"\x85R."


def attacks(sentinel):
    import functools
    import os
    shell, python = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"
    called = {"system": Call(os.system, shell), "eval": Call(eval, python), "exec": Call(exec, python), "partial": Call(functools.partial, os.getpid),
              "popen": Call(subprocess.check_call, ["touch", str(sentinel)]), "getattr": Call(getattr, {}, "keys"), "import": Call(__import__, "os"),
              "hub": Call(torch.hub.load, "a/b", "c"), "load": Call(torch.load, "x.pt"), "private": Call(torch._utils._flatten_dense_tensors, []),
              "loads": Call(pickle.loads, pickle.dumps(Call(os.system, shell)))}
    yield from ((name, {"deep": [{"er": (call,)}]}, None) for name, call in called.items())
    text = f"cposix\nsystem\n(S'{shell}'\ntR."
    programs = {"dotted_torch": stack_global("torch", "serialization.os.system", shell), "dotted_collections": stack_global("collections", "OrderedDict.__init__.__globals__", "x"),
                "dotted_unknown": stack_global("omegaconf", "os.system", shell), "dotted_builtins": stack_global("builtins", "dict.fromkeys", "x"),
                "nt": stack_global("nt", "system", shell), "old_builtins": stack_global("__builtin__", "eval", python), "protocol0": text.encode(),
                "inst": f"(S'{shell}'\nios\nsystem\n.".encode(), "obj": f"(cos\nsystem\nS'{shell}'\no.".encode(),
                "torch_os": stack_global("torch.serialization", "os.system", shell), "extension": b"\x80\x02\x82\x01."}
    yield from ((name, None, program) for name, program in programs.items())


NAMES = [name for name, *_ in attacks("x")]


@pytest.mark.parametrize("which", NAMES)
def test_attacks_are_refused_and_nothing_runs(which, tmp_path):
    sentinel = tmp_path / "sentinel"
    name, settings, program = next(a for a in attacks(sentinel) if a[0] == which)
    path = write(tmp_path / "x.ckpt", hyper_parameters=settings or {})
    if program: repack(path, program)
    before = path.read_bytes()
    with pytest.raises(TransferError, match="extension codes" if which == "extension" else "asks for .*which can run code") as caught: read_lightning(path)
    assert str(path) in str(caught.value) and not sentinel.exists() and path.read_bytes() == before


def test_the_attacks_are_real(tmp_path):
    "The same file does harm in torch.load with the check off: otherwise the test above proves nothing."
    sentinel = tmp_path / "sentinel"
    write(tmp_path / "x.ckpt", hyper_parameters={"deep": Call(eval, f"open({str(sentinel)!r}, 'w').close()")})
    torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert sentinel.exists()


def test_unknown_code_becomes_a_record_and_is_not_imported(tmp_path):
    "A harmless-looking package that does harm when it is imported, or called."
    sentinel, package = tmp_path / "sentinel", tmp_path / "innocent_package.py"
    package.write_text(f"open({str(sentinel)!r}, 'w').close()\ndef make(*a): open({str(sentinel)!r}, 'w').close()\n")
    path = repack(write(tmp_path / "x.ckpt"), b"\x80\x04}" + short("state_dict") + b"}" + short("a") + short("innocent_package") + short("make") + b"\x93"
                  + short("x") + b"\x85Rss.")
    code = "import sys; from semgbook.transfer import read_lightning, TransferError\ntry: read_lightning(sys.argv[1])\nexcept TransferError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert "innocent_package.make, not a tensor" in done.stdout, done.stderr
    assert not sentinel.exists()


def test_no_object_of_the_program_reaches_anything_of_ours():
    "Instructions that set state and attributes land in records, on instances and on classes; plain objects refuse."
    def run(body): return RecordUnpickler(b"\x80\x04" + body + b".", "x").content()
    name = short("a.b") + short("C") + b"\x93"
    built = run(name + b")\x81" + b"(N}" + short("__class__") + short("x") + b"stb")
    assert built.state == (None, {"__class__": "x"}) and type(built).name == "a.b.C" and built.args == ()
    for body in (name + b"(N}" + short("__setstate__") + short("x") + b"stb", b"]}" + short("append") + short("x") + b"sb", name + short("x") + b"Ns",
                 b"\x8c\x01a)R", b"N)\x81"):
        with pytest.raises(TransferError, match="damaged"): run(body)
    assert run(name + b")R]K\x01a") == [1]  # the class is untouched and no state is shared between reads
    assert run(name + b")R").state is None


@pytest.mark.parametrize("module, name, bad", [
    ("builtins", "dict", False), ("__builtin__", "long", False), ("__builtin__", "getattr", True), ("builtins", "open", True), ("builtins", "dict.__class__", True),
    ("torch", "FloatStorage", False), ("torch", "bfloat16", False), ("torch", "load", True), ("torch._utils", "_rebuild_tensor_v2", False),
    ("torch._utils", "_rebuild_parameter_with_state", True), ("torch.optim.adam", "Adam", False), ("torch.jit", "load", True), ("torch", "_C._jit_x", True),
    ("my.system", "System", False), ("my", "system", True), ("my.os.path", "join", True), ("importlib", "import_module", True), ("typing", "Any", False),
    ("numpy.core.multiarray", "scalar", False), ("pathlib", "PosixPath", False), ("operator", "attrgetter", True), ("runpy", "run_path", True)])
def test_judgement_of_names(module, name, bad): assert is_dangerous(module, name) == bad


# --- damaged and other files ------------------------------------------------------------------------------------------

def test_other_files_are_refused_with_the_remedy(tmp_path):
    path, whole = tmp_path / "x.ckpt", write(tmp_path / "whole.ckpt").read_bytes()
    for data, words in ((b"hello, I am text", "no checkpoint"), (b"", "no checkpoint"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
                        (whole[:300], "damaged or incomplete"), (whole[:-30], "damaged or incomplete"), (pickle.dumps({"state_dict": {}}), "before zip archives")):
        path.write_bytes(data)
        with pytest.raises(TransferError, match=words): read_lightning(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(TransferError, match="before zip archives.*weights_only=True"): read_lightning(path)
    for missing in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(TransferError, match="is not there"): read_lightning(missing)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(TransferError, match="no 'state_dict'.* it has a"): read_lightning(path)
    torch.save([1], path)
    with pytest.raises(TransferError, match="holds a list"): read_lightning(path)
    torch.save({"state_dict": {"a": "text"}}, path)
    with pytest.raises(TransferError, match=r"state_dict\['a'\] is a str"): read_lightning(path)


def test_bombs_and_lies(tmp_path):
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z: z.writestr("x/data.pkl", bytes(10**6))
    with pytest.raises(TransferError, match="not as torch writes"): read_lightning(path)
    whole = write(path).read_bytes()
    at = whole.rindex(b"PK\x01\x02")  # the last entry of the directory: declare four billion bytes
    path.write_bytes(whole[:at + 20] + struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0) + whole[at + 28:])
    with pytest.raises(TransferError, match="not as torch writes|damaged"): read_lightning(path)
    with zipfile.ZipFile(path, "w") as z:
        with pytest.warns(UserWarning, match="Duplicate"): [z.writestr("x/data.pkl", b"") for _ in range(2)]
    with pytest.raises(TransferError, match="not as torch writes"): read_lightning(path)
    slots = b"\x80\x02]r" + struct.pack("<I", 2**31) + b"."
    with pytest.raises(TransferError, match="absurd amounts"): read_lightning(repack(write(path), slots))
    exabyte = b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x."
    with pytest.raises(TransferError, match="damaged"): read_lightning(repack(write(path), exabyte))
    laugh = [0]
    for _ in range(64): laugh = [laugh, laugh]
    with pytest.raises(TransferError, match="too large or too deep"): read_lightning(write(path, hyper_parameters={"x": laugh}))
    torch.save(laugh, path)
    with pytest.raises(TransferError, match="holds a list"): read_lightning(path)  # and does not print it


@pytest.mark.parametrize("change, words", [
    ((b"K\x03\x85", b"K\x04\x85"), "outside its storage"),  # shape 3 -> 4
    ((b"K\x00K\x03\x85", b"K\x01K\x03\x85"), "outside its storage"),  # offset 0 -> 1
    ((b"FloatStorage", b"LongxStorage"), "not known here"),
    ((b"K\x01\x85\x89", b"K\x02\x85\x89"), "outside its storage"),  # step 1 -> 2
])
def test_tensors_stay_inside_their_storage(change, words, tmp_path):
    path = write(tmp_path / "x.ckpt", optimizer_states=[], callbacks={})
    with zipfile.ZipFile(path) as z: program = z.read("x/data.pkl")
    import re
    program = re.sub(rb"[qr](?:.)(?=K|\x85|\x89)", b"", program, flags=re.S) if change[0] not in program else program
    assert change[0] in program
    with pytest.raises(TransferError, match=words): read_lightning(repack(path, program.replace(*change, 1)))


def test_cut_numbers_and_lost_entries(tmp_path):
    path = write(tmp_path / "x.ckpt", optimizer_states=[], callbacks={})
    with zipfile.ZipFile(path) as z: program = z.read("x/data.pkl")
    with pytest.raises(TransferError, match="has 8 bytes, its tensor needs 3 numbers"): read_lightning(repack(path, program, data__0=bytes(8)))
    with pytest.raises(TransferError, match="big-endian"): read_lightning(repack(write(path), program, byteorder=b"big"))
    data = bytearray(write(path, {"a": torch.full((3,), 1.5)}).read_bytes())
    data[data.index(struct.pack("<f", 1.5))] ^= 1
    path.write_bytes(data)
    with pytest.raises(TransferError, match="damaged"): read_lightning(path)


# --- published weights --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def golden(shared):
    class G: pass
    g = G()
    g.cases = json.loads(shared("golden/model_cases.json").read_text())
    g.keys = json.loads(shared("golden/model_keys.json").read_text())
    g.tensors = {t["key"]: t["shape"] for t in g.keys["tensors"]}
    frames = np.load(shared("golden/model_input.npz"))["input_int8"] * np.float32(g.cases["input_scale"])
    g.frames, g.lengths = torch.tensor(frames).transpose(0, 1), torch.tensor(g.cases["input_lengths"])
    g.expected = {k: torch.tensor(v) for k, v in np.load(shared("golden/model_expected.npz")).items()}
    return g


@pytest.mark.parametrize("law", ["cos", "hash"])
def test_golden_log_probs_through_a_file(golden, law, tmp_path, monkeypatch):
    state = formula_state(golden.tensors, golden.cases["weights"][law])
    path = write(tmp_path / "generic.ckpt", {k: state[k] for k in golden.keys["order_in_module"]}, hyper_parameters=Foreign(monkeypatch).wrap(SETTINGS))
    checkpoint, model = read_lightning(path), Pair("tds", 99, shape=(2, 16, 33))
    assert list(checkpoint.state) == golden.keys["order_in_module"] and checkpoint.hyper_parameters == SETTINGS
    table = import_published(checkpoint, model.encoder, model.head)
    assert len(table) == 51 and set(table.published) == set(golden.tensors) and list(table.published) == golden.keys["order_in_module"]
    assert set(table.ours) == set(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(golden.frames, golden.lengths).transpose(0, 1), golden.expected[f"{law}_log_probs"], atol=5e-5, rtol=0)
        exact = Pair("tds", 99, seed=1, shape=(2, 16, 33)).double()
        import_published(path, exact.encoder, exact.head)
        torch.testing.assert_close(exact(golden.frames.double(), golden.lengths).transpose(0, 1), golden.expected[f"{law}_log_probs_f64"], atol=1e-9, rtol=0)
    back = export_published(model.encoder, model.head)
    assert list(back) == golden.keys["order_in_module"] and all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in state.items())
    assert all(list(back[k].shape) == s for k, s in golden.tensors.items())


@pytest.mark.parametrize("line", [LINE, "norm mlp(features=8/12) tds(channels=4,kernel=3) tds(channels=8,kernel=4)", "norm mlp(features=6) tds:3(channels=1,kernel=2)"])
def test_round_trip_and_every_number_has_a_place(line):
    a, b = Pair(line), Pair(line, seed=1)
    published = export_published(a.encoder, a.head)
    import_published(published, b.encoder, b.head)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    marks = {k: torch.arange(v.numel(), dtype=torch.float64).view(v.shape) for k, v in published.items()}
    for k, layout in published_tensors(a.encoder, a.head).items():
        assert tuple(layout.published_shape) == tuple(marks[k].shape) and torch.equal(layout.give(layout.take(marks[k])), marks[k])
        assert sorted(layout.take(marks[k]).flatten().tolist()) == sorted(marks[k].flatten().tolist())


def test_nothing_is_copied_when_something_does_not_fit():
    a, b = Pair(seed=0), Pair(seed=1)
    good, before = export_published(a.encoder, a.head), {k: v.clone() for k, v in b.state_dict().items()}
    some = "model.3.tds_conv_blocks.0.conv2d.weight"
    for state, words in (({k: v for k, v in good.items() if k != some}, f"missing: {some}"), (good | {"model.9.x": torch.ones(1)}, "unexpected: model.9.x"),
                         (good | {some: torch.ones(4, 4, 5, 1)}, r"of another shape: .*needs \(4, 4, 1, 5\), has \(4, 4, 5, 1\)"),
                         (good | {"model.4.bias": torch.full((9,), torch.nan)}, "not finite: model.4.bias")):
        with pytest.raises(TransferError, match=words): import_published(state, b.encoder, b.head)
    assert all(torch.equal(v, before[k]) for k, v in b.state_dict().items())
    for line in ("bilstm_small", "norm mlp(features=12)", LINE + " stride", LINE.replace("12", "12,reach=0"), "mlp(features=12) tds(channels=4,kernel=3)"):
        other = Pair(line)
        with pytest.raises(TransferError, match="published model"): import_published(good, other.encoder, other.head)
    with pytest.raises(TransferError, match="must divide"): feature_order(24, 2, (8, 6))


# --- our own checkpoints ------------------------------------------------------------------------------------------------

class Story:
    def to_dict(self): return {"users": ["a", "b"]}


def test_checkpoint_round_trip_with_its_card(tmp_path):
    model, path = Pair(), tmp_path / "deep" / "m.safetensors"
    card = make_card(recipe={"encoder": LINE}, lineage=Story(), charset="qwerty", keys=QWERTY.keys, n_bands=2, n_channels=4, rate_hz=2000.0, source="x", notes="é")
    save_checkpoint(path, model, card)
    loaded = load_checkpoint(path)
    assert loaded.card == read_card(path) == card and set(card) == set(CARD_FIELDS)
    assert card["lineage"] == {"users": ["a", "b"]} and card["keys"] == list(QWERTY.keys) and card["made"]["versions"]["torch"] == torch.__version__
    twin = load_into(Pair(seed=4), path)
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), model.state_dict().values(), strict=True))
    assert twin.encoder.blocks["norm1"].norm.num_batches_tracked.dtype == torch.int64
    first = path.read_bytes()
    assert save_checkpoint(path, model, card).read_bytes() == first and [p.name for p in path.parent.iterdir()] == ["m.safetensors"]
    assert load_into(Pair(seed=5), load_checkpoint(save_checkpoint(path, model.state_dict()))).state_dict().keys() == model.state_dict().keys()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "m.safetensors", Pair())
    before = path.read_bytes()
    for card, words in (({"chraset": 1}, "no field 'chraset'"), ({"notes": object()}, "plain values"), ({"rate_hz": float("nan")}, "plain values")):
        with pytest.raises(TransferError, match=words): save_checkpoint(path, Pair(seed=1), card)
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"): save_checkpoint(path, Pair(seed=1))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    with pytest.raises(TransferError, match=r"ends in \.safetensors"): save_checkpoint(tmp_path / "m.pt", Pair())


def test_load_into_names_what_does_not_fit_and_changes_nothing(tmp_path):
    path, model = save_checkpoint(tmp_path / "m.safetensors", Pair()), Pair(n_classes=5, seed=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(TransferError, match=r"m\.safetensors.*head\.linear\.weight \(needs \(5, 24\), has \(9, 24\)\)"): load_into(model, path)
    with pytest.raises(TransferError, match="missing: encoder"): load_into(model, {"x": torch.ones(1)})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_damaged_safetensors(tmp_path):
    path = save_checkpoint(tmp_path / "m.safetensors", Pair())
    whole, bad = path.read_bytes(), tmp_path / "bad.safetensors"
    for data, words in ((whole[:-7], "cut off"), (whole[:40], "cut off"), (b"", "cut off"), (b"\xff" * 64, "cut off"), (struct.pack("<Q", 20) + b"x" * 60, "not JSON"),
                        (struct.pack("<Q", 4) + b"[12]" + bytes(9), "not JSON")):
        bad.write_bytes(data)
        with pytest.raises(TransferError, match=words): load_checkpoint(bad)
    torch.save({"a": torch.ones(1)}, bad)
    with pytest.raises(TransferError, match="read_lightning"): load_checkpoint(bad)
    with pytest.raises(TransferError, match="not there"): load_checkpoint(tmp_path / "none.safetensors")


# --- a part of a model --------------------------------------------------------------------------------------------------

def test_load_matching_says_what_became_of_every_tensor():
    old, new = Pair(), Pair(n_classes=5, seed=3)
    head = {k: v.clone() for k, v in new.head.state_dict().items()}
    given = {k: v for k, v in old.state_dict().items() if "tds2.full" not in k} | {"extra": torch.ones(2)}
    status = load_matching(new, given, drop="head.").set_index("tensor").status
    assert set(status.index) == set(new.state_dict()) | set(given)
    for k, s in status.items():
        wanted = "dropped" if k.startswith("head") else "new" if "tds2.full" in k else "unused" if k == "extra" else "loaded"
        assert s == wanted, k
        if s == "loaded": assert torch.equal(new.state_dict()[k], old.state_dict()[k])
    assert all(torch.equal(v, head[k]) for k, v in new.head.state_dict().items())
    table = load_matching(new, old.state_dict()).set_index("tensor")
    assert table.status["head.linear.weight"] == "other shape" and (table.ours["head.linear.weight"], table.given["head.linear.weight"]) == ("5×24", "9×24")
    with pytest.raises(TransferError, match="matches no tensor"): load_matching(new, old.state_dict(), drop=("hed.",))
    with pytest.raises(TransferError, match="nothing was loaded"): load_matching(new, {f"model.{k}": v for k, v in old.state_dict().items()})
    with pytest.raises(TransferError, match="not finite"): load_matching(new, {k: v * torch.nan if v.is_floating_point() else v for k, v in old.state_dict().items()})


def test_swap_head_keeps_shared_keys_and_the_blank():
    old, features = CTCHead(24, FINGERS.n_classes), torch.randn(1, 7, 24)
    for charset in (FINGERS_NO_REST, FINGERS, QWERTY):
        head = CTCHead(24, charset.n_classes)
        fresh = {k: v.clone() for k, v in head.state_dict().items()}
        table = swap_head(old.state_dict(), FINGERS, charset, head)
        assert table.key.tolist() == [*charset.keys, "blank"] and (table.status == "kept").sum() == min(len(charset.keys), 6) + 1
        kept = table.index[table.status == "kept"].tolist()
        scores, before = head.linear(features), old.linear(features)
        torch.testing.assert_close(scores[..., kept], before[..., table.old_class[kept].tolist()])
        new = table.index[table.status == "new"].tolist()
        assert torch.equal(head.linear.weight[new], fresh["linear.weight"][new]) and torch.equal(head.linear.bias[new], fresh["linear.bias"][new])
        assert table.old_class.iloc[-1] == FINGERS.blank
    with pytest.raises(TransferError, match="the new head has 99 classes"): swap_head(old.state_dict(), FINGERS, FINGERS, CTCHead(24, 99))
    with pytest.raises(TransferError, match="of another shape"): swap_head(old.state_dict(), QWERTY, FINGERS, CTCHead(24, FINGERS.n_classes))


# --- export -------------------------------------------------------------------------------------------------------------

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


def test_reading_needs_no_more_memory_than_the_weights(tmp_path):
    "The optimiser's memory is not read: its entries may be rubbish."
    path = write(tmp_path / "x.ckpt", {"a": torch.ones(3)})
    with zipfile.ZipFile(path) as z: program, sizes = z.read("x/data.pkl"), {i.filename: i.file_size for i in z.infolist()}
    assert "x/data/1" in sizes
    assert torch.equal(read_lightning(repack(path, program, data__1=b"rubbish")).state["a"], torch.ones(3))

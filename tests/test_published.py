"Published checkpoints: read without running them, and their weights in our model number by number."
import json
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import PurePosixPath

import pytest
import torch
from test_encoders import formula_state
from test_transfer import LINE, Pair
from toys import model_cases

from semgbook.published import RecordUnpickler, export_published, feature_order, import_published, is_dangerous, published_tensors, read_lightning
from semgbook.transfer import TransferError


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
from semgbook.published import read_lightning
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
    code = "import sys; from semgbook.published import read_lightning; from semgbook.transfer import TransferError\ntry: read_lightning(sys.argv[1])\nexcept TransferError as e: print(e)"
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


def test_reading_needs_no_more_memory_than_the_weights(tmp_path):
    "The optimiser's memory is not read: its entries may be rubbish."
    path = write(tmp_path / "x.ckpt", {"a": torch.ones(3)})
    with zipfile.ZipFile(path) as z: program, sizes = z.read("x/data.pkl"), {i.filename: i.file_size for i in z.infolist()}
    assert "x/data/1" in sizes
    assert torch.equal(read_lightning(repack(path, program, data__1=b"rubbish")).state["a"], torch.ones(3))


# --- published weights --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def golden(shared): return model_cases(shared)


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

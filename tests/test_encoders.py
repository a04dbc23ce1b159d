"Encoders: the line, the registry, and the published TDS model number by number."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from toys import model_cases

from semgbook.blocks import BLOCKS, BlockError
from semgbook.charset import get_charset
from semgbook.ctc import CTCHead, ctc_loss
from semgbook.encoders import (ABOUT, ENCODERS, FRONT, NARROW, BlockSpec, Encoder, EncoderError, block_options, build_encoder, encoder_line, encoder_table,
                               format_encoder, frame_macs, lookahead, narrow, parse_encoder, sketch, with_front)
from semgbook.exporting import check_export, export_onnx, export_torchscript
from semgbook.published import feature_order, import_published, published_tensors

SMALL = (2, 4, 5)  # bands, electrodes, bins
NARROWED = {name: narrow(name) for name in ENCODERS}  # every registered architecture, at a size that a test can run
LINES = dict(NARROWED, **{
    "tds_small": ENCODERS["tds_small"],
    "bilstm_strided": ENCODERS["bilstm_strided"],
    "late": "norm mlp(features=8) stride(kernel=3,stride=3) local(heads=2,left=3,right=4)",
    "front": "local:2(heads=2,left=5,right=3) stride gru(hidden=5) linear(features=12) tds(channels=4,kernel=3)",
    "flat": "norm(mask=1) flatten stride(kernel=3,stride=2)",
    "mixed": "norm mlp(features=8/6,reach=0) tds:2(channels=4,kernel=5) stride(kernel=4,stride=3) tds(channels=3,kernel=4)",
    "causal": "norm mlp(features=6) stride bilstm(hidden=5,bidirectional=0,fc=7)",
    "rolling": "rolling(settle=20) mlp(features=8) tds(channels=4,kernel=5)",
    "rolling_strided": "rolling(settle=30,eps=0.2) flatten stride(kernel=3,stride=2) gru(hidden=5,bidirectional=0)",
})
TDS_BLOCK, TRANSFORMER, FRONT_SIZE, BACK = 1_202_712, 3_153_152, 406_336, 2 * (256 * 256 + 256) + 2 * 256 + 256 * 768 + 768
GRU, LSTM = (n * (2 * 128 * (768 + 130) + 3 * 2 * 128 * (256 + 130)) for n in (3, 4))
GPT2_SMALL = 124_439_808 - 50_257 * 768  # as published, without the table of words
PARAMETERS = {  # by hand, from the sizes of the parts
    **{f"tds_{n}": FRONT_SIZE + n * TDS_BLOCK for n in (2, 4, 6, 8)}, "tds": 5_217_184, "bilstm": 1_479_808,
    **{f"tds_{n}_transformer_2": FRONT_SIZE + n * TDS_BLOCK + 2 * TRANSFORMER for n in (2, 4, 6, 8)}, "tds_4_transformer_4": 5_217_184 + 4 * TRANSFORMER,
    "tds_4_gpt2_1": 5_217_184 + GPT2_SMALL, "tds_4_gpt2_2": 5_217_184 + GPT2_SMALL,
    "lstm_4": FRONT_SIZE + LSTM + BACK, "lstm_4_tds_2": FRONT_SIZE + LSTM + BACK + 2 * TDS_BLOCK,
    "lstm_4_tds_4": FRONT_SIZE + LSTM + BACK + 4 * TDS_BLOCK, "tds_4_lstm_4": FRONT_SIZE + LSTM + BACK + 4 * TDS_BLOCK,
    "gru_4": FRONT_SIZE + GRU + BACK, "gru_4_tds_4": FRONT_SIZE + GRU + BACK + 4 * TDS_BLOCK,
    "transformer_2_gru_4_tds_4": 13_431_968, "transformer_2_lstm_4_tds_4": FRONT_SIZE + LSTM + BACK + 4 * TDS_BLOCK + 2 * TRANSFORMER,
    "gru_4_causal": 2_708_032, "gru_4_causal_tds_4": 2_708_032 + 4 * TDS_BLOCK, "local_4": FRONT_SIZE + 4 * TRANSFORMER,
    "local_2_tds_4": FRONT_SIZE + 2 * TRANSFORMER + 4 * TDS_BLOCK, "local_2_gru_4_tds_4": 13_431_968, "conformer_2": 11_868_480, "conformer_2_full": 11_868_480,
    **{f"stride_{n}_gru_4": FRONT_SIZE + GRU + BACK + 768 * (2 * n + 1) for n in (2, 4, 8)},
    "bilstm_strided": 718_208, "tds_small": 143_072, "bilstm_small": 158_048,
}


def make(name):
    if "gpt2" in name: pytest.importorskip("transformers", reason="needs the optional extra gpt2")
    torch.manual_seed(0)
    return build_encoder(LINES[name], *SMALL)


def learnt(encoder):
    return [p for p in encoder.parameters() if p.requires_grad]


def batch(n=3, t=160):
    return torch.randn(n, t, *SMALL, generator=torch.Generator().manual_seed(1))


# --- every encoder ---------------------------------------------------------------------------------------------------

def test_every_block_is_in_a_tested_line():
    assert {spec.name for line in LINES.values() for spec in parse_encoder(line)} == set(BLOCKS)


def test_parameter_table_is_complete():
    pytest.importorskip("transformers", reason="needs the optional extra gpt2")
    assert {row["name"]: row["parameters"] for row in encoder_table()} == PARAMETERS
    assert PARAMETERS["tds"] + 768 * 99 + 99 == 5_293_315
    assert round((PARAMETERS["transformer_2_gru_4_tds_4"] + 768 * 99 + 99) / 1e6, 1) == 13.5


def test_every_name_has_its_sentence():
    assert set(ABOUT) == set(ENCODERS) == set(PARAMETERS) and len(set(ABOUT.values())) == len(ABOUT)


def test_the_table_says_what_encoders_are():
    rows = {row["name"]: row for row in encoder_table(names=["tds", "gru_4_causal", "conformer_2", "stride_8_gru_4", "transformer_2_gru_4_tds_4"])}
    tds = rows["tds"]
    assert (tds["field"], tds["field_ms"], tds["lookahead_ms"], tds["output_hz"], tds["streamable"]) == (125, 1024, 0, 125, True)
    assert tds["mmacs_per_s"] == 125 * (3 * 2 * 528 * 384 + 4 * (768 * 24 * 32 + 2 * 768 ** 2)) / 1e6
    assert (rows["gru_4_causal"]["field_ms"], rows["gru_4_causal"]["lookahead_ms"], rows["gru_4_causal"]["streamable"]) == (None, 0, False)
    assert rows["conformer_2"]["lookahead_ms"] == 2 * 8 * 8 and rows["stride_8_gru_4"]["output_hz"] == 125 / 8
    long, = encoder_table(names=["transformer_2_gru_4_tds_4"], n_frames=6220)
    extra = long["mmacs_per_s"] - rows["transformer_2_gru_4_tds_4"]["mmacs_per_s"]
    assert extra == pytest.approx(2 * 2 * 768 * (6220 - 622) * 125 / 1e6)
    half, = encoder_table(names=["tds"], hop=32)
    assert (half["output_hz"], half["field_ms"]) == (62.5, 32 + 124 * 16)
    small, = encoder_table(names=["tds"], line=narrow)
    assert small["parameters"] == build_encoder(narrow("tds"), 2, 16, 33).n_parameters and small["line"] == narrow("tds")


def test_the_table_without_the_optional_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    rows = {row["name"]: row for row in encoder_table()}
    assert "parameters" not in rows["tds_4_gpt2_1"] and rows["tds_4_gpt2_1"]["about"] and rows["tds"]["parameters"] == PARAMETERS["tds"]


@pytest.mark.parametrize("name", LINES)
def test_a_sketch_is_the_encoder_without_weights(name):
    real, drawn = make(name), sketch(LINES[name], *SMALL)
    assert all(p.is_meta for p in drawn.parameters()) and {k: v.shape for k, v in drawn.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert (drawn.context, drawn.stride, drawn.out_features, lookahead(drawn)) == (real.context, real.stride, real.out_features, lookahead(real))


@pytest.mark.parametrize("name", LINES)
def test_lookahead_by_perturbation(name):
    encoder, x = make(name).eval(), batch(1, 320)
    other = x.clone()
    other[:, 300:] = torch.randn(1, 20, *SMALL)
    with torch.no_grad(): change = (encoder(x) - encoder(other)).abs().amax(2)[0]
    left = encoder.context[0] if encoder.context else sum_of_left(encoder)
    own = torch.arange(len(change)) * encoder.stride + left
    if lookahead(encoder) is None: assert (change > 0)[own < 300].any()  # a recurrent network's memory fades
    elif name.startswith("rolling"): assert torch.equal(change > 0, own >= 300)  # it looks ahead in the settling stretch only
    else: assert torch.equal(change > 0, own + lookahead(encoder) >= 300)


@pytest.mark.parametrize("name", ["rolling", "rolling_strided"])
def test_the_settling_stretch_is_the_lookahead_of_the_first_output(name):
    encoder, x = make(name).eval(), batch(1, 320)
    last = sum_of_left(encoder) + lookahead(encoder)
    settle = dict(encoder.specs[0].options)["settle"]
    moved = {}
    for frame in (settle - 1, max(last, settle - 1) + 1):
        other = x.clone()
        other[:, frame] += torch.randn(SMALL)
        with torch.no_grad(): moved[frame] = not torch.equal(encoder(x)[:, 0], encoder(other)[:, 0])
    assert list(moved.values()) == [True, False] and lookahead(encoder) == settle - 1


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_a_rolling_norm_is_exported(kind, tmp_path):
    "It has no weights to fold, and its statistics are a graph of any length, shorter than the settling stretch too."
    if kind == "onnx": [pytest.importorskip(p) for p in ("onnx", "onnxscript", "onnxruntime")]
    encoder, head = make("rolling"), CTCHead(8 * 2, 7)
    path = (export_torchscript if kind == "torchscript" else export_onnx)(tmp_path / "m.x", encoder, head)
    table = check_export(path, encoder, head, sizes=((1, 0), (1, 14), (1, 15), (1, 16), (1, 2500)))
    assert table.steps.tolist() == [5, 19, 20, 21, 2505] and table.difference.max() < 1e-5


def sum_of_left(encoder):
    "Frames before the first output's own frame, blocks without a bound adding none."
    left, stride = 0, 1
    for block in encoder.blocks.values(): left, stride = left + (block.context or (0, 0))[0] * stride, stride * block.stride
    return left


@pytest.mark.parametrize("name", [name for name in LINES if sketch(LINES[name], *SMALL) is not None and sketch(LINES[name], *SMALL).context])
@given(data=strategies.data())
@settings(deadline=None, max_examples=8)
def test_chunks_with_context_give_the_full_pass(name, data):
    encoder, n = make(name).eval(), 300
    x, (left, right), step = batch(1, n), encoder.context, encoder.stride
    with torch.no_grad(): whole = encoder(x)
    first = data.draw(strategies.integers(0, whole.shape[1] - 1))
    last = data.draw(strategies.integers(first, whole.shape[1] - 1))
    with torch.no_grad(): piece = encoder(x[:, first * step:last * step + left + right + 1])
    assert piece.shape[1] == last - first + 1
    torch.testing.assert_close(piece, whole[:, first:last + 1], atol=1e-5, rtol=1e-4)


def test_narrow_keeps_the_architecture():
    for name in ENCODERS:
        wide, small = with_front(ENCODERS[name]), parse_encoder(narrow(name))
        assert [(s.name, s.count) for s in small] == [(s.name, s.count) for s in wide]
        kept = lambda specs: [(k, v) for s in specs for k, v in s.options if k not in NARROW.get(s.name, ())]
        assert kept(small) == kept(wide) and narrow(narrow(name)) == narrow(name)
        encoder = sketch(narrow(name), 2, 16, 33)
        assert encoder is None or encoder.n_parameters < 1_700_000
    assert set(NARROW) <= set(BLOCKS) and narrow("gru:2 tds") == "norm mlp(features=64) gru:2 tds(channels=8,kernel=16)"
    assert "features=48" in narrow("tds", {"mlp": dict(features=(48,))})


def test_a_line_without_a_front_gets_the_published_one():
    assert build_encoder("gru:2(hidden=4)", *SMALL).specs == parse_encoder(f"{FRONT} gru:2(hidden=4)") == with_front("gru:2(hidden=4)")
    for line in ("norm mlp gru", "flatten gru", "mlp"): assert with_front(line) == parse_encoder(line)
    assert build_encoder("transformer:2 gru:4 tds:4", 2, 16, 33).out_features == 768
    assert parse_encoder("gru:4") == (BlockSpec("gru", 4),) and encoder_line("gru:4") == "gru:4"


def test_macs_count_a_stride_once():
    one, two = (Encoder(f"norm mlp(features=8) {word} full", *SMALL) for word in ("stride(kernel=2,stride=1)", "stride(kernel=2,stride=2)"))
    front = Encoder("norm mlp(features=8)", *SMALL)
    assert frame_macs(one) - frame_macs(front) == 2 * (frame_macs(two) - frame_macs(front)) == 16 * 2 + 2 * 16 ** 2


@pytest.mark.parametrize("name", LINES)
def test_output_has_the_length_it_says(name):
    encoder = make(name).eval()
    shortest = encoder.shortest
    with torch.no_grad():
        for t in range(shortest, shortest + 5):
            out = encoder(batch(1, t), torch.tensor([t]))
            assert out.shape == (1, encoder.out_lengths(t), encoder.out_features)
            assert encoder.out_lengths(torch.tensor([t])).tolist() == [out.shape[1]]
    assert encoder.field in (None, shortest) and encoder.out_lengths(shortest) == 1 and encoder.out_lengths(shortest - 1) == 0
    with pytest.raises(EncoderError, match=f"gives no output.*at least {shortest} frames"): encoder(batch(1, shortest - 1))


@pytest.mark.parametrize("name", LINES)
def test_gradient_reaches_every_parameter(name):
    encoder = make(name).train()
    out = encoder(batch(), torch.tensor([160, 150, 141]))
    (out * torch.randn(out.shape)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learnt(encoder))


@pytest.mark.parametrize("name", LINES)
def test_padding_and_order_do_not_matter(name):
    encoder, lengths, x = make(name).eval(), torch.tensor([160, 151, 133]), batch()
    with torch.no_grad():
        out, n_out = encoder(x, lengths), encoder.out_lengths(lengths)
        shuffled = encoder(x[[2, 0, 1]], lengths[[2, 0, 1]])
        for i in range(3):
            alone = encoder(x[i:i + 1, :lengths[i]])[0]
            assert len(alone) == n_out[i]
            torch.testing.assert_close(out[i, :n_out[i]], alone, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(shuffled[(i + 1) % 3, :n_out[i]], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LINES)
def test_context_by_perturbation(name):
    encoder, x = make(name).eval(), batch(1, 320)
    other = x.clone()
    other[:, 150] = torch.randn(SMALL)
    with torch.no_grad(): change = (encoder(x) - encoder(other)).abs().amax(2)[0]
    if encoder.context is None:
        assert encoder.field is None
        return
    left, right = encoder.context
    own = torch.arange(len(change)) * encoder.stride + left
    sees = (own - left <= 150) & (150 <= own + right)
    assert torch.equal(change > 0, sees) and encoder.field == left + 1 + right


@pytest.mark.parametrize("name", LINES)
def test_state_dict_round_trip(name):
    a, b = make(name), make(name)
    with torch.no_grad():
        for p in b.parameters(): p.add_(1)
    a.train()(batch())
    b.load_state_dict(a.state_dict())
    a.eval(), b.eval()
    with torch.no_grad(): assert torch.equal(a(batch()), b(batch()))


@pytest.mark.parametrize("name", LINES)
def test_autocast(name):
    encoder = make(name).train()
    with torch.autocast("cpu", torch.bfloat16): out = encoder(batch(), torch.tensor([160, 150, 141]))
    (out.float() * torch.randn(out.shape)).sum().backward()
    assert all(p.grad.isfinite().all() for p in learnt(encoder))
    encoder.eval()
    with torch.no_grad():
        exact = encoder(batch())
        with torch.autocast("cpu", torch.bfloat16): rough = encoder(batch()).float()
    assert (exact - rough).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("name", LINES)
def test_same_seed_same_weights_and_training_step(name):
    outs = []
    for _ in range(2):
        encoder = make(name).train()
        torch.manual_seed(3)
        outs.append(encoder(batch(), torch.tensor([160, 150, 141])))
    assert torch.equal(*outs)


# --- the line --------------------------------------------------------------------------------------------------------

def values_for(default):
    if isinstance(default, bool): return strategies.booleans()
    if isinstance(default, tuple): return strategies.lists(strategies.integers(1, 999), min_size=1, max_size=3).map(tuple)
    if isinstance(default, int): return strategies.integers(0, 999)
    if isinstance(default, str): return strategies.text("abz/.-_ =:~", min_size=1, max_size=12).map(str.strip).filter(bool)
    return strategies.floats(0, 1)


@strategies.composite
def specs(draw):
    name = draw(strategies.sampled_from(sorted(BLOCKS)))
    known = block_options(name)
    chosen = draw(strategies.lists(strategies.sampled_from(sorted(known)), unique=True)) if known else []
    return BlockSpec(name, draw(strategies.integers(1, 12)), tuple((k, draw(values_for(known[k]))) for k in chosen))


@given(strategies.lists(specs(), min_size=1, max_size=5).map(tuple))
@settings(deadline=None, max_examples=200)
def test_line_round_trip(line):
    text = format_encoder(line)
    assert parse_encoder(text) == line and format_encoder(parse_encoder(text)) == text


@pytest.mark.parametrize("line", ENCODERS.values())
def test_registered_lines_are_tidy(line):
    assert format_encoder(parse_encoder(line)) == line


def test_specs_are_as_good_as_a_line_and_hashable():
    line = parse_encoder(ENCODERS["tds_small"])
    assert hash(line) and Encoder(line, *SMALL).specs == line
    with pytest.raises(AttributeError): line[0].name = "x"


@pytest.mark.parametrize("line, place, words", [
    ("norm mlp tsd:4", "tsd", "did you mean 'tds'"),
    ("norm  mlp tds(kernal=3)", "kernal=3", "did you mean 'kernel'"),
    ("norm mlp tds(kernel=3, chanels=4)", "chanels=4", "no option 'chanels'"),
    ("norm mlp tds(kernel=)", "kernel=", "whole number"),
    ("norm mlp tds(kernel=3.5)", "kernel=3.5", "whole number"),
    ("mlp(features=4/x)", "features=4/x", "slashes"),
    ("norm(mask=yes) mlp", "mask=yes", "0 or 1"),
    ("mlp bilstm(dropout=much)", "dropout=much", "a number"),
    ("mlp bilstm(hidden)", "hidden", "needs a value"),
    ("mlp tds(kernel=3,kernel=4)", "kernel=4", "twice"),
    ("mlp tds:0", "tds:0", "name:count"), ("mlp tds:x", "tds:x", "name:count"), ("mlp tds:2(kernel=3", "tds:2(kernel=3", "name:count"),
    ("norm(1) mlp", "1", "no option"), ("norm,mlp", "norm,mlp", "name:count"), ("norm flatten(x=1)", "x=1", "There are: none"),
    ("gpt2(weights=)", "weights=", "a name or a folder"), ("trasformer:2 gru", "trasformer", "did you mean 'transformer'"),
    ("transformer gru:4(hiden=128) tds", "hiden=128", "did you mean 'hidden'"),
])
def test_messages_point_at_the_place(line, place, words):
    with pytest.raises(EncoderError) as caught: parse_encoder(line)
    problem, shown, carets = str(caught.value).splitlines()
    assert shown.strip() == line and words in problem
    start = carets.index("^") - 2
    assert line[start:start + len(carets.strip())] == place


@pytest.mark.parametrize("line", ["", "   "])
def test_empty_line(line):
    with pytest.raises(EncoderError, match="at least one block"): parse_encoder(line)


def test_unknown_names_and_wrong_frames():
    with pytest.raises(EncoderError, match="did you mean 'tds_small'"): build_encoder("tds_smal", *SMALL)
    with pytest.raises(EncoderError, match="ends in frames"): build_encoder("norm", *SMALL)
    with pytest.raises(BlockError, match="before it"): build_encoder("norm tds mlp", *SMALL)
    with pytest.raises(EncoderError, match="was built for frames"): make("tds_small")(torch.randn(1, 160, 2, 8, 5))
    with pytest.raises(EncoderError, match="was built for frames"): make("tds_small")(torch.randn(1, 160, 40))


# --- the published model, with weights from a formula ------------------------------------------------------------------

def formula_state(tensors, law):
    "Weights of the published model's names and shapes."
    state = {}
    for k, key in enumerate(sorted(tensors)):
        shape = tensors[key]
        i = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
        if law["formula"] == "cos": v = law["a"] * np.cos(law["b"] * i.astype(float) + law["c"] * k)
        else:
            x = (i + (2654435769 * (k + 1) + law["salt"]) % 2**32) % 2**32
            for shift, factor in ((16, 2246822507), (13, 3266489909)): x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) % np.uint64(2**32)
            x ^= x >> np.uint64(16)
            v = law["scale"] * (x.astype(float) / 2**32 - 0.5)
        if key.endswith(("batch_norm.weight", "layer_norm.weight")): v = 1 + v
        if key.endswith("running_var"): v = 1 + 0.5 * abs(v)
        state[key] = torch.tensor(v.astype(np.float32)).reshape(shape)
        if key.endswith("num_batches_tracked"): state[key] = torch.tensor(1)
    return state


class Published(torch.nn.Module):
    "Our encoder and head with the published model's weights."
    def __init__(self, line, tensors, law, n_classes=99):
        super().__init__()
        self.encoder = build_encoder(line, 2, 16, 33)
        self.head = CTCHead(self.encoder.out_features, n_classes)
        import_published(formula_state(tensors, law), self.encoder, self.head)
        self.table, d = published_tensors(self.encoder, self.head), self.encoder.out_features
        tds = [block for name, block in self.encoder.blocks.items() if name.startswith("tds")]
        self.order = feature_order(d, 2, tuple(d // block.conv.conv.in_channels for block in tds))

    def forward(self, x, lengths=None):
        lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
        return self.head(self.encoder(x, lengths), self.encoder.out_lengths(lengths))

    def published_order(self, features):
        "Features as the published model orders them."
        out = torch.empty_like(features)
        out[..., self.order] = features
        return out


@pytest.fixture(scope="module")
def golden(shared):
    g = model_cases(shared)
    g.models = {law: Published("tds", g.tensors, g.cases["weights"][law]).eval() for law in g.cases["weights"]}
    g.fresh = lambda law: Published("tds", g.tensors, g.cases["weights"][law])
    return g


def close(a, b, atol):
    torch.testing.assert_close(a, b, atol=atol, rtol=0, check_dtype=False)


def test_golden_names_and_number_of_parameters(golden):
    model = golden.models["cos"]
    assert sum(p.numel() for p in model.parameters()) == golden.keys["n_parameters"] == 5_293_315
    assert set(model.table) == set(golden.tensors) and len({t.ours for t in model.table.values()}) == 51 == len(model.state_dict())


@pytest.mark.parametrize("law", ["cos", "hash"])
def test_golden_log_probs(golden, law):
    with torch.no_grad(): out = golden.models[law](golden.frames, golden.lengths)
    close(out.log_probs.transpose(0, 1), golden.expected[f"{law}_log_probs"], 5e-5)
    assert out.lengths.tolist() == [76, 39]


@pytest.mark.parametrize("law", ["cos", "hash"])
def test_golden_double_and_probes(golden, law):
    model = golden.fresh(law).double().eval()
    seen, encoder, reorder = {}, model.encoder, model.published_order
    keep = lambda name, shape: (lambda module, args, out: seen.__setitem__(name, shape(out)))
    seen["norm"] = encoder.blocks["norm1"](golden.frames.double()).detach()[..., ::4]  # the encoder folds it into the mlp
    encoder.blocks["mlp1"].register_forward_hook(keep("mlp", lambda v: reorder(v).unflatten(2, (2, -1))))
    for i in range(4):
        block = encoder.blocks[f"tds{i + 1}"]
        block.conv.register_forward_hook(keep(f"tds{2 * i}", reorder))
        block.full.register_forward_hook(keep(f"tds{2 * i + 1}", reorder))
    model.head.linear.register_forward_hook(keep("logits", lambda v: v))
    with torch.no_grad(): out = model(golden.frames.double(), golden.lengths)
    close(out.log_probs.transpose(0, 1), golden.expected[f"{law}_log_probs_f64"], 1e-9)
    probes = {k.removeprefix(f"{law}_probe_"): v for k, v in golden.expected.items() if k.startswith(f"{law}_probe_")}
    assert set(probes) == set(seen)
    for name, expected in probes.items(): close(seen[name].transpose(0, 1)[golden.cases["probe_frames"]], expected.double(), 1e-5)


def targets_of(lists):
    labels = torch.zeros(len(lists), max([len(t) for t in lists] + [1]), dtype=torch.int64)
    for row, target in zip(labels, lists): row[:len(target)] = torch.tensor(target)
    return labels, torch.tensor([len(t) for t in lists])


def test_golden_ctc(golden):
    charset = get_charset("qwerty")
    double = {law: golden.fresh(law).double().eval() for law in golden.models}
    passes = {}  # the same window serves several targets
    assert len(golden.cases["ctc"]) == 18
    for case in golden.cases["ctc"]:
        x, lengths = golden.frames[case["items"], :case["frames_in_batch"]], torch.tensor(case["input_lengths"])
        labels, label_lengths = targets_of(case["targets"])
        assert label_lengths.tolist() == case["target_lengths"]
        key = case["weights"], *case["items"]
        with torch.no_grad():
            if key not in passes: passes[key] = golden.models[case["weights"]](x, lengths), double[case["weights"]](x.double(), lengths)
            out, exact = passes[key]
            loss, n_skipped = ctc_loss(out, labels, label_lengths, skip_impossible=False)
            loss_f64, _ = ctc_loss(exact, labels, label_lengths, skip_impossible=False)
            kept, n_kept_out = ctc_loss(out, labels, label_lengths)
        assert out.lengths.tolist() == case["emission_lengths"] and n_skipped == 0
        assert loss.item() == pytest.approx(float(case["loss"]), rel=1e-5)
        assert loss_f64.item() == pytest.approx(float(case["loss_f64"]), rel=1e-9)
        assert (n_kept_out > 0) == (case["loss"] == "inf") and kept.isfinite()
        for best, n, text in zip(out.log_probs.argmax(2), out.lengths, case["greedy_text"]):
            best = best[:n].unique_consecutive()
            assert charset.text_of_labels(best[best != charset.blank].numpy()) == text


def test_golden_norm_in_training(golden):
    case, norm = golden.cases["norm_train"], golden.fresh(golden.cases["norm_train"]["weights"]).encoder.blocks["norm1"].train()
    with torch.no_grad(): out = norm(golden.frames, golden.lengths)
    close(out.transpose(0, 1)[::case["every"]], golden.expected["norm_train_out"], 1e-5)
    close(norm.norm.running_mean, golden.expected["norm_train_running_mean"], 1e-5)
    close(norm.norm.running_var, golden.expected["norm_train_running_var"], 1e-5)
    assert norm.norm.num_batches_tracked == case["num_batches_tracked"]
    assert (norm.norm.eps, norm.norm.momentum) == (case["eps"], case["momentum"])


def test_golden_training_steps(golden):
    case = golden.cases["train"]
    model = golden.fresh(case["weights"]).train()
    labels, label_lengths = targets_of(case["targets"])
    optimiser = torch.optim.Adam(model.parameters(), case["lr"])
    ours = {theirs: t.ours for theirs, t in model.table.items()}
    parameters, losses, gradients = dict(model.named_parameters()), [], {}
    for step in range(len(case["losses"])):
        loss, _ = ctc_loss(model(golden.frames, golden.lengths), labels, label_lengths)
        losses.append(loss.item())
        if step == len(case["losses"]) - 1: break
        optimiser.zero_grad()
        loss.backward()
        if not step: gradients = {k: p.grad.norm().item() for k, p in parameters.items()}
        optimiser.step()
    assert losses[0] == pytest.approx(case["losses"][0], rel=1e-5) and losses == pytest.approx(case["losses"], rel=2e-3)
    for row in golden.cases["train_gradients"]: assert gradients[ours[row["key"]]] == pytest.approx(row["l2"], rel=1e-3)
    for row in golden.cases["train_parameter_l2_after"]: assert parameters[ours[row["key"]]].norm().item() == pytest.approx(row["l2"], rel=1e-3)
    norm = model.encoder.blocks["norm1"].norm
    assert norm.running_mean.norm().item() == pytest.approx(case["running_mean_l2"], rel=1e-3)
    assert norm.running_var.norm().item() == pytest.approx(case["running_var_l2"], rel=1e-3)


@pytest.mark.parametrize("which", [0, 1])
def test_golden_small_configuration(golden, which):
    case = golden.cases["small"][which]
    config = case["config"]
    tds = " ".join(f"tds(channels={c},kernel={config['kernel_width']})" for c in config["block_channels"])
    model = Published(f"norm mlp(features={'/'.join(map(str, config['mlp_features']))}) {tds}", case["tensors"], golden.cases["weights"][case["weights"]]).eval()
    assert sum(p.numel() for p in model.parameters()) == case["n_parameters"]
    with torch.no_grad(): out = model(golden.frames[:, :case["frames"]])
    close(out.log_probs.transpose(0, 1), golden.expected[f"small_{case['weights']}_log_probs"], 5e-5)


def test_golden_shapes(golden):
    model = golden.models["cos"]
    for case in golden.cases["shapes"]:
        x = golden.frames[:1, :case["frames"]]
        if case["emissions"] is None:
            with pytest.raises(EncoderError, match="gives no output"): model(x)
        else:
            with torch.no_grad(): assert model(x).log_probs.shape[1] == case["emissions"]


def test_golden_log_probs_in_bf16_stay_near(golden):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16): out = golden.models["hash"](golden.frames, golden.lengths)
    assert out.log_probs.dtype == torch.float32
    assert (out.log_probs.transpose(0, 1) - golden.expected["hash_log_probs"]).abs().max() < 0.15


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", LINES)
def test_gpu_equals_cpu(name):
    encoder, lengths = make(name).eval(), torch.tensor([160, 151, 133])
    with torch.no_grad():
        a = encoder(batch(), lengths)
        b = encoder.cuda()(batch().cuda(), lengths.cuda()).cpu()
    for i, n in enumerate(encoder.out_lengths(lengths)): torch.testing.assert_close(a[i, :n], b[i, :n], atol=1e-3, rtol=1e-3)

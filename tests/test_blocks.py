"Blocks: one contract for all of them, and the fast forms against the plain ones."
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from torch.utils.flop_counter import FlopCounterMode

from semgbook.attention import AttentionError
from semgbook.blocks import (BLOCKS, BlockError, Conformer, GRU, LSTM, LocalTransformer, ResidualBiLSTM, RollingNorm, RotationInvariantMLP, SpectrogramNorm,
                             StridedConv, TDS, TDSConv, Transformer, recurrent_by_direction, reverse_valid, run_recurrent)

FRAMES, FEATURES = (2, 4, 5), (24,)
CASES = {  # every registered block: shape of one frame, options; small, so that all of them run in a second
    "norm": (FRAMES, {}),
    "rolling": (FRAMES, dict(settle=9)),
    "flatten": (FRAMES, {}),
    "mlp": (FRAMES, dict(features=(6, 5))),
    "tds": (FEATURES, dict(channels=4, kernel=7)),
    "stride": (FEATURES, dict(kernel=4, stride=3)),
    "bilstm": (FEATURES, dict(hidden=5, layers=2)),
    "full": (FEATURES, {}),
    "linear": (FEATURES, dict(features=10)),
    "gru": (FEATURES, dict(hidden=5)),
    "lstm": (FEATURES, {}),
    "transformer": (FEATURES, dict(heads=3, feedforward=16)),
    "local": (FEATURES, dict(heads=3, feedforward=16, left=4, right=2)),
    "conformer": (FEATURES, dict(heads=3, feedforward=16, kernel=4, left=3, right=1)),
    "gpt2": (FEATURES, dict(weights="random", layers=5, heads=3, trainable=2)),
}
VARIANTS = {  # other ways to set them up, held to the same contract
    "rolling_long": ("rolling", FRAMES, dict(settle=25)),
    "rolling_at_once": ("rolling", FRAMES, dict(settle=1)),
    "conformer_full": ("conformer", FEATURES, dict(heads=3, feedforward=16, kernel=4, full=True)),
    "gru_causal": ("gru", FEATURES, dict(hidden=5, bidirectional=False)),
    "local_future": ("local", FEATURES, dict(heads=2, left=0, right=5)),
    "local_self": ("local", FEATURES, dict(heads=2, left=0, right=0)),
}
EACH = pytest.mark.parametrize("word", [*BLOCKS, *VARIANTS])
ATTENDING = ("transformer", "local", "conformer", "conformer_full", "gpt2", "local_future", "local_self")


def make(word):
    if word == "gpt2": pytest.importorskip("transformers", reason="needs the optional extra gpt2")
    torch.manual_seed(0)
    kind, shape, options = VARIANTS[word] if word in VARIANTS else (word, *CASES[word])
    return BLOCKS[kind](shape, **options)


def learnt(block):
    return [p for p in block.parameters() if p.requires_grad]


def batch_for(block, n=3, t=40):
    return torch.randn(n, t, *block.shape, generator=torch.Generator().manual_seed(1))


def test_every_registered_block_has_a_case():
    assert set(CASES) == set(BLOCKS)


@EACH
def test_contract(word):
    block = make(word).eval()
    for t in (8, 11, 40, 41, 42):
        out = block(batch_for(block, t=t), torch.full((3,), t))
        assert out.shape == (3, int(block.out_lengths(torch.tensor([t]))[0]), *block.out_shape)
        assert block.out_lengths(t) == out.shape[1]
    assert block.out_features == torch.tensor(block.out_shape).prod()
    assert block.stride >= 1 and (block.context is None or len(block.context) == 2)


@EACH
def test_gradient_reaches_every_parameter(word):
    block = make(word).train()
    out = block(batch_for(block).requires_grad_(), torch.tensor([40, 33, 25]))
    (out * torch.randn(out.shape)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learnt(block))


@EACH
def test_padding_and_neighbours_do_not_matter(word):
    block, lengths = make(word).eval(), torch.tensor([40, 33, 25])
    x = batch_for(block)
    with torch.no_grad():
        out, shuffled = block(x, lengths), block(x[[2, 0, 1]], lengths[[2, 0, 1]])
        torch.testing.assert_close(shuffled[1], out[0], atol=1e-6, rtol=1e-5)
        for i, n in enumerate(block.out_lengths(lengths)):
            torch.testing.assert_close(block(x[i:i + 1, :lengths[i]])[0], out[i, :n], atol=1e-6, rtol=1e-5)


@EACH
def test_context_is_what_an_output_sees(word):
    block = make(word).eval()
    x = batch_for(block, n=1)
    other = x.clone()
    other[:, 20] = torch.randn(block.shape)
    with torch.no_grad(): change = (block(x) - block(other)).abs().flatten(2).amax(2)[0]
    if block.context is None:
        own = torch.arange(len(change))
        assert (change > 0)[own >= 20].all() and not (change > 0)[own < (0 if block.lookahead is None else 20 - block.lookahead)].any()
        assert (change > 0).all() or block.lookahead is not None
        return
    first = torch.arange(len(change)) * block.stride
    assert torch.equal(change > 0, (first <= 20) & (20 <= first + sum(block.context)))


@EACH
def test_state_dict_round_trip(word):
    a, b = make(word).train(), make(word)
    with torch.no_grad():
        for p in b.parameters(): p.add_(1)
    a(batch_for(a))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.eval()(batch_for(a)), b.eval()(batch_for(a)))


@EACH
def test_autocast_trains(word):
    block = make(word).train()
    x, lengths = batch_for(block), torch.tensor([40, 33, 25])
    with torch.autocast("cpu", torch.bfloat16): out = block(x.requires_grad_(), lengths)
    (out.float() * torch.randn(out.shape)).sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in learnt(block))
    block.eval()
    with torch.no_grad():
        exact = block(x, lengths)
        with torch.autocast("cpu", torch.bfloat16): rough = block(x, lengths)
    assert (exact - rough).norm() < 0.03 * exact.norm()


def test_norm_mask_gives_what_the_valid_frames_alone_give():
    x, lengths = torch.randn(2, 30, *FRAMES), torch.tensor([30, 18])
    masked, plain = SpectrogramNorm(FRAMES, mask=True), SpectrogramNorm(FRAMES)
    out = masked(x, lengths)
    joined = torch.cat([x[0], x[1, :18]])[None]
    expected = plain(joined)[0]
    torch.testing.assert_close(torch.cat([out[0], out[1, :18]]), expected)
    torch.testing.assert_close(masked.norm.running_var, plain.norm.running_var)
    assert (out[1, 18:] == 0).all()


def test_rolling_norm_hears_nothing_but_this_recording():
    rolling, x, lengths = RollingNorm(FRAMES, settle=9), 3 + torch.randn(2, 40, *FRAMES), torch.tensor([40, 31])
    assert not list(rolling.state_dict()) and rolling.n_parameters == 0 == rolling.macs(100) and rolling.context is None
    before = rolling.train()(x, lengths)
    rolling(100 * x)
    assert torch.equal(rolling.eval()(x, lengths), before)
    shift = 5 * torch.randn(FRAMES)
    torch.testing.assert_close(rolling(x + shift, lengths), before, atol=2e-5, rtol=0)
    stretch = x[0, :9]
    torch.testing.assert_close(before[0, :9], (stretch - stretch.mean(0)) / (stretch.var(0, unbiased=False) + 0.1).sqrt(), atol=1e-6, rtol=1e-5)
    assert (before[1, 31:] == 0).all() and (rolling(torch.full((1, 40, *FRAMES), -6.0)) == 0).all()
    torch.testing.assert_close(RollingNorm(FRAMES, settle=9, eps=2.0)(x)[0, 39], (x[0, 39] - x[0].mean(0)) / (x[0].var(0, unbiased=False) + 2).sqrt(), atol=1e-6, rtol=1e-5)


def test_the_lookahead_of_a_rolling_norm_is_exact():
    "The first frame hears the last frame of the settling stretch, and nothing after it."
    rolling, x = RollingNorm(FRAMES, settle=9), torch.randn(1, 40, *FRAMES)
    for frame, heard in ((8, True), (9, False)):
        other = x.clone()
        other[:, frame] += 1
        assert torch.equal(rolling(x)[:, 0], rolling(other)[:, 0]) != heard
    assert rolling.lookahead == 8


@pytest.mark.parametrize("reach, n_channels, rotations", [(0, 16, 1), (1, 16, 3), (1, 8, 3), (2, 8, 5), (8, 16, 16), (4, 8, 8), (1, 1, 1)])
def test_rolled_weights_are_rolled_inputs(reach, n_channels, rotations):
    block = RotationInvariantMLP((2, n_channels, 5), features=(7, 6), reach=reach)
    x = torch.randn(2, 9, 2, n_channels, 5)
    bands = []
    for band in range(2):
        answers = []
        for offset in block.offsets:
            y = x[:, :, band].roll(offset, 2).flatten(2)
            for layer in block.bands[band]: y = functional.relu(layer(y))
            answers.append(y)
        bands.append(torch.stack(answers).mean(0))
    assert len(block.offsets) == rotations
    torch.testing.assert_close(block(x), torch.stack(bands, -1).flatten(2), atol=1e-6, rtol=1e-5)


def test_a_norm_folds_into_the_layer_behind_it():
    norm, mlp = SpectrogramNorm(FRAMES, mask=True), RotationInvariantMLP(FRAMES, features=(7, 6))
    with torch.no_grad(): norm.gain.uniform_(0.5, 2), norm.offset.normal_()
    x, lengths, weight = torch.randn(2, 9, *FRAMES), torch.tensor([9, 6]), torch.randn(2, 9, 12)
    weight[1, 6:] = 0
    for mode in (True, False):
        norm.train(mode)
        outs = mlp(norm(x, lengths)), mlp(x, lengths, norm=norm)
        grads = [torch.autograd.grad((y * weight).sum(), [*norm.parameters(), *mlp.parameters()]) for y in outs]
        torch.testing.assert_close(outs[0][0], outs[1][0], atol=1e-5, rtol=1e-4)
        for a, b in zip(*grads): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_every_place_of_the_first_convolution_has_both_bands():
    x = torch.zeros(1, 1, 2, 4, 5)
    block = RotationInvariantMLP((2, 4, 5), features=(12,))
    for band in range(2):
        with torch.no_grad():
            for layer in block.bands[band]: layer.bias.fill_(band + 1.0)
    places = block(x).view(6, 4)  # width, channel
    assert (places == torch.tensor([1.0, 2.0, 1.0, 2.0])).all()


def test_tds_convolution_is_the_plain_one_and_copies_nothing():
    block = TDSConv(FEATURES, channels=4, kernel=7)
    x = torch.randn(2, 30, 24)
    plain = functional.conv2d(x.view(2, 30, 6, 4).permute(0, 3, 2, 1).contiguous(), block.conv.weight.transpose(2, 3), block.conv.bias)
    plain = functional.relu(plain).permute(0, 3, 2, 1).reshape(2, 24, 24)
    torch.testing.assert_close(block(x), block.norm(plain + x[:, 6:]), atol=1e-6, rtol=1e-5)
    seen = []
    block.conv.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    block(x)
    image, out = seen[0]
    assert image.data_ptr() == x.data_ptr()
    assert all(v.is_contiguous(memory_format=torch.channels_last) for v in (image, out))


def test_strided_block_is_a_grouped_convolution_that_begins_as_an_average():
    block = StridedConv(FEATURES, kernel=4, stride=3)
    x = torch.randn(2, 20, 24)
    torch.testing.assert_close(block(x)[:, 1], x[:, 3:7].mean(1))
    with torch.no_grad(): block.weight.normal_(), block.bias.normal_()
    plain = functional.conv1d(x.transpose(1, 2), block.weight[:, None], block.bias, stride=3, groups=24).transpose(1, 2)
    torch.testing.assert_close(block(x), plain, atol=1e-5, rtol=1e-5)


def test_reversing_within_lengths():
    x, lengths = torch.randn(4, 9, 3), torch.tensor([9, 5, 1, 0])
    back = reverse_valid(x, lengths)
    assert torch.equal(back[1, :5], x[1, :5].flip(0)) and torch.equal(back[1, 5:], x[1, 5:])
    assert torch.equal(back[3], x[3]) and torch.equal(reverse_valid(back, lengths), x)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("layers, hidden", [(1, 5), (2, 5), (3, 4)])
def test_three_ways_through_a_recurrent_network_agree(kind, layers, hidden):
    lstm = kind(6, hidden, layers, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(4, 21, 6, requires_grad=True), torch.tensor([21, 9, 1, 17])
    packed = pad_packed_sequence(lstm(pack_padded_sequence(x, lengths, True, False))[0], True)[0]
    mine = run_recurrent(lstm, x, lengths)
    mask = torch.arange(21) < lengths[:, None]
    torch.testing.assert_close(mine[mask], packed[mask], atol=1e-6, rtol=1e-5)
    weight = torch.randn(int(mask.sum()), 2 * hidden)
    grads = [torch.autograd.grad((y[mask] * weight).sum(), [x, *lstm.parameters()], retain_graph=True) for y in (mine, packed)]
    for a, b in zip(*grads): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(recurrent_by_direction(lstm, x, torch.full((4,), 21)), lstm(x)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_lstm_on_a_gpu_agrees_with_the_cpu():
    lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(3, 21, 6), torch.tensor([21, 9, 0])
    a = run_recurrent(lstm, x, lengths)
    b = run_recurrent(lstm.cuda(), x.cuda(), lengths.cuda()).cpu()
    torch.testing.assert_close(a[1, :9], b[1, :9], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("word", ["bilstm", "gru", "lstm", "transformer", "conformer_full", "gpt2"])
def test_an_example_without_frames_harms_no_other(word):
    block = make(word).eval()
    x = torch.randn(2, 12, 24)
    out = block(x, torch.tensor([12, 0]))
    torch.testing.assert_close(out[:1], block(x[:1]), atol=1e-6, rtol=1e-5)
    assert out.isfinite().all()


def test_dropout_is_at_work_in_training_only_and_by_length_too():
    block = ResidualBiLSTM(FEATURES, hidden=5, dropout=0.5)
    x, lengths = torch.randn(2, 12, 24), torch.tensor([12, 7])
    assert not torch.equal(run_recurrent(block.lstm, x, lengths), run_recurrent(block.lstm, x, lengths))
    assert not torch.equal(block(x, lengths), block(x, lengths))
    block.eval()
    assert torch.equal(block(x, lengths), block(x, lengths))


def test_a_causal_lstm_does_not_see_the_future():
    x = torch.randn(1, 30, 24)
    other = x.clone()
    other[:, 15:] += 1
    for bidirectional in (True, False):
        block = ResidualBiLSTM(FEATURES, hidden=5, bidirectional=bidirectional).eval()
        assert torch.equal(block(x)[:, :15], block(other)[:, :15]) != bidirectional


def test_parameter_counts():
    count = lambda block: sum(p.numel() for p in block.parameters())
    assert count(TDS((768,))) == 24 * 24 * 32 + 24 + 2 * 768 + 2 * (768 * 768 + 768) + 2 * 768
    assert count(RotationInvariantMLP((2, 16, 33))) == 2 * (528 * 384 + 384)
    assert count(ResidualBiLSTM((768,))) == 1_073_472
    assert count(ResidualBiLSTM((768,), fc=96)) == 1_073_472 - 96 * 193 - 96 * 768
    assert count(StridedConv((768,), kernel=4)) == 768 * 5


@pytest.mark.parametrize("word, shape, options, words", [
    ("norm", (768,), {}, "put it before mlp"), ("mlp", (768,), {}, "put it before mlp"), ("flatten", (8,), {}, "needs frames"),
    ("rolling", (768,), {}, "put it before mlp"), ("rolling", FRAMES, dict(settle=0), "settle must be 1"), ("rolling", FRAMES, dict(eps=0.0), "eps must be above 0"),
    ("tds", FRAMES, {}, "put mlp or flatten before it"), ("stride", FRAMES, {}, "needs features"), ("bilstm", FRAMES, {}, "needs features"),
    ("tds", (768,), dict(channels=25), "25 divides"), ("tds", (768,), dict(kernel=0), "kernel must be 1"),
    ("stride", (8,), dict(stride=0), "stride must be 1"), ("bilstm", (8,), dict(layers=0), "layers must be 1"), ("mlp", FRAMES, dict(features=(4, 0)), "features must be 1"),
    ("gru", FRAMES, {}, "gru needs features"), ("lstm", (7,), {}, "lstm.hidden=0. cannot keep 7"), ("gru", (8,), dict(hidden=-1), "cannot keep"),
    ("full", FRAMES, {}, "full needs features"), ("linear", (8,), dict(features=0), "features must be 1"), ("transformer", (8,), dict(heads=0), "heads must be 1"),
    ("local", FRAMES, {}, "local needs features"), ("conformer", (8,), dict(kernel=0), "kernel must be 1"), ("gpt2", FRAMES, {}, "gpt2 needs features"),
])
def test_messages(word, shape, options, words):
    with pytest.raises(BlockError, match=words): BLOCKS[word](shape, **options)


@EACH
def test_costs(word):
    block = make(word).eval()
    assert block.n_parameters == sum(p.numel() for p in block.parameters()) and block.macs(100) >= 0
    assert block.lookahead is None or block.lookahead >= 0


@pytest.mark.parametrize("word", ["mlp", "tds", "full", "linear", "gru", "lstm", "bilstm", "transformer", "local", "conformer", "conformer_full", "gpt2", "local_future"])
def test_macs_are_what_torch_counts(word):
    block, n = make(word).eval().double(), 1000  # double: no fused kernel that the counter does not know
    if word == "gpt2": block.window = 100  # many windows
    with torch.no_grad(), nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        n_out = block(batch_for(block, n=1, t=n).double()).shape[1]
    assert counter.get_total_flops() / 2 / n_out == pytest.approx(block.macs(n), rel=0.06 if word == "gpt2" else 0.04)


@pytest.mark.parametrize("word", [w for w in (*BLOCKS, *VARIANTS) if w not in ("norm", "flatten", "mlp")])
def test_a_piece_gives_what_the_whole_gives_there(word):
    block = make(word).eval()
    x = batch_for(block, n=2, t=90)
    with torch.no_grad(): whole = block(x)
    for start, stop in ((0, 60), (33, 90), (48, 73)) if block.context is not None else ((0, 60),) if block.lookahead is not None else ():
        first = -(-start // block.stride)
        with torch.no_grad(): piece = block(x[:, first * block.stride:stop])
        torch.testing.assert_close(piece, whole[:, first:first + piece.shape[1]], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dropout, training", [(0.0, True), (0.3, False)])
def test_transformer_is_the_one_that_comes_with_torch(dropout, training):
    theirs = nn.TransformerEncoderLayer(24, 3, 16, dropout, batch_first=True).train(training)
    ours = Transformer(FEATURES, heads=3, feedforward=16, dropout=dropout).train(training)
    names = {"self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj": "attention.out", "linear1": "feed.0", "linear2": "feed.3"}
    state = theirs.state_dict()
    for old, new in names.items(): state = {k.replace(old, new): v for k, v in state.items()}
    ours.load_state_dict(state)
    x, lengths = torch.randn(3, 40, 24), torch.tensor([40, 21, 1])
    mask = torch.arange(40) < lengths[:, None]
    torch.testing.assert_close(ours(x, lengths)[mask], theirs(x, src_key_padding_mask=~mask)[mask], atol=2e-6, rtol=1e-5)


def test_local_transformer_knows_order_and_the_published_one_does_not():
    x, order = torch.randn(1, 12, 24), torch.tensor([1, 0, *range(2, 12)])
    for block, blind in ((Transformer(FEATURES, heads=3).eval(), True), (LocalTransformer(FEATURES, heads=3, left=11).eval(), False)):
        a, b = block(x)[:, -1], block(x[:, order])[:, -1]
        assert torch.allclose(a, b, atol=1e-5) == blind


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_recurrent_layers_in_a_row_are_a_deep_network(kind):
    deep = kind.kind(24, 5, 3, batch_first=True, bidirectional=True)
    rows, shape = [], FEATURES
    for layer in range(3):
        rows.append(kind(shape, hidden=5))
        shape = rows[-1].out_shape
        state = {k.replace(f"_l{layer}", "_l0"): v for k, v in deep.state_dict().items() if f"_l{layer}" in k}
        rows[-1].rnn.load_state_dict(state)
    x, lengths = torch.randn(2, 20, 24), torch.tensor([20, 13])
    y = x
    for row in rows: y = row(y, lengths)
    expected = run_recurrent(deep, x, lengths)
    torch.testing.assert_close(y[1, :13], expected[1, :13])
    assert y.shape == (2, 20, 10) and kind(FEATURES).out_shape == FEATURES and kind((9,), bidirectional=False).out_shape == (9,)


def test_a_conformers_context_counts_attention_and_convolution():
    block = Conformer(FEATURES, heads=3, kernel=6, left=7, right=2)
    assert block.context == (12, 2) and block(torch.randn(1, 30, 24)).shape[1] == 16


@pytest.mark.parametrize("word, options", [("transformer", dict(heads=5)), ("local", dict(heads=8)), ("local", dict(left=-1)), ("conformer", dict(heads=5))])
def test_attention_says_what_it_needs(word, options):
    with pytest.raises(AttentionError, match="divides|0 or more"): BLOCKS[word](FEATURES, **options)


def test_gpt2_trains_its_ends_and_never_runs_out_of_positions():
    block = make("gpt2").eval()
    assert [all(p.requires_grad for p in layer.parameters()) for layer in block.model.h] == [True, True, False, True, True]
    assert {name.split(".")[1] for name, p in block.named_parameters() if p.requires_grad} == {"h"}
    block.window = 16
    x = torch.randn(2, 100, 24)
    with torch.no_grad():
        out, first = block(x), block(x[:, :16])
        late = block.model(inputs_embeds=x[:, 40:56], use_cache=False).last_hidden_state  # the window that begins at frame 40
    assert out.shape == x.shape
    torch.testing.assert_close(out[:, :16], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[:, 48:56], late[:, 8:], atol=1e-5, rtol=1e-5)


def test_gpt2_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the optional extra gpt2")
    config = dict(vocab_size=11, n_embd=24, n_layer=3, n_head=2, n_positions=32, bos_token_id=None, eos_token_id=None)
    model = transformers.GPT2Model(transformers.GPT2Config(**config)).eval()
    model.save_pretrained(tmp_path)
    block = BLOCKS["gpt2"](FEATURES, weights=str(tmp_path), layers=3).eval()
    x = torch.randn(1, 32, 24)
    torch.testing.assert_close(block(x), model(inputs_embeds=x).last_hidden_state, atol=1e-6, rtol=1e-5)
    assert block.window == 32 and block(torch.randn(1, 200, 24)).isfinite().all()
    two = BLOCKS["gpt2"](FEATURES, weights=str(tmp_path), layers=2)
    assert len(two.model.h) == 2 and two.n_parameters < block.n_parameters
    with pytest.raises(AttentionError, match="linear.features=24."): BLOCKS["gpt2"]((10,), weights=str(tmp_path), layers=3)
    with pytest.raises(AttentionError, match="change layers"): BLOCKS["gpt2"](FEATURES, weights=str(tmp_path), layers=4)
    with pytest.raises(AttentionError, match="weights=random"): BLOCKS["gpt2"](FEATURES, weights=str(tmp_path / "nowhere"))


def test_gpt2_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(AttentionError, match="semgbook.gpt2."): BLOCKS["gpt2"](FEATURES, weights="random")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("word", ATTENDING)
def test_attention_on_a_gpu_agrees_with_the_cpu(word):
    block, lengths = make(word).eval(), torch.tensor([40, 33, 25])
    with torch.no_grad():
        a = block(batch_for(block), lengths)
        b = block.cuda()(batch_for(block).cuda(), lengths.cuda()).cpu()
    for i, n in enumerate(block.out_lengths(lengths)): torch.testing.assert_close(a[i, :n], b[i, :n], atol=1e-3, rtol=1e-3)

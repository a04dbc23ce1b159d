"Blocks: one contract for all of them, and the fast forms against the plain ones."
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from semgbook.blocks import (BLOCKS, BlockError, ResidualBiLSTM, RotationInvariantMLP, SpectrogramNorm, StridedConv, TDS, TDSConv,
                             lstm_by_direction, reverse_valid, run_lstm)

FRAMES, FEATURES = (2, 4, 5), (24,)
CASES = {  # every registered block: shape of one frame, options; small, so that all of them run in a second
    "norm": (FRAMES, {}),
    "flatten": (FRAMES, {}),
    "mlp": (FRAMES, dict(features=(6, 5))),
    "tds": (FEATURES, dict(channels=4, kernel=7)),
    "stride": (FEATURES, dict(kernel=4, stride=3)),
    "bilstm": (FEATURES, dict(hidden=5, layers=2)),
}


def make(word):
    torch.manual_seed(0)
    shape, options = CASES[word]
    return BLOCKS[word](shape, **options)


def batch_for(block, n=3, t=40):
    return torch.randn(n, t, *block.shape, generator=torch.Generator().manual_seed(1))


def test_every_registered_block_has_a_case():
    assert set(CASES) == set(BLOCKS)


@pytest.mark.parametrize("word", BLOCKS)
def test_contract(word):
    block = make(word).eval()
    for t in (8, 11, 40, 41, 42):
        out = block(batch_for(block, t=t), torch.full((3,), t))
        assert out.shape == (3, int(block.out_lengths(torch.tensor([t]))[0]), *block.out_shape)
        assert block.out_lengths(t) == out.shape[1]
    assert block.out_features == torch.tensor(block.out_shape).prod()
    assert block.stride >= 1 and (block.context is None or len(block.context) == 2)


@pytest.mark.parametrize("word", BLOCKS)
def test_gradient_reaches_every_parameter(word):
    block = make(word).train()
    out = block(batch_for(block).requires_grad_(), torch.tensor([40, 33, 25]))
    (out * torch.randn(out.shape)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


@pytest.mark.parametrize("word", BLOCKS)
def test_padding_and_neighbours_do_not_matter(word):
    block, lengths = make(word).eval(), torch.tensor([40, 33, 25])
    x = batch_for(block)
    with torch.no_grad():
        out, shuffled = block(x, lengths), block(x[[2, 0, 1]], lengths[[2, 0, 1]])
        torch.testing.assert_close(shuffled[1], out[0], atol=1e-6, rtol=1e-5)
        for i, n in enumerate(block.out_lengths(lengths)):
            torch.testing.assert_close(block(x[i:i + 1, :lengths[i]])[0], out[i, :n], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("word", BLOCKS)
def test_context_is_what_an_output_sees(word):
    block = make(word).eval()
    x = batch_for(block, n=1)
    other = x.clone()
    other[:, 20] = torch.randn(block.shape)
    with torch.no_grad(): change = (block(x) - block(other)).abs().flatten(2).amax(2)[0]
    if block.context is None:
        assert (change > 0).all()
        return
    first = torch.arange(len(change)) * block.stride
    assert torch.equal(change > 0, (first <= 20) & (20 <= first + sum(block.context)))


@pytest.mark.parametrize("word", BLOCKS)
def test_state_dict_round_trip(word):
    a, b = make(word).train(), BLOCKS[word](CASES[word][0], **CASES[word][1])
    a(batch_for(a))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.eval()(batch_for(a)), b.eval()(batch_for(a)))


@pytest.mark.parametrize("word", BLOCKS)
def test_autocast_trains(word):
    block = make(word).train()
    x, lengths = batch_for(block), torch.tensor([40, 33, 25])
    with torch.autocast("cpu", torch.bfloat16): out = block(x.requires_grad_(), lengths)
    (out.float() * torch.randn(out.shape)).sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in block.parameters())
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


@pytest.mark.parametrize("layers, hidden", [(1, 5), (2, 5), (3, 4)])
def test_three_ways_through_an_lstm_agree(layers, hidden):
    lstm = nn.LSTM(6, hidden, layers, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(4, 21, 6, requires_grad=True), torch.tensor([21, 9, 1, 17])
    packed = pad_packed_sequence(lstm(pack_padded_sequence(x, lengths, True, False))[0], True)[0]
    mine = run_lstm(lstm, x, lengths)
    mask = torch.arange(21) < lengths[:, None]
    torch.testing.assert_close(mine[mask], packed[mask], atol=1e-6, rtol=1e-5)
    weight = torch.randn(int(mask.sum()), 2 * hidden)
    grads = [torch.autograd.grad((y[mask] * weight).sum(), [x, *lstm.parameters()], retain_graph=True) for y in (mine, packed)]
    for a, b in zip(*grads): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lstm_by_direction(lstm, x, torch.full((4,), 21)), lstm(x)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_lstm_on_a_gpu_agrees_with_the_cpu():
    lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(3, 21, 6), torch.tensor([21, 9, 0])
    a = run_lstm(lstm, x, lengths)
    b = run_lstm(lstm.cuda(), x.cuda(), lengths.cuda()).cpu()
    torch.testing.assert_close(a[1, :9], b[1, :9], atol=1e-4, rtol=1e-3)


def test_an_example_without_frames_harms_no_other():
    block = ResidualBiLSTM(FEATURES, hidden=5).eval()
    x = torch.randn(2, 12, 24)
    out = block(x, torch.tensor([12, 0]))
    torch.testing.assert_close(out[:1], block(x[:1]), atol=1e-6, rtol=1e-5)
    assert out.isfinite().all()


def test_dropout_is_at_work_in_training_only_and_by_length_too():
    block = ResidualBiLSTM(FEATURES, hidden=5, dropout=0.5)
    x, lengths = torch.randn(2, 12, 24), torch.tensor([12, 7])
    assert not torch.equal(run_lstm(block.lstm, x, lengths), run_lstm(block.lstm, x, lengths))
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
    ("tds", FRAMES, {}, "put mlp or flatten before it"), ("stride", FRAMES, {}, "needs features"), ("bilstm", FRAMES, {}, "needs features"),
    ("tds", (768,), dict(channels=25), "25 divides"), ("tds", (768,), dict(kernel=0), "kernel must be 1"),
    ("stride", (8,), dict(stride=0), "stride must be 1"), ("bilstm", (8,), dict(layers=0), "layers must be 1"), ("mlp", FRAMES, dict(features=(4, 0)), "features must be 1"),
])
def test_messages(word, shape, options, words):
    with pytest.raises(BlockError, match=words): BLOCKS[word](shape, **options)

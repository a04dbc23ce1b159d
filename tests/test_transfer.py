"Transfer: our own checkpoints with their cards, taken whole, in part, or with another head."
import struct

import pytest
import torch

from semgbook.charset import FINGERS, FINGERS_NO_REST, QWERTY
from semgbook.ctc import CTCHead
from semgbook.encoders import build_encoder
from semgbook.transfer import CARD_FIELDS, TransferError, load_checkpoint, load_into, load_matching, make_card, read_card, save_checkpoint, swap_head

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

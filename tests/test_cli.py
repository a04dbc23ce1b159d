"The command line: thin, honest about refusals, and complete in its help."
import json

import pytest
import torch
from toys import toy_corpus, toy_recipe

from semgbook.bids import BidsError
from semgbook.cli import VERBS, build_parser, main
from semgbook.language_files import read_arpa
from semgbook.published import export_published
from semgbook.recipes import preset
from semgbook.runs import carry_out, open_model, start_run
from semgbook.training import build_model
from semgbook.transfer import load_checkpoint

HEADER = "time," + ",".join(f"emg{i}" for i in range(8)) + ",thumb,index,middle,ring,pinky,rest"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end: main([verb, "--help"])
    assert end.value.code == 0 and VERBS[verb][0].__doc__.split()[0] in capsys.readouterr().out


def test_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit) as end: build_parser().parse_args(["rnu"])
    assert end.value.code == 2 and "rnu" in capsys.readouterr().err


@pytest.mark.parametrize("words, says", [(["run", "e000"], "e00"), (["run", "e00", "-p", "sede=1"], "seed"), (["run", "e00", "-p", "seed"], "name=value"),
                                         (["book", "smke"], "smoke"), (["eval", "no-such-run", "x.hdf5"], "no-such-run"), (["data", "check", "no-such-folder"], "no-such-folder")])
def test_refusals_are_one_sentence_and_status_2(words, says, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


def test_convert_and_check(tmp_path, capsys):
    rows = [f"2025-02-19T05:59:{39 + i // 200:02d}.{(i % 200) * 5000:06d},1,2,3,4,5,6,7,8," + ("0,1,0,0,0,0" if i // 40 % 2 else "0,0,0,0,0,1") for i in range(2000)]
    (tmp_path / "s1.csv").write_text("\n".join([HEADER, *rows]))
    assert main(["convert", "kao", str(tmp_path / "s1.csv"), "--out", str(tmp_path / "sessions")]) == 0
    assert main(["data", "check", str(tmp_path / "sessions")]) == 0
    (tmp_path / "sessions" / "broken.hdf5").write_text("not a session")
    assert main(["data", "check", str(tmp_path / "sessions")]) == 1
    assert "broken.hdf5" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A toy corpus, a finished run on it, and its row of the test session."
    home = tmp_path_factory.mktemp("cli")
    corpus = toy_corpus(home / "toy")
    run = start_run("e99", toy_recipe(corpus), home / "runs")
    row, = carry_out(run, lambda line: None)["sessions"]
    return corpus, run, row


def test_eval_repeats_the_test_of_the_run(trained, capsys):
    corpus, run, row = trained
    capsys.readouterr()
    assert main(["eval", str(run.folder), str(corpus / f"{row['session']}.hdf5")]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["cer"] == pytest.approx(row["cer"]) and line["decoder"] == "greedy" and "leaks" not in line
    assert main(["runs", "--out", str(run.folder.parent)]) == 0 and "done" in capsys.readouterr().out


def test_eval_reads_with_other_decoders_and_says_what_was_trained_on(trained, capsys):
    corpus, run, _ = trained
    capsys.readouterr()
    assert main(["eval", str(run.folder / "model.safetensors"), str(corpus / "toy-0.hdf5"), "--lm", "embedded", "--text"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["decoder"] for line in lines] == ["greedy", "beam", "lm"]
    assert all("toy-0" in line["leaks"][0] and line["text"] is not None for line in lines), "toy-0 is the training session"


def test_a_published_checkpoint_becomes_ours_and_cannot_be_tested_on_what_it_saw(tmp_path, capsys):
    torch.manual_seed(0)
    model = build_model(preset("tds_generic"), 2, 16)
    torch.save({"epoch": 1, "global_step": 2, "pytorch-lightning_version": "1.8.6", "state_dict": export_published(model.encoder, model.head), "hyper_parameters": {}}, tmp_path / "generic.ckpt")
    assert main(["import", str(tmp_path / "generic.ckpt"), "--out", str(tmp_path / "ours.safetensors"), "--lineage", "emg2qwerty-generic"]) == 0
    twin, recipe, card = open_model(tmp_path / "ours.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), model.state_dict().values(), strict=True)) and recipe == preset("tds_generic")
    corpus = toy_corpus(tmp_path / "course", n_sessions=1, rate=2000.0, seconds=6.0, users=("89335547",))
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "ours.safetensors"), *map(str, corpus.glob("*.hdf5"))]) == 0
    assert "89335547" in json.loads(capsys.readouterr().out)["leaks"][0], "this user trained the published generic model"
    assert main(["import", str(tmp_path / "generic.ckpt"), "--out", str(tmp_path / "x.safetensors"), "--lineage", "emg2qwerty-genric"]) == 2
    assert main(["import", str(tmp_path / "generic.ckpt"), "--out", str(tmp_path / "nameless.safetensors")]) == 0
    assert load_checkpoint(tmp_path / "nameless.safetensors").card["lineage"]["unknown"]


def test_export_proves_itself(trained, tmp_path, capsys):
    _, run, _ = trained
    assert main(["export", str(run.folder), str(tmp_path / "m.pt")]) == 0
    assert float(capsys.readouterr().out.split()[-1]) < 1e-4 and (tmp_path / "m.pt").stat().st_size > 1000


def test_a_language_model_from_a_text(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("a bad cab, a bad dab, abba " * 9)
    assert main(["lm", str(tmp_path / "t.txt"), str(tmp_path / "t.arpa"), "--order", "2"]) == 0
    model = read_arpa(tmp_path / "t.arpa")
    assert model.order == 2 and model.perplexity(["bad"]) < model.perplexity(["ddd"])


def test_bids_there_and_back(tmp_path, capsys):
    pytest.importorskip("mne_bids", reason="the optional extra bids is not installed")
    corpus = toy_corpus(tmp_path / "toy", n_sessions=1, seconds=6.0)
    assert main(["bids", "write", str(corpus), str(tmp_path / "bids"), "--licence", "CC0-1.0"]) == 0
    assert main(["bids", "read", str(tmp_path / "bids"), str(tmp_path / "back")]) == 0
    assert main(["data", "check", str(tmp_path / "back")]) == 0 and len(list((tmp_path / "back").glob("*.hdf5"))) == 1
    assert main(["bids", "write", str(corpus), str(tmp_path / "bids")]) == 2, "nothing is overwritten"
    assert issubclass(BidsError, ValueError)


def test_fetch_is_wired_and_refuses_what_cannot_be_had(tmp_path, capsys):
    assert main(["data", "fetch", "emg2qwerty", "--user", "1", "--root", str(tmp_path)]) == 2
    assert "one archive" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main(["data", "list"]) == 0 and "CC BY-NC-SA" in capsys.readouterr().out

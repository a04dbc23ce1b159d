"The command line: thin, honest about refusals, and complete in its help."
import json

import pytest
from toys import toy_corpus, toy_recipe

from semgbook.cli import VERBS, build_parser, main
from semgbook.runs import carry_out, start_run

HEADER = "time," + ",".join(f"emg{i}" for i in range(8)) + ",thumb,index,middle,ring,pinky,rest"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end: main([verb, "--help"])
    assert end.value.code == 0 and VERBS[verb][0].__doc__.split()[0] in capsys.readouterr().out


def test_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit) as end: build_parser().parse_args(["rnu"])
    assert end.value.code == 2 and "rnu" in capsys.readouterr().err


@pytest.mark.parametrize("words, says", [(["run", "e31"], "e30"), (["run", "e00", "-p", "sede=1"], "seed"), (["run", "e00", "-p", "seed"], "name=value"),
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


def test_eval_repeats_the_test_of_the_run(tmp_path, capsys):
    corpus = toy_corpus(tmp_path / "toy")
    run = start_run("e99", toy_recipe(corpus), tmp_path / "runs")
    row, = carry_out(run, lambda line: None)["sessions"]
    capsys.readouterr()
    assert main(["eval", str(run.folder), str(corpus / f"{row['session']}.hdf5")]) == 0
    assert json.loads(capsys.readouterr().out)["cer"] == pytest.approx(row["cer"])
    assert main(["runs", "--out", str(tmp_path / "runs")]) == 0 and "done" in capsys.readouterr().out

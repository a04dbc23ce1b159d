"Corpora: every name answers with sessions or says where they would have to be."
import pytest

from semgbook import corpora
from semgbook.corpora import CORPORA, corpus_folder
from semgbook.session import list_sessions, open_corpus
from toys import toy_corpus


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_is_described(name):
    source = CORPORA[name]
    assert source.name == name and source.what and source.licence
    assert ("simulated" in source.what) == (source.licence == "Apache-2.0"), "only simulated data are this project's own"


@pytest.mark.parametrize("name", ["embedded", "fingers"])
def test_embedded_corpora_write_themselves_once(name):
    folder = corpus_folder(name)
    stamps = {p: p.stat().st_mtime_ns for p in list_sessions(folder)}
    sessions = open_corpus(folder)
    assert len(sessions) == len(stamps) >= 2 and len({s.user for s in sessions}) >= 2
    assert corpus_folder(name) == folder and {p: p.stat().st_mtime_ns for p in list_sessions(folder)} == stamps


def test_a_corpus_that_is_not_here_says_where_it_would_be(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "project_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="emg2qwerty-data-2021-08"): corpus_folder("emg2qwerty")


def test_folders(tmp_path):
    assert corpus_folder(str(toy_corpus(tmp_path / "toy", n_sessions=1))) == tmp_path / "toy"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="convert"): corpus_folder(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="embedded"): corpus_folder("embeded")

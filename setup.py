"Hands every fact of settings.ini to setuptools; nothing is decided here."
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


def words(key):
    "A setting as a list of words."
    return shlex.split(cfg.get(key, ""))


setup(
    version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"], license="Apache-2.0",
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"],
    classifiers=["Programming Language :: Python :: 3"],
    long_description=(here / "README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    install_requires=words("requirements"),
    extras_require={k[: -len("_requirements")]: words(k) for k in cfg if k.endswith("_requirements")},
    entry_points={"console_scripts": words("console_scripts"), "nbdev": [f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d']},
)

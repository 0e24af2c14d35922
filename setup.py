"""Names the packages to ship: all that stand under ``flowhooks``, and the folders that setup.cfg maps into it.

``find:`` in setup.cfg sees no mapped folders, and a list by name would be one more place to write a new hook in.
"""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

options = ConfigParser()
options.read(Path(__file__).with_name("setup.cfg"), encoding="utf-8")
mapped = [line.partition("=")[0].strip() for line in options["options"]["package_dir"].split("\n") if line]

setup(packages=sorted({*find_packages(include=["flowhooks", "flowhooks.*"]), *mapped}))

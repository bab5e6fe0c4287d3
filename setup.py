from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["tokkit*"]),
        *("tokkit." + p for p in find_packages(include=["pipelines*", "cli*"])),
    ]
)

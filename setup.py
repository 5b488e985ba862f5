"""The package list, computed: what pyproject.toml cannot say is that every sub-package of four mapped folders is in."""

from setuptools import find_packages, setup

FOLDERS = {"mlxir": "api", "mlxir.compiler": "compiler", "mlxir.dialects": "dialects", "mlxir.runtime": "runtime"}

setup(
    package_dir=FOLDERS,
    packages=[
        name
        for package, folder in FOLDERS.items()
        for name in [package, *(f"{package}.{sub}" for sub in find_packages(folder))]
    ],
    package_data={"mlxir": ["py.typed", "*.pyi"], "mlxir.runtime.emulator": ["include/*", "runtime/*"]},
)

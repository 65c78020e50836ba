"""Puts the two start-up files beside the package: setuptools has no setting for files at the root of a wheel."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

STARTUP = ("gpupool_tensorflow.pth", "gpupool_tensorflow.start")


class BuildWithStartup(build_py):
    """Copies the start-up files to the root of the wheel, from where they go to site-packages."""

    def run(self) -> None:
        super().run()
        for name in STARTUP:
            self.copy_file(name, str(Path(self.build_lib, name)), preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [
            *super().get_outputs(include_bytecode),
            *(str(Path(self.build_lib, name)) for name in STARTUP),
        ]


setup(cmdclass={"build_py": BuildWithStartup})

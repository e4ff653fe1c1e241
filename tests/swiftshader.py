"""A GPU in software: SwiftShader, as Debian's Chromium brings it, unpacked into a folder and not installed.

    python -m tests.swiftshader FOLDER       once, 32 MB

Vulkan finds it with LD_LIBRARY_PATH=FOLDER/lib VK_ICD_FILENAMES=FOLDER/lib/vk_swiftshader_icd.json. Exit code 3: the package
cannot be had here.
"""

import platform
import shutil
import sys
from functools import partial
from pathlib import Path

from .arm64.boards import NOT_HERE, NotHereError, step, unpack_debs

PACKAGE = "chromium-common"
FILES = ("libvk_swiftshader.so", "libvulkan.so.1", "vk_swiftshader_icd.json")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Debian calls them


def prepare(folder: Path) -> None:
    """Fetch it unless it is there, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    step(folder.resolve() / "lib", partial(_unpack, folder.resolve()))


def _unpack(folder: Path, part: Path) -> None:
    root = folder / "root"
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    unpack_debs(folder, [PACKAGE], architecture, root)
    for name in FILES:
        shutil.copy(root / "usr/lib/chromium" / name, part)
    for name in ("root", "debs", "apt"):
        shutil.rmtree(folder / name)


def main(words: list[str]) -> int:
    """The command line."""
    if len(words) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        prepare(Path(words[0]))
    except NotHereError as error:
        print(f"expected Debian's package {PACKAGE} for SwiftShader, got none: {error}", file=sys.stderr)
        return NOT_HERE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

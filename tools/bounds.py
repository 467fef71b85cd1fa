"""The oldest or the newest versions that setup.cfg allows of the five libraries this one is built on, for pip.

python tools/bounds.py oldest      # transformers==5.23 peft==0.20 ...
python tools/bounds.py newest      # transformers>=5.23,<5.25 ...: pip takes the newest of each
"""

import configparser
import sys
from pathlib import Path

from packaging.requirements import Requirement


LIBRARIES = ("transformers", "peft", "trl", "datasets", "accelerate")


def bounds(which: str) -> list[str]:
    """
    Requirements of the five libraries.

    Args:
        which (`str`):
            `"oldest"` or `"newest"`.

    Returns:
        `list[str]`: Arguments for `pip install`.
    """
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    ours = [requirement for requirement in map(Requirement, lines) if requirement.name in LIBRARIES]
    if which == "newest":
        return [str(requirement) for requirement in ours]
    lowest = {
        requirement.name: specifier.version
        for requirement in ours
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    return [f"{name}=={lowest[name]}" for name in LIBRARIES]


if __name__ == "__main__":
    if sys.argv[1:] not in (["oldest"], ["newest"]):
        sys.exit(__doc__)
    print(*bounds(sys.argv[1]))

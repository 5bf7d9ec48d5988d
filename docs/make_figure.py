"""The README's figure: eight prompts, eight seeds each, by the shipped model.

python docs/make_figure.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from lDM_jax.core import image  # noqa: E402
from lDM_jax.pipeline import Pipeline  # noqa: E402

PROMPTS = (
    "red heart",
    "pizza",
    "cat face",
    "flag: Japan",
    "crescent moon",
    "woman firefighter: medium skin tone",
    "grinning face with smiling eyes",
    "green apple",
)


def main() -> None:
    pipe = Pipeline.load("emoji")
    pictures = pipe.sample(prompt=PROMPTS, seeds=range(8))
    image.write_png(ROOT / "docs" / "emoji.png", image.grid(pictures, columns=8))


if __name__ == "__main__":
    main()
